"""What tests of several folders share: a Prefect server, and databases of both kinds."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.schema import VERSION_TABLE, metadata
from tests.postgres import Postgres

# One authority, which signs nothing, for the machine's hundred and more: each HTTP client and each
# process reads all it trusts, which takes longer than most tests. Prefect does at its import.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))


# The same examples in every run, and no limit that a busy machine would miss.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")

# Garbage is looked for less often: there are a million objects of libraries to look through.
gc.set_threshold(10_000, 20, 20)

# What takes minutes by nature: workers, schedules and runners of Prefect, kills, several servers,
# the real model, builds. `make test-all` runs these as well. The longest begin first, so
# that no worker waits for the other at the end.
SLOW = (
    "tests/plugin/test_deployments.py",
    "tests/plugin/test_promotion_flow.py",
    "tests/plugin/test_runners.py",
    "tests/plugin/test_embedded.py",
    "tests/server/upstream/test_embedded.py",
    "tests/end_to_end/test_flow_crashes.py",
    "tests/plugin/test_reference_flow.py",
    "tests/plugin/test_nightly_flow.py",
    "tests/end_to_end/test_crashes.py",
    "tests/plugin/test_turns.py",
    "tests/plugin/test_schedules.py",
    "tests/end_to_end/faults/",
    "tests/docs/test_site.py",
    "tests/plugin/test_interrupts.py",
    "tests/end_to_end/test_planted_secrets.py",
    "tests/end_to_end/test_shared_database.py",
    "tests/cli/test_doctor.py",
    "tests/test_packaging.py",
)

# Of the others these take longest. What needs Prefect's server begins even before them.
LONGEST = ("tests/server/test_main.py", "tests/server/routes/test_forgetting.py")

# A worker's first test that needs Prefect's server waits for its start, even on a busy machine.
SECONDS_WITH_PREFECT = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark, group and order the tests. The tests of a group run on one worker.

    All that are not slow share one Prefect server, and are a group; otherwise a file is one.
    """
    first = (*LONGEST, *SLOW)
    places: dict[pytest.Item, int] = {}
    for item in items:
        name, slow = item.nodeid, item.get_closest_marker("slow") is not None
        places[item] = next(
            (k for k, each in enumerate(first) if name.startswith(each)), len(first)
        )
        with_prefect = "prefect_server" in getattr(item, "fixturenames", ())
        group = name.partition("::")[0]
        if name.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
        elif with_prefect and not slow:
            places[item], group = -1, "prefect"
        if with_prefect and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(SECONDS_WITH_PREFECT))
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=places.__getitem__)


def pytest_collection_finish() -> None:
    """What the imports have made stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Prefect server with a database of its own. It takes 10 to 40 s to start."""
    # Here, because it takes seconds that most tests can do without.
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # Prefect opens a database of such a name once only. The many connections that it
            # opens otherwise wait up to a minute for each other's locks on SQLite.
            folder = tmp_path_factory.mktemp(":memory:", numbered=False)
            patch.setattr(tempfile, "tempdir", str(folder))
            stack.enter_context(prefect_test_harness(server_startup_timeout=240))
        # A flow run waits for its heart to beat a last time: up to a second each.
        stack.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))
        yield


@pytest.fixture(scope="session")
def template_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema and nothing in it, made once."""
    file = tmp_path_factory.mktemp("template") / "mipro.db"

    async def make() -> None:
        await (await open_store(f"sqlite+aiosqlite:///{file}")).close()

    asyncio.run(make())
    return file


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Started for the first test that asks, in each worker; its first database has the schema."""

    async def migrate(url: str) -> None:
        await (await open_store(url)).close()

    with Postgres() as postgres:
        asyncio.run(migrate(postgres.url()))
        yield postgres


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database with the newest schema and nothing in it."""
    yield postgres.url()
    # Rows, not files: a new database for each test would take fifty times as long.
    tables = [table.name for table in reversed(metadata.sorted_tables)]
    postgres.run(
        *(f"DELETE FROM {name}" for name in tables if name != VERSION_TABLE),
        "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'",
    )


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database without even a schema."""
    with postgres.new_database() as url:
        yield url
