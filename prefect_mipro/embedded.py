"""The embedded backend: `python -m prefect_mipro.server` as a child process, for as long as needed.

The child listens on a free loopback port, asks for a key that only this process knows, and ends
with this process however that ends: its standard input is a pipe that the kernel closes for us.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Self

import httpx
from pydantic import SecretStr

from prefect_mipro.errors import BackendFailed, Conflict, MiproError

LARGEST_LOG_BYTES = 5_000_000
TAIL_LINES = 20
# What the server says when it finds its SQLite file in use.
TAKEN = "another server has the database"

_running: dict[str, EmbeddedBackend] = {}


def running_backend(backend_url: str) -> EmbeddedBackend | None:
    """The embedded backend that this process runs at that URL."""
    return _running.get(backend_url)


def default_folder() -> Path:
    """Where embedded sessions are kept between runs: `prefect-mipro` in the user's data folder."""
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "prefect-mipro"


def default_database_url() -> str:
    """`MIPRO_DATABASE_URL`, else a file in the default folder: a later run resumes its sessions."""
    return os.environ.get("MIPRO_DATABASE_URL") or f"sqlite:///{default_folder() / 'mipro.db'}"


class EmbeddedBackend:
    """A backend for the length of a `with` block.

    `environment` adds to the child's environment, for example `MIPRO_SERVER_UPSTREAM_URL`. The key
    is `MIPRO_API_KEY` where that is set, so that processes started by this one can send it too;
    else it is made at random. A start that fails raises BackendFailed with the end of the log, or
    Conflict while another process has the database.
    """

    def __init__(
        self,
        *,
        database_url: str | None = None,
        log_path: Path | None = None,
        environment: Mapping[str, str] | None = None,
        start_timeout_seconds: float = 120.0,
        stop_timeout_seconds: float = 10.0,
    ) -> None:
        self.database_url = database_url or default_database_url()
        self.log_path = log_path or default_folder() / "server.log"
        self.api_key = SecretStr(os.environ.get("MIPRO_API_KEY") or secrets.token_hex(32))
        self._environment = dict(environment or {})
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._log_start = 0
        self._url = ""

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>` while it runs, else empty."""
        return self._url

    @property
    def process_id(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        error_class: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the child and wait until it answers."""
        if self._process:
            raise BackendFailed(f"the embedded backend runs already, at {self._url}")
        deadline = time.monotonic() + self._start_timeout_seconds
        try:
            process = self._process = self._spawn()
        except OSError as error:
            raise BackendFailed(
                f"cannot start the embedded backend: {error}; its folder must be writable, "
                "set XDG_DATA_HOME or MIPRO_DATABASE_URL to choose another"
            ) from error
        try:
            url = self._announced_url(process, deadline)
            self._wait_until_healthy(process, url, deadline)
        except BaseException:
            self.stop()
            raise
        self._url = url
        _running[url] = self

    def stop(self) -> None:
        """End the child: first by closing its input, then by signals. Safe to call again."""
        process, self._process = self._process, None
        _running.pop(self._url, None)
        self._url = ""
        if process is None:
            return
        try:
            _close(process.stdin)
            if not _ended(process, self._stop_timeout_seconds):
                process.terminate()
                _ended(process, self._stop_timeout_seconds)
        finally:
            # Also reached by a second Ctrl-C while waiting.
            process.kill()
            process.wait()
            if self._reader:
                self._reader.join()
            _close(process.stdout)

    def _spawn(self) -> subprocess.Popen[str]:
        for folder in {self.log_path.parent, *_sqlite_folder(self.database_url)}:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _open_log(self.log_path) as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "prefect_mipro.server"),
                    *("--host", "127.0.0.1", "--port", "0", "--stop-with-stdin"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # The terminal's Ctrl-C goes to this process only: rewards on their way still land.
                start_new_session=True,
                # By environment: a command line is public on the machine, and a database URL may
                # hold a password.
                env={
                    **os.environ,
                    **self._environment,
                    "MIPRO_SERVER_API_KEYS": self.api_key.get_secret_value(),
                    "MIPRO_SERVER_DATABASE_URL": self.database_url,
                },
            )

    def _announced_url(self, process: subprocess.Popen[str], deadline: float) -> str:
        """The first line the child prints that is a URL."""
        lines: SimpleQueue[str] = SimpleQueue()
        self._reader = threading.Thread(
            target=_drain, args=(process.stdout, lines), name="mipro-backend-output", daemon=True
        )
        self._reader.start()
        while True:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise self._failure("did not announce its URL in time") from None
            if not line:
                process.wait()
                raise self._failure(f"ended with exit code {process.returncode}")
            url = next((word for word in line.split() if word.startswith("http://")), None)
            if url:
                return url.rstrip("/")

    def _wait_until_healthy(
        self, process: subprocess.Popen[str], url: str, deadline: float
    ) -> None:
        # Proxy settings of the environment do not apply to a child on the loopback interface.
        with httpx.Client(verify=False, trust_env=False, timeout=5.0) as http:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise self._failure(f"ended with exit code {process.returncode}")
                with suppress(httpx.TransportError):
                    if http.get(f"{url}/health").is_success:
                        return
                time.sleep(0.05)
        raise self._failure("did not become healthy in time")

    def _failure(self, what: str) -> MiproError:
        tail = self._log_tail()
        if TAKEN in tail:
            (folder,) = _sqlite_folder(self.database_url)
            return Conflict(
                f"another run or server has the database in {folder} open, and SQLite serves one; "
                "wait until it ends, or start a backend for both (prefect-mipro serve) and set "
                "MIPRO_BACKEND_URL"
            )
        hint = (
            '; install its parts with: pip install "prefect-mipro[embedded]"'
            if "ModuleNotFoundError" in tail
            else ""
        )
        return BackendFailed(
            f"the embedded backend {what}{hint}. The end of its log {self.log_path}:\n{tail}"
        )

    def _log_tail(self) -> str:
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-TAIL_LINES:]) or "(empty)"


def _open_log(path: Path) -> IO[bytes]:
    """Open it for appending, readable by the user only; one that grew too long starts anew."""
    too_long = path.exists() and path.stat().st_size > LARGEST_LOG_BYTES
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if too_long else 0)
    log = os.fdopen(os.open(path, flags, 0o600), "ab")
    log.seek(0, os.SEEK_END)
    return log


def _sqlite_folder(database_url: str) -> tuple[Path, ...]:
    """The folder of a SQLite file; none for any other database."""
    scheme, _, path = database_url.partition(":///")
    return (Path(path).parent,) if scheme.startswith("sqlite") and path else ()


def _drain(output: IO[str], lines: SimpleQueue[str]) -> None:
    """Pass on every line, then an empty one: a pipe nobody reads would block the child."""
    for line in output:
        lines.put(line)
    lines.put("")


def _ended(process: subprocess.Popen[str], timeout_seconds: float) -> bool:
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _close(stream: IO[str] | None) -> None:
    if stream:
        with suppress(BrokenPipeError):
            stream.close()
