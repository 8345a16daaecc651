"""What becomes of calls and rewards when connections to PostgreSQL end, or all of it is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.end_to_end.faults.served import Counted, Served, Session, served
from tests.postgres import Postgres
from tests.server.scripted_upstream import COMPLETION, Connection, ScriptedUpstream, complete

PROGRAMS = 4
ROLLOUTS = 60
TERMINATIONS = 5
IN_TIME_SECONDS = 8.0
# Those of servers; the one that asks is of this database, too.
TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def backend(postgres_url: str, upstream: ScriptedUpstream) -> Iterator[Served]:
    upstream.reset()
    with served(upstream.url, database_url=postgres_url) as backend:
        yield backend


@pytest.fixture
def session(backend: Served) -> Session:
    session = backend.session()
    session.goes_on("first")
    return session


def require_refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    body = answer.json()
    assert (body.get("code") or body["error"]["code"]) == "StoreFailed"
    assert answer.elapsed.total_seconds() < IN_TIME_SECONDS


def repeated(ask: Callable[[], httpx.Response]) -> httpx.Response:
    """The first answer that is none of a lost connection."""
    began = time.monotonic()
    while (answer := ask()).status_code == 503:
        require_refused(answer)
        assert time.monotonic() - began < 60
    assert answer.status_code == 200, answer.text
    return answer


def test_connections_that_end_in_the_midst_of_work_lose_nothing_and_double_nothing(
    session: Session, postgres: Postgres
) -> None:
    def run(number: int) -> bool:
        rollout_id = f"r{number}"
        repeated(lambda: session.call(rollout_id))
        return bool(repeated(lambda: session.reward(rollout_id)).json()["attached"])

    with ThreadPoolExecutor(PROGRAMS) as programs:
        attached = [programs.submit(run, number) for number in range(ROLLOUTS)]
        for rollout in range(0, ROLLOUTS, ROLLOUTS // TERMINATIONS):
            attached[rollout].result()
            postgres.run(TERMINATE)
        assert all(rollout.result() for rollout in attached)
    everything = ROLLOUTS + 1
    assert session.counted() == Counted(everything, everything, 0, everything)
    session.goes_on()


def test_while_it_is_away_everything_is_a_503_and_the_server_lives(
    session: Session, backend: Served, postgres: Postgres
) -> None:
    with postgres.stopped():
        for _ in range(2):
            require_refused(session.call("r1"))
            require_refused(session.reward("first"))
            require_refused(backend.http.get(f"/api/v1/online/sessions/{session.session_id}"))
        assert backend.http.get("/health").status_code == 200
    session.goes_on("r1")


def test_a_call_under_way_is_answered_and_recorded_when_it_is_back(
    session: Session, postgres: Postgres, upstream: ScriptedUpstream
) -> None:
    def answer_late(connection: Connection) -> None:
        assert upstream.gate.wait(20)
        complete(connection)

    upstream.reset()
    upstream.script.append(answer_late)
    with ThreadPoolExecutor(1) as program:
        call = program.submit(session.call, "r1")
        assert upstream.arrived.wait(20)
        with postgres.stopped():
            upstream.gate.set()
            answer = call.result()
    assert (answer.status_code, answer.json()) == (200, COMPLETION)
    assert session.counted() == Counted(rollouts=2, calls=2, rewards=1)
    session.goes_on()
