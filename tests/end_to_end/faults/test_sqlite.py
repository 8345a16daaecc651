"""What becomes of calls and rewards when the SQLite file cannot be read or written."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from prefect_mipro.errors import NotReady
from tests.end_to_end.conftest import messages_of
from tests.end_to_end.faults.served import Counted, Served, Session, served
from tests.server.scripted_upstream import ScriptedUpstream

LOCK_TIMEOUT_SECONDS = 0.3
IN_TIME_SECONDS = 8.0
MOST_CALLS = 200
# Text that takes some pages of the database.
LARGE = "long " * 4_000

HOLDER = """
import sqlite3, sys
other = sqlite3.connect(sys.argv[1], isolation_level=None)
other.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


class Disk:
    """What the connections of stores that are opened meanwhile may write."""

    ROOM = ("max_page_count = 1000000", "query_only = OFF")
    FULL = ("max_page_count = 1",)  # SQLite takes no less than there is
    READ_ONLY = ("query_only = ON",)

    def __init__(self) -> None:
        self._connections: list[sqlite3.Connection] = []
        self._pragmas: tuple[str, ...] = self.ROOM

    def __enter__(self) -> Disk:
        event.listen(Engine, "connect", self._made)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Engine, "connect", self._made)

    @contextmanager
    def only(self, pragmas: tuple[str, ...]) -> Iterator[None]:
        """No more than these allow, for the length of the block."""
        self._tell(pragmas)
        try:
            yield
        finally:
            self._tell(self.ROOM)

    def _tell(self, pragmas: tuple[str, ...]) -> None:
        self._pragmas = pragmas
        for connection in self._connections:
            with suppress(sqlite3.ProgrammingError):  # it was closed meanwhile
                self._set(connection)

    def _made(self, connection: sqlite3.Connection, _record: object) -> None:
        self._connections.append(connection)
        self._set(connection)

    def _set(self, connection: sqlite3.Connection) -> None:
        for pragma in self._pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def file(template_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(template_file, tmp_path / "mipro.db"))


@pytest.fixture
def disk() -> Iterator[Disk]:
    with Disk() as disk:
        yield disk


@pytest.fixture
def backend(file: Path, disk: Disk, upstream: ScriptedUpstream) -> Iterator[Served]:
    upstream.reset()
    url = f"sqlite:///{file}?timeout={LOCK_TIMEOUT_SECONDS}"
    with served(upstream.url, database_url=url) as backend:
        yield backend


@pytest.fixture
def session(backend: Served) -> Session:
    session = backend.session()
    session.goes_on("first")
    return session


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process writes to the file for the length of the block."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        yield
    finally:
        other.communicate()


class TestWhatCannotBeWritten:
    """A full disk, a file that may only be read, another program that holds the lock."""

    @pytest.fixture(params=["full", "read-only", "locked"])
    def fault(
        self, request: pytest.FixtureRequest, disk: Disk, file: Path
    ) -> tuple[Any, tuple[str, str]]:
        faults: dict[str, tuple[Any, tuple[str, str]]] = {
            "full": (lambda: disk.only(Disk.FULL), ("is full", "make room on its disk")),
            "read-only": (
                lambda: disk.only(Disk.READ_ONLY),
                ("readonly", "allow this user to write"),
            ),
            "locked": (lambda: locked(file), ("is locked", "another program writes to it")),
        }
        return faults[request.param]

    def test_is_a_503_that_names_the_way_out_and_nothing_acknowledged_is_lost(
        self, session: Session, fault: tuple[Callable[[], Any], tuple[str, str]]
    ) -> None:
        begin, words = fault
        assert session.call("answered").status_code == 200
        with begin():
            served = until_refused(session)
            require_refused(session.reward("answered", feedback=LARGE), words)
            assert session.status()["reward_count"] == 1
        assert session.counted() == Counted(2 + len(served), 2 + len(served), 0, 1)
        receipt = session.reward("answered", feedback=LARGE)
        assert (receipt.status_code, receipt.json()["duplicate"]) == (200, False)
        session.goes_on()

    def test_costs_no_model_call_once_it_is_known_and_the_server_is_not_ready(
        self,
        session: Session,
        fault: tuple[Callable[[], Any], tuple[str, str]],
        upstream: ScriptedUpstream,
    ) -> None:
        begin, words = fault
        ready = session.served.backend.readiness
        with begin():
            until_refused(session)
            asked = len(upstream.received)
            for number in range(3):
                refused = session.call(f"again_{number}")
                require_refused(refused, words)
                assert refused.headers["retry-after"] == "1"
            assert len(upstream.received) == asked
            with pytest.raises(NotReady, match="database: it takes no writes"):
                session.served.server.run(ready.check())
        session.goes_on()


def test_a_server_that_starts_on_a_full_disk_asks_no_model_for_what_it_refuses(
    file: Path, disk: Disk, upstream: ScriptedUpstream
) -> None:
    url = f"sqlite:///{file}"
    with served(upstream.url, database_url=url) as backend:
        session = backend.session()
        session.goes_on("first")
    upstream.reset()
    with disk.only(Disk.FULL), served(upstream.url, database_url=url) as again:
        session = replace(session, served=again)
        answered = until_refused(session)
        assert session.call("later", messages=messages_of(LARGE)).status_code == 503
        assert len(upstream.received) == len(answered)


def until_refused(session: Session) -> list[str]:
    """Rollouts that are answered, until one is refused."""
    answered: list[str] = []
    for number in range(MOST_CALLS):
        answer = session.call(f"r{number}", messages=messages_of(LARGE))
        if answer.status_code != 200:
            require_refused(answer, ("the database",))
            return answered
        answered.append(f"r{number}")
    raise AssertionError("nothing was refused")


def require_refused(answer: httpx.Response, words: tuple[str, ...]) -> None:
    assert answer.status_code == 503, answer.text
    body = answer.json()
    message = body["message"] if "message" in body else body["error"]["message"]
    assert body.get("code", "") or body["error"]["code"] == "StoreFailed"
    for word in words:
        assert word in message
    assert answer.elapsed.total_seconds() < IN_TIME_SECONDS


def test_a_slow_disk_makes_calls_wait_and_none_fail(
    session: Session, file: Path, upstream: ScriptedUpstream
) -> None:
    upstream.reset()
    rollouts = [f"r{number}" for number in range(8)]
    with ThreadPoolExecutor(len(rollouts)) as programs:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answers = [programs.submit(session.call, rollout_id) for rollout_id in rollouts]
        assert upstream.arrived.wait(10)
        other.execute("ROLLBACK")
        other.close()
        assert [answer.result().status_code for answer in answers] == [200] * len(rollouts)
    assert session.counted() == Counted(rollouts=9, calls=9, rewards=1)


class TestAFileThatIsGone:
    def test_is_told_and_nothing_is_acknowledged_that_nobody_would_find(
        self, session: Session, file: Path
    ) -> None:
        away = file.with_name("away.db")
        file.rename(away)
        for answer in (session.call("r1"), session.reward("first"), session.reward("other")):
            require_refused(answer, ("is not the file any more", "put it back"))
        assert not file.exists()
        away.rename(file)
        session.goes_on()

    def test_is_told_also_when_another_one_is_in_its_place(
        self, session: Session, file: Path, template_file: Path
    ) -> None:
        away = file.with_name("away.db")
        file.rename(away)
        shutil.copy(template_file, file)
        require_refused(session.reward("first"), ("deleted, moved or replaced",))
        file.unlink()
        away.rename(file)
        session.goes_on()
