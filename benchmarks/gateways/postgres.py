"""A PostgreSQL server of the benchmark's own: made for the run, on a free port, gone with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gateways.processes import NotStarted, child, free_port
from benchmarks.gateways.systems import NotInstalled, Site

# PostgreSQL does not run as root.
USER_FOR_ROOT = "postgres"
NAME = "benchmark"


@dataclass(frozen=True)
class Database:
    """A running server with one empty database."""

    url: str
    process_id: int
    programs: Path

    def run(self, sql: str) -> None:
        """Run these statements. Raises NotStarted."""
        self._psql("-v", "ON_ERROR_STOP=1", "-f", "-", told=sql)

    def number(self, query: str) -> int:
        """The one number that a query returns."""
        return int(self._psql("-A", "-t", "-c", query))

    def accepts(self) -> bool:
        """Whether it takes statements by now."""
        command = [str(self.programs / "pg_isready"), "-q", "-d", self.url]
        return subprocess.run(command, check=False).returncode == 0

    def _psql(self, *options: str, told: str = "") -> str:
        command = [str(self.programs / "psql"), self.url, "-q", *options]
        done = subprocess.run(command, input=told, text=True, check=False, capture_output=True)
        if done.returncode:
            raise NotStarted(f"psql: {done.stderr[:1_000]}")
        return done.stdout


@contextmanager
def postgres(site: Site) -> Iterator[Database]:
    """The server, for the length of a `with` block. Raises NotInstalled.

    All settings are its defaults but one: a commit does not wait for the disk, as our server's does
    not either.
    """
    programs = _programs()
    user = USER_FOR_ROOT if os.geteuid() == 0 else None
    folder = site.folder / "postgres"
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)
    with child(
        [programs / "initdb", "-D", folder, "-A", "trust", "-U", NAME, "-E", "UTF8"],
        log=site.log("initdb"),
        user=user,
        cwd=folder,
    ) as made:
        made.wait()
    port = free_port()
    settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "synchronous_commit=off")
    command: list[str | Path] = [programs / "postgres", "-D", folder, "-p", str(port)]
    for setting in settings:
        command += ["-c", setting]
    with child(
        command,
        log=site.log("postgres"),
        user=user,
        cwd=folder,
        stop_with=signal.SIGINT,
    ) as server:
        address = f"postgres://{NAME}@127.0.0.1:{port}"
        first = Database(f"{address}/postgres", server.process_id, programs)
        server.wait_until(first.accepts, "accepts no connections")
        first.run(f"CREATE DATABASE {NAME}")
        yield replace(first, url=f"{address}/{NAME}")


def _programs() -> Path:
    """The folder of all of them, which is often not on the path. Raises NotInstalled."""
    on_path = shutil.which("postgres")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for place in places:
        if all((place / program).exists() for program in ("initdb", "postgres", "psql")):
            return place
    raise NotInstalled("it needs the programs of PostgreSQL; apt install postgresql")
