"""Two servers on one PostgreSQL serve one session as one server would."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from typing import Any

import httpx
import pytest

from prefect_mipro.client.clients import AsyncClient
from prefect_mipro.errors import SessionEnded, SessionNotFound
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionState, SessionStatus
from prefect_mipro.server.services.session_cache import OLDEST_SECONDS
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.fake_upstream import Body, FakeUpstream, better_with_demonstrations
from tests.postgres import Postgres

TEXT = "Classify with care."
ROLLOUTS = [f"r{number}" for number in range(40)]


PROPOSED: list[Body] = []
# Without it the proposer model keeps those waiting who ask it.
MAY_ANSWER = threading.Event()
MAY_ANSWER.set()


def answer(body: Body) -> str:
    """That of the policy model; the proposer model waits until it may, and has nothing to say."""
    if "Query: " in body["messages"][-1]["content"][:20]:
        return better_with_demonstrations(body)
    PROPOSED.append(body)
    MAY_ANSWER.wait()
    return "nothing"


@pytest.fixture(scope="module")
def urls(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """Two processes that began at once on a database with nothing in it."""
    with (
        postgres.new_database() as database_url,
        FakeUpstream(answer) as upstream,
        ExitStack() as running,
        ThreadPoolExecutor() as threads,
    ):
        options = ("--database-url", database_url, "--upstream-url", upstream.url)
        processes = [BackendProcess(*options), BackendProcess(*options)]
        for started in [threads.submit(running.enter_context, process) for process in processes]:
            started.result()
        first, second = processes
        yield first.url, second.url


class Server:
    """One of the two, as its callers see it."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.api = AsyncClient(url)
        self._url = url
        self._http = http

    async def call(self, session_id: str, rollout_id: str) -> str:
        """The candidate that answered."""
        answer = await self._asked(session_id, rollout_id)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["x-mipro-candidate-id"])

    async def status_of_call(self, proxy_id: str, rollout_id: str) -> int:
        return (await self._asked(proxy_id, rollout_id)).status_code

    async def _asked(self, proxy_id: str, rollout_id: str) -> httpx.Response:
        return await self._http.post(
            f"{self._url}/api/mipro/v1/{proxy_id}/{rollout_id}/chat/completions",
            json={"model": "m", "messages": messages_of(f"{rollout_id} #a")},
        )

    async def reward(self, session_id: str, rollout_id: str) -> RewardReceipt:
        score = int(rollout_id[1:]) % 2
        request = RewardRequest(reward_info={"score": score}, rollout_id=rollout_id, shareable=True)
        return await self.api.reward(session_id, request)


Pair = tuple[Server, Server]


@pytest.fixture
async def pair(urls: tuple[str, str]) -> AsyncIterator[Pair]:
    async with httpx.AsyncClient(timeout=30) as http:
        first, second = (Server(url, http) for url in urls)
        async with first.api, second.api:
            yield first, second


async def create(server: Server, session_id: str) -> str:
    """A session with a second candidate, whose id is returned."""
    await server.api.create_session(CreateSession(session_id=session_id, config_body=CONFIG))
    added = await server.api.add_candidate(session_id, TEXT)
    return str(added["candidate_id"])


async def serve(pair: Pair, session_id: str) -> Mapping[str, str]:
    """The candidate of each rollout, whose first calls come to both servers at once."""
    first, second = pair

    async def candidate_of(rollout_id: str) -> str:
        at_once = (server.call(session_id, rollout_id) for server in pair)
        later = (first, second, first)
        answers = {
            *await asyncio.gather(*at_once),
            *[await server.call(session_id, rollout_id) for server in later],
        }
        (candidate_id,) = answers
        return candidate_id

    found: dict[str, str] = {}
    for start in range(0, len(ROLLOUTS), 8):
        some = ROLLOUTS[start : start + 8]
        ids = await asyncio.gather(*(candidate_of(rollout_id) for rollout_id in some))
        found.update(zip(some, ids, strict=True))
    return found


async def settled(server: Server, session_id: str) -> SessionStatus:
    """The status when nothing goes on in the background any more."""
    before = await server.api.session_status(session_id)
    while (after := await server.api.session_status(session_id)) != before:
        before = after
    return after


def without_urls(status: SessionStatus) -> dict[str, Any]:
    return status.model_dump(exclude={"online_url", "proxy_url", "chat_completions_url"})


async def test_a_rollout_keeps_its_candidate_whichever_server_is_called(pair: Pair) -> None:
    await create(pair[0], "pins")
    candidates = await serve(pair, "pins")
    assert len(set(candidates.values())) > 1
    for server in pair:
        status = await settled(server, "pins")
        assert status.rollout_count == len(ROLLOUTS)
        served = {id_: report.rollout_count for id_, report in status.candidates.items()}
        assert served == {id_: [*candidates.values()].count(id_) for id_ in served}


async def test_rewards_count_at_either_server_and_once(pair: Pair) -> None:
    first, second = pair
    await create(first, "rewards")
    candidates = await serve(pair, "rewards")
    for number, rollout_id in enumerate(ROLLOUTS):
        server, other = pair if number % 2 else (second, first)
        receipt = await server.reward("rewards", rollout_id)
        assert (receipt.candidate_id, receipt.duplicate) == (candidates[rollout_id], False)
        again = await other.reward("rewards", rollout_id)
        assert (again.candidate_id, again.duplicate) == (candidates[rollout_id], True)
    told = without_urls(await settled(first, "rewards"))
    assert told["reward_count"] == len(ROLLOUTS)
    assert without_urls(await settled(second, "rewards")) == told


async def test_one_of_them_proposes_and_not_both(pair: Pair) -> None:
    PROPOSED.clear()
    await create(pair[0], "rounds")
    await serve(pair, "rounds")
    MAY_ANSWER.clear()
    try:
        for start in range(0, len(ROLLOUTS), 2):
            some = zip(pair, ROLLOUTS[start : start + 2], strict=True)
            rewards = (server.reward("rounds", rollout_id) for server, rollout_id in some)
            await asyncio.gather(*rewards)
        while not PROPOSED:
            await settled(pair[0], "rounds")
        assert len(PROPOSED) == 1
    finally:
        MAY_ANSWER.set()
    while not (status := await settled(pair[1], "rounds")).proposer.rounds:
        pass
    assert status.proposer.rounds == 1


async def test_a_session_that_is_paused_at_one_server_is_paused_at_the_other(pair: Pair) -> None:
    first, second = pair
    await create(first, "pause")
    await first.api.change_state("pause", SessionState.PAUSED)
    assert (await second.api.session_status("pause")).state is SessionState.PAUSED
    await second.api.change_state("pause", SessionState.RUNNING)
    assert (await first.api.session_status("pause")).state is SessionState.RUNNING


async def test_calls_and_rewards_at_the_other_server_heed_a_change_within_a_second(
    pair: Pair,
) -> None:
    first, second = pair
    added = await create(first, "change")
    await second.call("change", "r0")
    champion = (await second.api.session_status("change")).champion_candidate_id
    numbers = count(1)

    async def ended() -> bool:
        try:
            await second.reward("change", f"r{next(numbers)}")
        except SessionEnded:
            return True
        return False

    async def serves_the_added() -> bool:
        return await second.call("change", f"r{next(numbers)}") == added

    await first.api.change_state("change", SessionState.CANCELLED)
    await within_a_second(ended)
    assert await second.call("change", f"r{next(numbers)}") == champion
    await first.api.promote("change", added)
    await within_a_second(serves_the_added)
    assert await serves_the_added()


async def test_a_session_that_is_deleted_at_one_server_is_unknown_at_the_other_within_a_second(
    pair: Pair,
) -> None:
    first, second = pair
    await create(first, "gone")
    await second.call("gone", "r0")

    async def is_unknown() -> bool:
        try:
            await second.reward("gone", "r0")
        except SessionNotFound:
            return True
        except SessionEnded:  # the cancelled session, as it was held
            return False
        return False

    await first.api.delete_session("gone")
    await within_a_second(is_unknown)
    await create(second, "gone")
    assert (await first.api.session_status("gone")).rollout_count == 0
    await first.call("gone", "r0")


async def test_a_url_that_was_replaced_at_one_server_is_refused_at_the_other_within_a_second(
    pair: Pair,
) -> None:
    first, second = pair
    await create(first, "leaked")
    before = (await second.api.session_urls("leaked")).online_url.rpartition("/")[2]

    async def refused() -> bool:
        return await second.status_of_call(before, "r1") == 401

    assert not await refused()
    after = (await first.api.rotate_url("leaked")).online_url.rpartition("/")[2]
    assert await first.status_of_call(before, "r2") == 401
    await within_a_second(refused)
    assert await second.status_of_call(after, "r3") == 200


async def within_a_second(seen: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: nobody who asks later than the stated time may miss the change."""
    changed = time.monotonic()
    asked = changed
    while not await seen():
        assert asked - changed < OLDEST_SECONDS
        asked = time.monotonic()
