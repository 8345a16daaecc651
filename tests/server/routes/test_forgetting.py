"""Forgetting over HTTP: of the texts nothing is left, the counters stay, and calls go on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.client.clients import Client
from prefect_mipro.errors import Conflict, NotFound
from prefect_mipro.models.sessions import ForgetSubject
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.audit import audit
from prefect_mipro.server.store.engine import compact, inspected
from prefect_mipro.server.store.records import ForgetOrder
from tests.fake_upstream import FakeUpstream, better_with_demonstrations
from tests.server.live import LiveServer
from tests.server.routes.conftest import CONFIG, KEY, SESSIONS, chat_path

SECRET = "the heron of Quiet Harbour"
# Who says it. Neither name is part of the other.
ALICE, BOB = "alice-of-the-tests", "bob-of-the-tests"
ROLLOUTS = 24
FROM_TRAFFIC = "prompt_learning.mipro.demonstrations.from_traffic"


@dataclass
class Lived:
    """A session in which two people were served, and one of them has told a secret everywhere."""

    server: LiveServer
    http: httpx.Client
    upstream: FakeUpstream
    session: dict[str, Any]
    backend: Any

    @property
    def path(self) -> str:
        return f"{SESSIONS}/{self.session['session_id']}"

    def chat(self, rollout_id: str, text: str, **query: str) -> httpx.Response:
        content = [
            {"type": "text", "text": f"Query: {text}"},
            {"type": "image_url", "image_url": {"url": f"https://images.invalid/{text}.png"}},
        ]
        system = {"role": "system", "content": "You classify banking queries."}
        body = {"model": "m", "messages": [system, {"role": "user", "content": content}]}
        answer = self.http.post(chat_path(self.session, rollout_id), json=body, params=query)
        assert answer.status_code == 200, answer.text
        return answer

    def reward(self, rollout_id: str, score: float = 1.0, **more: Any) -> httpx.Response:
        body = {"rollout_id": rollout_id, "reward_info": {"score": score}, **more}
        return self.http.post(f"{self.path}/reward", json=body)

    def forget(self, **wanted: Any) -> dict[str, Any]:
        answer = self.http.post(f"{self.path}/forget", json=wanted)
        assert answer.status_code == 200, answer.text
        report: dict[str, Any] = answer.json()
        return report

    def candidates(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.http.get(
            f"/api/systems/{self.session['session_id']}/candidates"
        ).json()["items"]
        return items

    def showing(self, text: str) -> list[str]:
        """The candidates whose prompts hold the text."""
        return [each["candidate_id"] for each in self.candidates() if text in json.dumps(each)]

    def settle(self) -> None:
        """Wait for the rounds of proposals that are under way."""
        self.server.run(self.backend.rollouts._proposals.settle())


def told(number: int, user: str) -> dict[str, Any]:
    secret = SECRET if user == ALICE else "nothing"
    return {
        "correlation_id": f"conversation of {user}",
        "trace_ref": f"{secret} as a reference",
        "artifact": {"review": f"{secret} was seen"},
        "metadata": {
            "user": user,
            "example_id": str(number),
            "expected": f"label {number % 3} {secret}",
            "review": {"text": secret},
        },
    }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mipro.db"


@contextmanager
def serving(file: Path) -> Iterator[Lived]:
    """A server on the file, which has the session already or gets it from the caller."""
    with FakeUpstream(better_with_demonstrations) as upstream:
        app = create_app(
            ServerSettings(
                database_url=f"sqlite:///{file}",
                api_keys=(SecretStr(KEY),),
                upstream_url=upstream.url,
            )
        )
        bearer = {"Authorization": f"Bearer {KEY}"}
        with (
            LiveServer(app) as server,
            httpx.Client(base_url=server.url, headers=bearer, timeout=30) as http,
        ):
            yield Lived(server, http, upstream, http.get(f"{SESSIONS}/s").json(), app.state.backend)


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The database of the session, by whether its traffic may be shown; made once each."""

    @cache
    def made(from_traffic: str) -> Path:
        file = tmp_path_factory.mktemp("lived") / "mipro.db"
        with serving(file) as lived:
            body = {"session_id": "s", "config_body": CONFIG}
            overrides = {FROM_TRAFFIC: from_traffic}
            lived.session = lived.http.post(SESSIONS, json={**body, "overrides": overrides}).json()
            for number in range(ROLLOUTS):
                user = BOB if number % 4 else ALICE
                said = SECRET if user == ALICE else "a parcel"
                lived.chat(f"r{number}", f"{said} of number {number} #label{number % 3}")
                info = {"score": 1.0, "feedback": f"{said} should not be asked for"}
                more = {**told(number, user), "reward_info": info}
                assert lived.reward(f"r{number}", **more).status_code == 200
                lived.settle()
        return file

    return made


@pytest.fixture
def lived(
    file: Path, lived_in: Callable[[str], Path], request: pytest.FixtureRequest
) -> Iterator[Lived]:
    shutil.copyfile(lived_in(getattr(request, "param", "allowed")), file)
    with serving(file) as lived:
        yield lived


def require_nothing_of(secret: str, lived: Lived) -> None:
    told = [
        lived.http.get(path).text
        for path in (
            lived.path,
            f"{lived.path}/export",
            f"{lived.path}/events",
            "/api/systems/s/candidates",
            "/api/systems/s/seed-evals",
        )
    ]
    assert not [text for text in told if secret in text]


async def faults(file: Path) -> list[Any]:
    async with inspected(f"sqlite+aiosqlite:///{file}") as database:
        return [check for check in await database.read(audit) if check.problems]


async def test_of_a_person_who_is_forgotten_no_text_is_left_anywhere(
    lived: Lived, file: Path
) -> None:
    shown = lived.showing(SECRET)
    assert shown, "demonstrations are taken from the traffic"
    lived.http.post(f"{lived.path}/champion", json={"candidate_id": shown[0]})
    assert lived.reward("pinned", candidate_id=shown[-1]).status_code == 200
    assert lived.reward("waits", metadata={"user": ALICE, "note": SECRET}).status_code == 200
    assert SECRET in str(lived.chat("pinned", "a parcel").request) + json.dumps(
        lived.upstream.requests[-1]
    )
    before = lived.http.get(lived.path).json()
    would = lived.forget(user=ALICE, dry_run=True)
    assert lived.showing(SECRET) == shown
    report = lived.forget(user=ALICE)
    assert report == would | {"dry_run": False}
    assert (report["rollouts"], report["calls"]) == (ROLLOUTS // 4, ROLLOUTS // 4)
    assert set(report["retired_candidates"]) == set(shown)
    assert report["champion_candidate_id"] == before["baseline_candidate_id"]
    answer = lived.chat("pinned", "a parcel")
    assert answer.headers["x-mipro-candidate-id"] == before["baseline_candidate_id"]
    lived.chat("new", "another parcel")
    assert SECRET not in json.dumps(lived.upstream.requests[-2:])
    after = lived.http.get(lived.path).json()
    assert after["rollout_count"] == before["rollout_count"] + 1
    assert after["reward_count"] == before["reward_count"]
    require_nothing_of(SECRET, lived)
    require_nothing_of(ALICE, lived)
    assert await faults(file) == []
    refused = lived.http.post(f"{lived.path}/champion", json={"candidate_id": shown[0]})
    assert (refused.status_code, "forgotten" in refused.text) == (409, True)


@pytest.mark.parametrize("lived", ["reviewed"], indirect=True)
def test_nothing_is_left_in_sets_that_wait_for_a_review_or_were_reviewed(lived: Lived) -> None:
    reviews = f"{lived.path}/reviews"
    before = lived.http.get(reviews).json()["items"]
    holding = [each["version"] for each in before if SECRET in json.dumps(each)]
    assert len(holding) > 1
    body = {"decision": "approve", "by": "a reviewer"}
    approved = lived.http.post(f"{reviews}/{holding[0]}", json=body).json()
    assert approved["candidate_id"] in lived.showing(SECRET)
    report = lived.forget(user=ALICE)
    assert approved["candidate_id"] in report["retired_candidates"]
    states = ("waiting", "approved", "declined")
    left = [lived.http.get(reviews, params={"state": state}).json()["items"] for state in states]
    assert not {each["version"] for each in left[0]} & set(holding)
    assert left[1:] == [[], []]
    require_nothing_of(SECRET, lived)


def test_a_call_that_was_under_way_leaves_no_forgotten_text_behind(lived: Lived) -> None:
    assert lived.reward("pinned", candidate_id=lived.showing(SECRET)[-1]).status_code == 200
    lived.chat("pinned", "a letter")
    lived.settle()
    asked, forgotten = threading.Event(), threading.Event()
    sent: list[str] = []

    def late(body: dict[str, Any]) -> str:
        sent.append(json.dumps(body))
        asked.set()
        assert forgotten.wait(10)
        return "label1"

    lived.upstream.answer = late
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(lived.chat, "pinned", "a parcel")
        assert asked.wait(10)
        lived.forget(user=ALICE)
        forgotten.set()
        answered.result()
    assert [SECRET in each for each in sent] == [True]
    lived.server.run(lived.backend.forgetting._journal.flush())
    require_nothing_of(SECRET, lived)
    calls = [
        (line["messages"], line["input"])
        for line in map(json.loads, lived.http.get(f"{lived.path}/export").text.splitlines())
        if line["part"] == "trace" and line["rollout_id"] == "pinned"
    ]
    assert calls == [([], "Query: a letter"), ([], "Query: a parcel")]


async def test_the_file_holds_nothing_of_it_once_it_is_compacted(lived: Lived, file: Path) -> None:
    assert SECRET.encode() in b"".join(each.read_bytes() for each in file.parent.iterdir())
    lived.forget(user=ALICE)
    lived.server.__exit__(None, None, None)
    compact(f"sqlite+aiosqlite:///{file}")
    left = b"".join(each.read_bytes() for each in file.parent.iterdir())
    assert b"bob-of-the-tests" in left
    assert SECRET.encode() not in left
    assert ALICE.encode() not in left


@pytest.mark.parametrize(
    ("wanted", "rollouts"),
    [
        ({"rollout_id": "r1"}, ["r1"]),
        ({"example_id": "2"}, ["r2"]),
        ({"correlation_id": f"conversation of {ALICE}"}, ["r0", "r4", "r8", "r12", "r16", "r20"]),
        ({"user": "nobody"}, []),
    ],
)
async def test_each_subject_takes_its_own_rollouts_and_no_others(
    lived: Lived, file: Path, wanted: dict[str, str], rollouts: list[str]
) -> None:
    assert lived.forget(**wanted)["rollouts"] == len(rollouts)
    left = {
        line["rollout_id"]
        for line in map(json.loads, lived.http.get(f"{lived.path}/export").text.splitlines())
        if "example_trace_id" in line
    }
    assert {f"r{number}" for number in range(ROLLOUTS)} - left == set(rollouts)
    assert lived.forget(**wanted)["rollouts"] == 0
    assert await faults(file) == []


@pytest.mark.parametrize("removed", [[], ["r0", "r4"]])
async def test_a_request_that_is_broken_off_is_carried_out_later(
    lived: Lived, file: Path, removed: list[str]
) -> None:
    store, forgetting = lived.backend.forgetting._store, lived.backend.forgetting
    at = datetime(2026, 1, 1, tzinfo=UTC)
    order = ForgetOrder("forget_1", "s", ForgetSubject.USER, ALICE, requested_at=at)
    lived.server.run(store.begin_forgetting(order))
    lived.server.run(store.remove_rollouts(order, removed, at=at))
    assert await faults(file) == []
    lived.server.run(forgetting.finish())
    require_nothing_of(ALICE, lived)
    event = lived.http.get(f"{lived.path}/events").json()["events"][-1]
    assert (event["event_type"], event["data"]["rollouts"]) == (
        "mipro.session.forgotten",
        ROLLOUTS // 4,
    )
    assert lived.server.run(store.begun_forgettings()) == ()
    assert await faults(file) == []


@pytest.mark.parametrize("wanted", [{}, {"user": "a", "rollout_id": "b"}, {"user": ""}])
def test_a_request_names_exactly_one_subject(lived: Lived, wanted: dict[str, str]) -> None:
    answer = lived.http.post(f"{lived.path}/forget", json=wanted)
    assert answer.status_code == 422


def test_a_retired_champion_gives_way_and_may_be_promoted_again(lived: Lived) -> None:
    baseline_id = lived.session["baseline_candidate_id"]
    candidate_id = lived.candidates()[-1]["candidate_id"]
    lived.reward("pinned", candidate_id=candidate_id)
    with Client(lived.server.url, api_key=KEY) as client:
        client.promote("s", candidate_id)
        report = client.retire(candidate_id, reason="it is rude")
        assert (report.retired_candidates, report.champion_candidate_id) == (
            (candidate_id,),
            baseline_id,
        )
        assert report.champion_replaced
        served = lived.chat("pinned", "a parcel").headers["x-mipro-candidate-id"]
        assert served == baseline_id
        again = client.retire(candidate_id)
        assert (again.retired_candidates, again.champion_replaced) == ((), False)
        client.promote("s", candidate_id)
    served = lived.chat("pinned", "a parcel").headers["x-mipro-candidate-id"]
    assert served == candidate_id


def test_a_retired_lever_version_takes_its_candidates_and_the_baseline_stays(
    lived: Lived,
) -> None:
    with Client(lived.server.url, api_key=KEY) as client:
        report = client.retire_lever("s", "demonstrations", 2)
        held = [each for each in lived.candidates() if _set_of(each) == 2]
        assert {each["candidate_id"] for each in held} == set(report.retired_candidates) != set()
        with pytest.raises(Conflict, match="is the baseline"):
            client.retire(lived.session["baseline_candidate_id"])
        with pytest.raises(Conflict, match="is the baseline"):
            client.retire_lever("s", "instruction", 1)
        with pytest.raises(NotFound, match="no version 99"):
            client.retire_lever("s", "instruction", 99)
        assert client.forget("s", user=ALICE, dry_run=True).rollouts == ROLLOUTS // 4


def _set_of(candidate: dict[str, Any]) -> int:
    version: int = candidate["lineage"]["demonstrations"]["version"]
    return version
