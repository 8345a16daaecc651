"""Run the server: `python -m prefect_mipro.server`. The only place that reads the settings."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn

from prefect_mipro.errors import InputInvalid, StoreFailed
from prefect_mipro.models.keys import Key
from prefect_mipro.server.connections import LOOK_SECONDS, Connection, Stragglers
from prefect_mipro.server.logs import log_to_stderr
from prefect_mipro.server.settings import ENVIRONMENT_PREFIX, ServerSettings
from prefect_mipro.server.store.files import exposed, sqlite_file
from prefect_mipro.transport import SERVER_IDLE_SECONDS, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

PROGRAM = "python -m prefect_mipro.server"
BACKLOG = 2_048
# uvloop accepts one connection of a socket in a turn of its loop, and under a flood turns are long.
ACCEPTED_IN_A_TURN = 32

logger = logging.getLogger("prefect_mipro.server")


def main(arguments: Sequence[str] | None = None, *, program: str = PROGRAM) -> int:
    """Serve until told to stop; the exit code. Exits with 2 when the settings are refused."""
    settings = ServerSettings.read(arguments, program=program)
    log_to_stderr(settings.log_level, settings.log_format)
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as error:
        return _fail(program, _why_not_listening(settings, error))
    with listener:
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(_serve(settings, listener))
        except StoreFailed as error:
            return _fail(program, error.message)
        except InputInvalid as error:
            return _fail(program, error.message, code=2)
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Bound before anything else starts: a port in use is known at once, a free one by number."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)


def copies(listener: socket.socket) -> list[socket.socket]:
    """The same listening socket under further numbers: each takes its turn to accept."""
    return [listener.dup() for _ in range(ACCEPTED_IN_A_TURN - 1)]


def _why_not_listening(settings: ServerSettings, error: OSError) -> str:
    place = f"port {settings.port} of {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{place} is in use; choose another with --port, or a free one with --port 0"
    if error.errno == errno.EACCES:
        return f"{place} needs more rights than this user has; choose a --port above 1023"
    return f"cannot listen on {place}: {error.strerror}; choose another --host"


def _fail(program: str, message: str, *, code: int = 1) -> int:
    sys.stderr.write(f"{program}: {message}\n")
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """That of uvloop where it is installed; `None` means Python's own."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(settings: ServerSettings, listener: socket.socket) -> None:
    """Open the store, serve until told to stop, close it again.

    Raises StoreFailed; InputInvalid where a key is missing.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.stop_with_stdin:
        _stop_with_stdin(stop)
    # These take a second: first the settings must be right, and the port ours.
    from prefect_mipro.server.app import create_app
    from prefect_mipro.server.store.engine import open_store
    from prefect_mipro.server.telemetry.exporters import tracing_of

    store = await open_store(settings.database_url)
    tracing = tracing_of(os.environ)
    try:
        keys = await store.keys()
        _require_key_beyond_loopback(settings, keys)
        server = _Server(settings, create_app(settings, store=store, tracing=tracing), keys)
        stopping = asyncio.create_task(server.stop_after(stop))
        await server.serve(sockets=[listener, *copies(listener)])
        stopping.cancel()
    finally:
        await store.close()
        await asyncio.to_thread(tracing.close)
    logger.info("server stopped")


def _require_key_beyond_loopback(settings: ServerSettings, stored: Sequence[Key]) -> None:
    """Raise InputInvalid where other machines could call, and there is no key to tell them by."""
    if not (settings.api_keys or is_loopback(settings.host) or _in_use(stored)):
        raise InputInvalid(
            f"--host {settings.host} opens the server to other machines, so it needs keys: "
            f"set {ENVIRONMENT_PREFIX}API_KEYS to a secret of your own "
            "(openssl rand -hex 32 makes one), make one with prefect-mipro keys create, "
            "or keep --host 127.0.0.1"
        )


def _in_use(keys: Sequence[Key]) -> int:
    return sum(key.revoked_at is None for key in keys)


class _Server(uvicorn.Server):
    """Uvicorn that says where it listens, and leaves the signals to us.

    Its own way is to raise them again when it has stopped, before the store could be closed.
    """

    def __init__(self, settings: ServerSettings, app: FastAPI, stored_keys: Sequence[Key]) -> None:
        config = uvicorn.Config(
            app,
            access_log=False,
            http=Connection,
            lifespan="on",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=settings.longest_stop_seconds,
            timeout_keep_alive=SERVER_IDLE_SECONDS,
            ws="none",
        )
        super().__init__(config)
        self._settings = settings
        self._stored_keys = stored_keys
        self._stragglers = Stragglers()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            sys.stdout.write(f"{self._settings.own_url}\n")
            sys.stdout.flush()
            _log_start(self._settings, self._stored_keys)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second Uvicorn asks whether to stop."""
        if counter % (10 * LOOK_SECONDS) == 0:
            now = asyncio.get_running_loop().time()
            self._stragglers.look(self.server_state.connections, now=now)
        return await super().on_tick(counter)

    async def stop_after(self, stop: asyncio.Event) -> None:
        """Then calls under way may finish, for a while, and no more are taken."""
        await stop.wait()
        self.should_exit = True


def _log_start(settings: ServerSettings, stored_keys: Sequence[Key]) -> None:
    logger.info(
        "server started",
        extra={
            "url": settings.own_url,
            "database": _without_password(settings.database_url),
            "default_upstream": _without_password(settings.upstream_url or "none"),
            "providers": ",".join(settings.providers) or "none",
            "api_keys": len(settings.api_keys) + _in_use(stored_keys),
        },
    )
    database = sqlite_file(settings.database_url)
    for file in exposed(database) if database else ():
        logger.warning(
            "other users of this machine may read the database; set its mode to 600",
            extra={"file": str(file.path), "mode": f"{file.mode:03o}"},
        )
    if stored_keys and not settings.api_keys and not _in_use(stored_keys):
        logger.warning("all keys are revoked: nobody may call; prefect-mipro keys create makes one")
    if not settings.api_keys and not stored_keys:
        logger.info(
            "no keys are set: programs on this machine may call; no other machine, no web page",
            extra={"setting": f"{ENVIRONMENT_PREFIX}API_KEYS"},
        )
    if settings.public_url is None and not is_loopback(settings.host):
        logger.warning(
            "session URLs lead to this machine only; say under which URL callers reach it",
            extra={"setting": f"{ENVIRONMENT_PREFIX}PUBLIC_URL", "url": settings.own_url},
        )


def _without_password(url: str) -> str:
    return re.sub("//[^/]*@", "//", url).partition("?")[0]


def _stop_with_stdin(stop: asyncio.Event) -> None:
    """Set `stop` at the end of standard input, which comes when the parent process ends."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        # Not sys.stdin: a thread that holds its lock keeps the interpreter from ending.
        with suppress(OSError):
            while os.read(0, 4_096):
                pass
        with suppress(RuntimeError):  # the loop has ended before the input did
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait, name="standard-input", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
