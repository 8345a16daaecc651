"""Creating, finding, steering and reporting sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from prefect_mipro.errors import (
    ConfigInvalid,
    InputInvalid,
    SessionEnded,
    SessionNotFound,
)
from prefect_mipro.models.sessions import CreateSession, SessionState, SystemRequest
from prefect_mipro.server.services.removal import Removal
from prefect_mipro.server.store.records import SeedEvalFilter, SessionFilter
from tests.server.services.conftest import Backend, config_of


async def create(backend: Backend, **request: Any) -> str:
    status, _ = await backend.sessions.create(CreateSession(**request))
    return status.session_id


async def test_a_new_session_has_a_baseline_with_version_one_and_three_urls(
    backend: Backend,
) -> None:
    status = await backend.create()
    assert status.lever_summary.model_dump() == {
        "prompt_lever_id": "mipro.prompt.s",
        "candidate_lever_versions": {status.baseline_candidate_id: 1},
        "best_candidate_id": status.baseline_candidate_id,
        "selected_candidate_id": status.baseline_candidate_id,
        "baseline_candidate_id": status.baseline_candidate_id,
        "lever_count": 1,
        "mutation_count": 0,
        "latest_version": 1,
    }
    assert status.best_lever_version == 1
    assert status.online_url.startswith("http://127.0.0.1:1/api/mipro/v1/s.")
    assert status.proxy_url == status.online_url
    assert status.chat_completions_url == f"{status.online_url}/chat/completions"


async def test_creating_again_finds_the_session_and_changes_nothing(backend: Backend) -> None:
    first = await backend.create()
    again, created = await backend.sessions.create(
        CreateSession(session_id="s", config_body=config_of())
    )
    assert not created
    assert again == first


async def test_creating_again_with_another_config_keeps_the_first_and_says_so(
    backend: Backend,
) -> None:
    await backend.create(seed=1)
    again, _ = await backend.sessions.create(
        CreateSession(session_id="s", config_body=config_of(seed=2))
    )
    assert "prompt_learning.mipro.seed" in again.warnings[0]
    assert "another session_id" in again.warnings[0]


async def test_creating_again_what_has_ended_says_that_it_learns_nothing(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    await backend.create()
    await backend.store.set_state(
        "s", SessionState.SUCCEEDED, at=backend.now[0], stop_reason="the budget is used up"
    )
    again = await backend.create()
    assert "has succeeded (the budget is used up)" in again.warnings[0]
    assert [record.msg for record in caplog.records] == ["session_kept"]


async def test_fields_of_a_create_call_that_are_not_known_are_named(backend: Backend) -> None:
    request = CreateSession.model_validate(
        {"session_id": "s", "config_body": config_of(), "overides": {"a": 1}}
    )
    status, _ = await backend.sessions.create(request)
    assert status.warnings[0].startswith("the field 'overides' of the create call is not known")
    assert status.warnings[0].endswith("did you mean 'overrides'?")


async def test_the_session_id_is_the_callers_else_the_systems(backend: Backend) -> None:
    body = config_of()
    named = SystemRequest(name="8f7c2d1e-0000-4000-8000-000000000000")
    assert await create(backend, session_id="mine", system=named, config_body=body) == "mine"
    assert await create(backend, system=named, config_body=body) == named.name
    assert await create(backend, config_body=config_of(system_id="old")) == "old"
    odd = await create(backend, system=SystemRequest(name="a b/c"), config_body=body)
    assert len(odd) == 36


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "exactly one config source; none was sent"),
        ({"config_body": {"a": 1}, "config_name": "x"}, "config_body and config_name was sent"),
        ({"config_path": "/etc/passwd"}, "opens no files"),
        ({"config_name": "prod"}, "keeps no config named 'prod'"),
        ({"config_body": {"training": {}}}, r"no \[prompt_learning\] section"),
    ],
)
async def test_an_unusable_config_source_is_refused_with_the_way_out(
    backend: Backend, sources: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigInvalid, match=message):
        await backend.sessions.create(CreateSession(session_id="s", **sources))
    with pytest.raises(SessionNotFound):
        await backend.sessions.status("s")


async def test_overrides_are_applied_and_an_unknown_path_is_refused(backend: Backend) -> None:
    body = config_of()
    request = CreateSession(
        session_id="s",
        config_body=body,
        overrides={"prompt_learning.mipro.online_rollouts_per_candidate": 4},
    )
    await backend.sessions.create(request)
    stored = await backend.store.session("s")
    assert stored.config["prompt_learning"]["mipro"]["online_rollouts_per_candidate"] == 4
    wrong = CreateSession(
        session_id="t", config_body=body, overrides={"prompt_learning.mipro.rollots": 1}
    )
    with pytest.raises(ConfigInvalid, match="did you mean"):
        await backend.sessions.create(wrong)


async def test_settings_without_effect_are_named_in_a_warning(backend: Backend) -> None:
    status = await backend.create(ontology={"enabled": True}, online_pol=[1])
    assert any("mipro.ontology has no effect" in text for text in status.warnings)
    assert any("did you mean 'online_pool'" in text for text in status.warnings)


async def test_a_key_in_the_config_is_never_stored(backend: Backend) -> None:
    body = config_of()
    body["prompt_learning"]["task_app_api_key"] = "planted-secret"
    await create(backend, session_id="s", config_body=body)
    assert "planted-secret" not in str(await backend.store.session("s"))


async def test_an_unknown_provider_is_refused_before_anything_is_stored(backend: Backend) -> None:
    body = config_of()
    body["prompt_learning"]["policy"]["provider"] = "embedded"
    backend.sessions._upstreams._table.pop("default")
    body["prompt_learning"]["policy"]["provider"] = "nobody"
    with pytest.raises(ConfigInvalid, match="no provider 'nobody'"):
        await create(backend, session_id="s", config_body=body)
    with pytest.raises(SessionNotFound):
        await backend.sessions.status("s")


async def test_metadata_is_bounded_as_the_config_is(backend: Backend) -> None:
    with pytest.raises(InputInvalid, match=r"the metadata has 300,\d{3} bytes, more than"):
        await create(backend, config_body=config_of(), metadata={"note": "x" * 300_000})


async def test_pause_resume_cancel_follow_each_other_and_repeat_safely(backend: Backend) -> None:
    await backend.create()
    for state in (
        SessionState.PAUSED,
        SessionState.PAUSED,
        SessionState.RUNNING,
        SessionState.CANCELLED,
        SessionState.CANCELLED,
    ):
        assert (await backend.sessions.change_state("s", state)).status is state


@pytest.mark.parametrize("rollouts", [0, 1])
async def test_a_cancelled_session_never_runs_again(backend: Backend, rollouts: int) -> None:
    await backend.create()
    for number in range(rollouts):
        await backend.call(f"r{number}")
    before = await backend.sessions.change_state("s", SessionState.CANCELLED)
    with pytest.raises(SessionEnded, match=r"'s' was cancelled.* another session_id, or delete"):
        await backend.create()
    with pytest.raises(SessionEnded, match="cannot become running"):
        await backend.sessions.change_state("s", SessionState.RUNNING)
    assert await backend.sessions.status("s") == before
    await Removal(backend.store).delete("s")
    assert (await backend.create()).status is SessionState.RUNNING


@pytest.mark.parametrize("state", [SessionState.PAUSED, SessionState.SUCCEEDED])
async def test_creating_leaves_the_state_of_a_session_as_it_is(
    backend: Backend, state: SessionState
) -> None:
    await backend.create()
    await backend.sessions.change_state("s", state)
    assert (await backend.create()).status is state


async def test_prompts_that_humans_add_at_once_are_all_added(backend: Backend) -> None:
    await backend.create()
    words = ("one", "two", "three", "four", "five")
    await asyncio.gather(
        *(backend.sessions.add_candidate("s", instruction=f"Say it in {word}.") for word in words)
    )
    candidates = await backend.store.candidates("s")
    assert [candidate.number for candidate in candidates] == [1, 2, 3, 4, 5, 6]


async def test_a_human_candidate_competes_and_names_its_parent(backend: Backend) -> None:
    first = await backend.create()
    item = await backend.sessions.add_candidate("s", instruction="Say the intent.", label="anna")
    status = await backend.sessions.status("s")
    report = status.candidates[item["candidate_id"]]
    assert (report.number, report.parent_id, report.label, report.origin) == (
        2,
        first.baseline_candidate_id,
        "anna",
        "human",
    )
    assert report.deltas is not None
    assert report.deltas["instruction_text"] == "Say the intent."
    with pytest.raises(InputInvalid, match="empty"):
        await backend.sessions.add_candidate("s", instruction="  ", label=None)


async def test_candidates_are_paged_filtered_and_sorted(backend: Backend) -> None:
    await backend.create()
    for i in range(4):
        await backend.sessions.add_candidate("s", instruction=f"Say it {i} times.", label=None)
    first = await backend.sessions.candidates("s", limit=3)
    rest = await backend.sessions.candidates("s", limit=3, cursor=first.next_cursor)
    numbers = [item["lever_version"] for item in (*first.items, *rest.items)]
    assert numbers == [1, 2, 3, 4, 5]
    assert rest.next_cursor is None
    newest = await backend.sessions.candidates("s", limit=9, sort="created_at:desc")
    assert [item["lever_version"] for item in newest.items] == [5, 4, 3, 2, 1]
    none = await backend.sessions.candidates("s", limit=9, status="evaluated")
    assert none.items == ()
    with pytest.raises(InputInvalid, match="cannot sort by 'size'"):
        await backend.sessions.candidates("s", limit=9, sort="size")
    with pytest.raises(InputInvalid, match="cursor"):
        await backend.sessions.candidates("s", limit=9, cursor="x")


async def test_seed_evals_carry_seed_and_split(backend: Backend) -> None:
    await backend.create(online_pool=[1, 2], val_seeds=[3])
    for seed, score in ((1, 1.0), (3, 0.0)):
        await backend.call(f"r{seed}", example_id=str(seed))
        await backend.reward(f"r{seed}", score)
    page = await backend.sessions.seed_evals(SeedEvalFilter(session_id="s"), limit=10)
    assert {(e.seed, e.split, e.reward, e.success) for e in page.items} == {
        (1, "train", 1.0, True),
        (3, "validation", 0.0, False),
    }
    only = await backend.sessions.seed_evals(
        SeedEvalFilter(session_id="s"), split="validation", limit=10
    )
    assert [e.seed for e in only.items] == [3]


async def test_sessions_are_listed_newest_first_by_state(backend: Backend) -> None:
    for name in ("a", "b", "c"):
        await backend.create(name)
        backend.pass_time(1)
    await backend.sessions.change_state("b", SessionState.PAUSED)
    page = await backend.sessions.find(SessionFilter(), limit=2, cursor=None)
    rest = await backend.sessions.find(SessionFilter(), limit=2, cursor=page.next_cursor)
    assert [item["session_id"] for item in (*page.items, *rest.items)] == ["c", "b", "a"]
    paused = await backend.sessions.find(
        SessionFilter(state=SessionState.PAUSED), limit=9, cursor=None
    )
    assert [item["session_id"] for item in paused.items] == ["b"]


async def test_events_tell_what_happened_without_gaps(backend: Backend) -> None:
    await backend.create()
    await backend.call("r")
    await backend.reward("r")
    await backend.sessions.change_state("s", SessionState.PAUSED)
    events = await backend.sessions.events("s", since=0, limit=100)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = [event.event_type for event in events]
    assert kinds[0] == "mipro.session.created"
    assert kinds[-1] == "mipro.session.paused"
    assert "mipro.reward.received" in kinds
    assert (await backend.sessions.status("s")).version == len(events)


async def test_the_same_state_always_reads_the_same(backend: Backend) -> None:
    await backend.create()
    for i in range(5):
        await backend.call(f"r{i}")
        await backend.reward(f"r{i}", i % 2)
    assert await backend.sessions.status("s") == await backend.sessions.status("s")


async def test_an_unknown_session_is_named_in_the_error(backend: Backend) -> None:
    with pytest.raises(SessionNotFound, match="nobody"):
        await backend.sessions.status("nobody")
