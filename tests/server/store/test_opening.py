"""Opening a database: what is refused, in which words, and what survives."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro.errors import Conflict, SessionNotFound, StoreFailed
from prefect_mipro.models.sessions import SessionState
from prefect_mipro.server.store.engine import open_beside_server, open_store
from prefect_mipro.server.store.files import exposed, sqlite_file
from prefect_mipro.server.store.store import Store
from tests.server.store.records import (
    BASELINE,
    at,
    candidate,
    create,
    event_types,
    instruction,
    pin,
    reward,
    rollout,
    session,
)

REPOSITORY = Path(__file__).parents[3]

SERVER = """
import asyncio, sys
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.files import exposed, sqlite_file
from tests.server.store.records import create, pin, rollout

async def serve():
    store = await open_store(sys.argv[1])
    await create(store)
    await pin(store, rollout())
    print("serving", flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def url_of(file: Path, query: str = "") -> str:
    return f"sqlite+aiosqlite:///{file}{query}"


@pytest.fixture(params=["file", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        served: str = request.getfixturevalue("empty_postgres_url")
        return served
    return url_of(tmp_path / "empty.db")


async def run(url: str, statement: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        await connection.execute(text(statement))


def modes_in(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


def set_mode(file: Path, mode: int) -> None:
    file.chmod(mode)


async def test_a_store_opened_again_has_everything(migrated_file: Path) -> None:
    first = await open_store(url_of(migrated_file))
    await create(first)
    await pin(first, rollout())
    await first.add_reward(reward())
    written = await first.session("s1")
    await first.close()
    second = await open_store(url_of(migrated_file))
    assert await second.session("s1") == written
    assert (await second.candidate(BASELINE)).statistics.rewards == 1
    await second.close()


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
async def test_all_files_of_a_new_database_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await open_store(url_of(tmp_path / "mipro.db"))
        await create(store)
        made = modes_in(tmp_path)
        await store.close()
    finally:
        os.umask(before)
    names = ("mipro.db", "mipro.db-wal", "mipro.db-shm", "mipro.db.lock")
    assert made == dict.fromkeys(names, 0o600)


@pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
async def test_a_file_with_a_wider_mode_keeps_it_and_is_named(migrated_file: Path) -> None:
    set_mode(migrated_file, 0o640)
    store = await open_store(url_of(migrated_file))
    await create(store)
    found = {each.path.name: each.mode for each in exposed(migrated_file)}
    await store.close()
    assert found == dict.fromkeys(("mipro.db", "mipro.db-wal", "mipro.db-shm"), 0o640)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///mipro.db", "mipro.db"),
        ("sqlite+aiosqlite:////var/mipro.db?timeout=1", "/var/mipro.db"),
        ("sqlite:///file:/var/mipro.db?mode=ro&uri=true", "/var/mipro.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://me@host/db", None),
    ],
)
def test_a_url_names_a_file_or_none(url: str, file: str | None) -> None:
    assert sqlite_file(url) == (Path(file) if file else None)


async def test_a_killed_server_keeps_what_was_committed_and_lets_go_of_the_file(
    migrated_file: Path,
) -> None:
    url = url_of(migrated_file)
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, url, stdout=asyncio.subprocess.PIPE, cwd=REPOSITORY
    )
    try:
        assert server.stdout is not None
        assert await server.stdout.readline() == b"serving\n"
        with pytest.raises(StoreFailed, match="another server"):
            await open_store(url)
    finally:
        server.kill()
        await server.wait()
    store = await open_store(url)
    assert await store.rollout("s1", "r1") == rollout(position=1)
    await store.close()


async def test_a_second_server_is_refused_until_the_first_has_closed(
    migrated_file: Path, tmp_path: Path
) -> None:
    first = await open_store(url_of(migrated_file))
    by_another_name = tmp_path / "link.db"
    by_another_name.symlink_to(migrated_file)
    for file in (migrated_file, by_another_name):
        with pytest.raises(StoreFailed, match=r"SQLite serves one.*postgresql\+asyncpg"):
            await open_store(url_of(file))
    await create(first)
    await first.close()
    second = await open_store(url_of(by_another_name))
    assert (await second.session("s1")).session_id == "s1"
    await second.close()


async def test_other_programs_may_read_beside_the_server(
    file_store: Store, migrated_file: Path
) -> None:
    await create(file_store)
    reader = sqlite3.connect(migrated_file)
    assert reader.execute("SELECT session_id FROM mipro_sessions").fetchall() == [("s1",)]
    reader.close()


async def test_stores_in_memory_are_apart_and_serve_many_at_once() -> None:
    store, other = [await open_store("sqlite+aiosqlite://") for _ in range(2)]
    await create(store)
    await asyncio.gather(
        *(pin(store, rollout(f"r{n}")) for n in range(20)),
        *(store.rollout("s1", f"r{n}") for n in range(20)),
    )
    assert (await store.candidate(BASELINE)).statistics.rollouts == 20
    assert await event_types(store) == ["session.created"]
    with pytest.raises(SessionNotFound):
        await other.session("s1")
    await store.close()
    await other.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite+aiosqlite:///{folder}/none/mipro.db", "none of the database mipro.db is missing"),
        ("sqlite+aiosqlite:///{folder}", "is a folder"),
        ("sqlite+aiosqlite:///{folder}/text.db", "file of another kind"),
        ("sqlite+aiosqlite:///file:{folder}/read.db?mode=ro&uri=true", "allow this user to write"),
        ("sqlite:///{folder}/mipro.db", "unknown driver 'sqlite'.*sqlite\\+aiosqlite:///path"),
        ("mysql+asyncmy://me@host/db", "unknown driver 'mysql\\+asyncmy'"),
        ("mipro.db", "write sqlite\\+aiosqlite:///path"),
        ("postgresql+asyncpg://me@host:port/db", "cannot be read"),
        ("", "cannot be read"),
    ],
)
async def test_a_database_that_cannot_be_opened_is_refused_with_the_way_out(
    tmp_path: Path, url: str, words: str
) -> None:
    (tmp_path / "text.db").write_text("These are notes, not a database. " * 99)
    sqlite3.connect(tmp_path / "read.db").close()
    with pytest.raises(StoreFailed, match=words):
        await open_store(url.format(folder=tmp_path))


async def test_a_refused_file_is_free_again(tmp_path: Path) -> None:
    file = tmp_path / "mipro.db"
    file.write_text("These are notes, not a database. " * 99)
    with pytest.raises(StoreFailed):
        await open_store(url_of(file))
    file.unlink()
    await (await open_store(url_of(file))).close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://me:hunter2@127.0.0.1:1/db",
        "postgresql+asyncpg://127.0.0.1:1/db?user=me&password=hunter2",
        "postgresql+nothing://me:hunter2@127.0.0.1:1/db",
        "postgresql+asyncpg://me:hunter2@127.0.0.1:none/db",
    ],
)
async def test_no_error_shows_the_password(url: str) -> None:
    with pytest.raises(StoreFailed) as raised:
        await open_store(url)
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__


async def test_errors_do_not_show_what_was_stored(file_store: Store) -> None:
    await create(file_store)
    secretive = session("s2", proxy_secret="hunter2")
    with pytest.raises(Conflict) as raised:
        await file_store.create_session(
            secretive, [instruction()], candidate(candidate_id=BASELINE, label="hunter2")
        )
    error: BaseException | None = raised.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


async def test_a_database_of_a_newer_release_is_left_alone(migrated_file: Path) -> None:
    newer = sqlite3.connect(migrated_file)
    newer.execute("UPDATE mipro_schema SET version_num = 'v99'")
    newer.commit()
    newer.close()
    with pytest.raises(StoreFailed, match=r"newer release.*v99"):
        await open_store(url_of(migrated_file))


async def test_a_database_of_a_development_version_is_refused_and_left_alone(
    empty_url: str,
) -> None:
    await (await open_store(empty_url)).close()
    for old in ("0012", "v1"):
        await run(empty_url, f"UPDATE mipro_schema SET version_num = '{old}'")
        for opened in (open_store, open_beside_server):
            with pytest.raises(StoreFailed, match=rf"{old}.*sessions export.*sessions import"):
                await opened(empty_url)
    await run(empty_url, "UPDATE mipro_schema SET version_num = 'v2'")
    await (await open_store(empty_url)).close()


async def test_a_database_that_another_program_holds_fails_in_time(migrated_file: Path) -> None:
    store = await open_store(url_of(migrated_file, "?timeout=0.01"))
    await create(store)
    other = sqlite3.connect(migrated_file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFailed, match="another program writes"):
        await pin(store, rollout())
    other.execute("ROLLBACK")
    assert await store.rollout("s1", "r1") is None
    assert await pin(store, rollout()) == rollout(position=1)
    other.close()
    await store.close()


async def test_a_transaction_that_fails_half_way_leaves_nothing(
    file_store: Store, migrated_file: Path
) -> None:
    await create(file_store)
    await pin(file_store, rollout())
    before = await file_store.session("s1"), await file_store.candidate(BASELINE)
    other = sqlite3.connect(migrated_file)
    other.execute("ALTER TABLE mipro_events RENAME TO away")
    with pytest.raises(StoreFailed, match="mipro_events"):
        await file_store.add_reward(reward())
    other.execute("ALTER TABLE away RENAME TO mipro_events")
    other.close()
    assert (await file_store.session("s1"), await file_store.candidate(BASELINE)) == before
    assert not (await file_store.add_reward(reward())).duplicate


async def test_a_cancelled_caller_leaves_all_or_nothing(file_store: Store) -> None:
    await create(file_store)
    pins = [asyncio.create_task(pin(file_store, rollout(f"r{n}"))) for n in range(50)]
    await asyncio.wait([pins[0]])
    for task in pins:
        task.cancel()
    await asyncio.gather(*pins, return_exceptions=True)
    # The queue is drained in order, so this write is the last.
    await file_store.set_state("s1", SessionState.PAUSED, at=at(1))
    found = [await file_store.rollout("s1", f"r{n}") for n in range(50)]
    pinned = sum(rollout is not None for rollout in found)
    assert pinned >= 1
    assert (await file_store.candidate(BASELINE)).statistics.rollouts == pinned
    assert (await file_store.session("s1")).serving_rollouts == pinned


async def test_a_closed_store_says_so(migrated_file: Path) -> None:
    store = await open_store(url_of(migrated_file))
    await store.close()
    with pytest.raises(StoreFailed, match="closed"):
        await store.session("s1")
    await store.close()
