"""The champion's block: what it renders, and how versions come and go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_mipro.blocks import VERSIONS_KEPT, PromptChampion, load
from prefect_mipro.errors import Conflict, InputInvalid
from prefect_mipro.models.champions import ChampionVersion, Evidence
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.placeholders import Placeholder
from prefect_mipro.tasks import SessionHandle
from prefect_mipro.tasks.connections import connection_to
from tests.plugin.conftest import SYSTEM
from tests.plugin.examples import candidate, candidate_id, duel, status

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def version(number: int = 1, **changes: Any) -> ChampionVersion:
    values: dict[str, Any] = {
        "session_id": "support-bot",
        "candidate_id": candidate_id(number),
        "number": number,
        "messages": (
            {"role": "system", "content": f"Wording {number}. Answer as {{form}}."},
            {"role": "user", "content": "{request}"},
        ),
        "placeholders": (
            Placeholder(name="form", required=False),
            Placeholder(name="request", required=True),
        ),
        "promoted_at": NOW,
    }
    return ChampionVersion(**(values | changes))


def champion(*numbers: int) -> PromptChampion:
    """Promoted in this order."""
    first, *others = numbers
    block = PromptChampion.first(version(first))
    for number in others:
        block = block.promote(version(number))
    return block


def test_a_row_fills_the_placeholders_and_the_rest_of_it_is_ignored() -> None:
    messages = champion(1).render(request="Wake me {at} seven.", form="a word", id=7)
    assert messages == [
        {"role": "system", "content": "Wording 1. Answer as a word."},
        {"role": "user", "content": "Wake me {at} seven."},
    ]


def test_a_missing_text_is_named() -> None:
    with pytest.raises(
        InputInvalid, match=r"{request} in the inputs of render \(there are: form\)"
    ):
        champion(1).render(form="a word")


@pytest.mark.parametrize("text", [" ", None, float("nan")])
def test_a_text_that_a_rollout_would_not_take_is_refused(text: Any) -> None:
    needed = Placeholder(name="request", required=True, may_be_blank=False)
    with pytest.raises(InputInvalid, match=r"'request' is (blank|None|nan) in the inputs"):
        PromptChampion.first(version(placeholders=(needed,))).render(request=text)


def test_a_demonstration_that_looks_like_a_placeholder_is_sent_as_it_is() -> None:
    shown = Demonstration(input="What is {request}?", output="{request}")
    turns = (
        {"role": "user", "content": shown.input},
        {"role": "assistant", "content": shown.output},
    )
    system, user = version().messages
    block = PromptChampion.first(version(messages=(system, *turns, user), demonstrations=(shown,)))
    contents = [message["content"] for message in block.render(request="Hi")]
    assert contents[1:] == ["What is {request}?", "{request}", "Hi"]


def test_rolling_back_restores_the_version_before() -> None:
    assert champion(1, 2, 3).roll_back() == champion(1, 2)


def test_rolling_back_to_a_candidate_drops_what_came_after_it() -> None:
    assert champion(1, 2, 3).roll_back(candidate_id(1)) == champion(1)


@pytest.mark.parametrize("wanted", [None, candidate_id(9)])
def test_there_is_no_way_back_to_what_never_was(wanted: str | None) -> None:
    with pytest.raises(Conflict, match="cannot go back to"):
        champion(1).roll_back(wanted)


def test_the_history_is_bounded() -> None:
    block = champion(*range(1, VERSIONS_KEPT + 5))
    assert len(block.previous) == VERSIONS_KEPT
    assert block.previous[0].number == VERSIONS_KEPT + 3


def test_a_declined_candidate_is_remembered_over_promotions() -> None:
    assert champion(1).decline("cand_2").promote(version(3)).declined == ("cand_2",)


def test_the_evidence_of_a_won_duel_is_kept() -> None:
    won = duel(2).model_copy(update={"state": "won", "e_value": 41.0})
    told = status(candidate(1), candidate(2), champion=2, duel=won)
    evidence = Evidence.of(told.candidates[candidate_id(2)], told)
    assert (evidence.e_value, evidence.threshold) == (41.0, 20.0)
    assert (evidence.mean, evidence.baseline_mean) == (0.04, 0.02)


def test_another_candidates_duel_is_no_evidence() -> None:
    told = status(candidate(1), candidate(2), candidate(3), champion=2, duel=duel(3))
    evidence = Evidence.of(told.candidates[candidate_id(2)], told)
    assert evidence.e_value is None


def test_a_lease_of_a_candidate_becomes_a_version(session: SessionHandle) -> None:
    with connection_to(session) as connection:
        told = connection.client.session_status(session.session_id)
        lease = connection.client.lease(
            session.session_id, candidate_id=told.champion_candidate_id, render=True
        )
    made = ChampionVersion.of(lease, told, reason="first", promoted_by="test", promoted_at=NOW)
    assert (made.number, made.instruction, made.model) == (1, SYSTEM, "small")
    assert made.render(request="Hi")[-1] == {"role": "user", "content": "Hi"}


@pytest.mark.usefixtures("prefect_server")
def test_a_saved_champion_is_loaded_whole() -> None:
    block = champion(1, 2)
    block.save("saved-champion", overwrite=True)
    block.roll_back().save("saved-champion", overwrite=True)
    loaded = load(PromptChampion, "saved-champion")
    assert loaded.version == version(1)
    assert loaded.previous == ()
    loaded.promote(version(3)).save("saved-champion", overwrite=True)
    assert load(PromptChampion, "saved-champion").previous == (version(1),)
