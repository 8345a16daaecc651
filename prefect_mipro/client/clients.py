"""Client and AsyncClient: two drivers of the same exchange, with a method for each operation."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache, wraps
from types import TracebackType
from typing import Any, Generic, NoReturn, ParamSpec, Self, TypeVar, overload

import httpx
from pydantic import SecretStr

from prefect_mipro.client import environment, operations
from prefect_mipro.client.exchange import Reply, Send, Wait, exchange
from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import BackendUnreachable, InputInvalid
from prefect_mipro.transport import CLIENT_IDLE_SECONDS

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 30.0

# Enough for operations, which take milliseconds; calls of a model take seconds and want more.
MOST_CONNECTIONS = 20


class _Method(Generic[P, T]):
    """One operation as a method of both clients."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self.__doc__ = operation.__doc__
        self._operation = operation

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._operation)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._operation(*args, **kwargs))

        return method


class _Connection:
    """What both clients are made of: where the backend is, and the key to it.

    Each method takes what the function of its name in `operations` takes.
    """

    create_session = _Method(operations.create_session)
    session_status = _Method(operations.session_status)
    session_urls = _Method(operations.session_urls)
    rotate_url = _Method(operations.rotate_url)
    lease = _Method(operations.lease)
    post_trace = _Method(operations.post_trace)
    reward = _Method(operations.reward)
    change_state = _Method(operations.change_state)
    delete_session = _Method(operations.delete_session)
    forget = _Method(operations.forget)
    retire = _Method(operations.retire)
    retire_lever = _Method(operations.retire_lever)
    reviews = _Method(operations.reviews)
    review = _Method(operations.review)
    promote = _Method(operations.promote)
    begin_epoch = _Method(operations.begin_epoch)
    sessions = _Method(operations.sessions)
    events = _Method(operations.events)
    examples = _Method(operations.examples)
    rollouts = _Method(operations.rollouts)
    traces = _Method(operations.traces)
    candidates = _Method(operations.candidates)
    candidate = _Method(operations.candidate)
    add_candidate = _Method(operations.add_candidate)
    seed_evals = _Method(operations.seed_evals)
    import_lines = _Method(operations.import_lines)
    health = _Method(operations.health)
    ready = _Method(operations.ready)

    def __init__(
        self,
        backend_url: str,
        api_key: str | SecretStr | None,
        timeout_seconds: float,
        most_connections: int,
        jitter: Callable[[], float],
    ) -> None:
        self.backend_url = backend_root(backend_url)
        self.timeout_seconds = usable_timeout(timeout_seconds)
        self.most_connections = most_connections
        self._key = usable_key(api_key)
        self._jitter = jitter

    def _settings(self, headers: Mapping[str, str] | None) -> dict[str, Any]:
        key = self._key.get_secret_value()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        return {
            "headers": {"User-Agent": "prefect-mipro", **(headers or {}), **authorization},
            # Waiting for one of our own connections says nothing about the backend.
            "timeout": httpx.Timeout(self.timeout_seconds, pool=None),
            "limits": httpx.Limits(
                max_connections=self.most_connections,
                max_keepalive_connections=self.most_connections,
                keepalive_expiry=CLIENT_IDLE_SECONDS,
            ),
            "verify": _tls(),
            "follow_redirects": False,
            # A proxy of the environment cannot reach this machine's own loopback interface.
            "trust_env": not environment.is_loopback(self.backend_url),
        }

    def _request(self, send: Send) -> dict[str, Any]:
        """The request as httpx takes it: it parses a URL twice where it has to merge it first."""
        return {
            "method": send.method,
            "url": httpx.URL(f"{self.backend_url}{send.path}"),
            "params": send.query or None,
            "headers": send.headers,
            "content": send.content,
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend_url!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds open connections and a key, so it cannot be pickled or "
            "copied; send its backend_url, and make a new one where it is used"
        )


class Client(_Connection):
    """A connection to a backend, for threads. Close it, or use it in a `with` block."""

    def __init__(
        self,
        backend_url: str,
        api_key: str | SecretStr | None = None,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(backend_url, api_key, timeout_seconds, most_connections, jitter)
        self._http = httpx.Client(**self._settings(headers), transport=transport)
        self._sleep = sleep

    def send(self, operation: Operation[T]) -> T:
        """Carry out an operation. Raises what `prefect_mipro.errors` lists."""
        steps = exchange(operation, jitter=self._jitter, key=self._key.get_secret_value())
        reply: Reply | None = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Wait):
                    reply = None
                    self._sleep(step.seconds)
                else:
                    reply = self._reply(step)
        except StopIteration as done:
            value: T = done.value
            return value

    @contextmanager
    def stream(self, operation: Operation[object]) -> Iterator[Iterator[bytes]]:
        """The lines of a long answer as they come. Raises as `send` does, also on the way."""
        with ExitStack() as opened:
            answer = self._opened(operation, opened)
            try:
                yield _lines(answer.iter_bytes())
            except httpx.RequestError as failure:
                raise _cut_off(failure) from None

    def _opened(self, operation: Operation[object], opened: ExitStack) -> httpx.Response:
        """The answer's head, once it is a good one."""
        steps = exchange(operation, jitter=self._jitter, key=self._key.get_secret_value())
        reply: Reply | None = None
        while True:
            step = steps.send(reply)
            if isinstance(step, Wait):
                reply = None
                self._sleep(step.seconds)
                continue
            try:
                answer = opened.enter_context(self._http.stream(**self._request(step)))
                if answer.is_success:
                    return answer
                answer.read()
                reply = answer
            except httpx.RequestError as failure:
                reply = failure

    def _reply(self, send: Send) -> Reply:
        try:
            return self._http.request(**self._request(send))
        except httpx.RequestError as failure:
            return failure

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Connection):
    """A connection to a backend, for one event loop. Close it, or use it in `async with`."""

    def __init__(
        self,
        backend_url: str,
        api_key: str | SecretStr | None = None,
        *,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        most_connections: int = MOST_CONNECTIONS,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(backend_url, api_key, timeout_seconds, most_connections, jitter)
        self._http = httpx.AsyncClient(**self._settings(headers), transport=transport)
        self._sleep = sleep
        # httpx's own queue takes time that grows with the square of its length.
        self._turns = asyncio.Semaphore(most_connections)

    async def send(self, operation: Operation[T]) -> T:
        """Carry out an operation. Raises what `prefect_mipro.errors` lists."""
        steps = exchange(operation, jitter=self._jitter, key=self._key.get_secret_value())
        reply: Reply | None = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Wait):
                    reply = None
                    await self._sleep(step.seconds)
                else:
                    reply = await self._reply(step)
        except StopIteration as done:
            value: T = done.value
            return value

    async def _reply(self, send: Send) -> Reply:
        try:
            async with self._turns:
                return await self._http.request(**self._request(send))
        except httpx.RequestError as failure:
            return failure

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines end with a newline and nothing else: JSON may hold other separators as they are."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _cut_off(failure: httpx.RequestError) -> BackendUnreachable:
    reason = str(failure) or type(failure).__name__
    return BackendUnreachable(
        f"the answer was cut off ({reason}); check the backend, then ask again",
        url=str(failure.request.url),
    )


@lru_cache(maxsize=64)
def backend_root(backend_url: str) -> str:
    """The backend's root: `http://h`, `http://h/`, `http://h/api` and `http://h/api/v1` are one."""
    text = str(backend_url).strip()
    # Not shown: what stands before an @ may be a password.
    if "@" in text:
        raise InputInvalid("backend_url has an @ in it; give the key as api_key instead")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    reachable = url.scheme in ("http", "https") and url.host and (url.port or 1) < 2**16
    if not reachable or url.query or url.fragment:
        raise InputInvalid(
            f"backend_url is {text!r}; give the backend's root, such as http://127.0.0.1:8765"
        )
    path = url.path.rstrip("/").removesuffix("/v1").rstrip("/").removesuffix("/api").rstrip("/")
    return str(url.copy_with(path=path))


def usable_timeout(seconds: float) -> float:
    """`seconds` if one can wait so long. Raises InputInvalid."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InputInvalid(f"the timeout is {seconds!r}; give seconds as a number")
    if not (math.isfinite(seconds) and seconds > 0):
        raise InputInvalid(f"the timeout is {seconds} seconds; give a finite number above 0")
    return float(seconds)


def usable_key(api_key: str | SecretStr | None) -> SecretStr:
    """The key without surrounding space, which files add; empty for none. Raises InputInvalid."""
    text = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key or ""
    text = text.strip()
    if not (text.isascii() and text.isprintable()):
        raise InputInvalid("the key has characters that an HTTP header cannot carry")
    return SecretStr(text)


@cache
def _tls() -> ssl.SSLContext:
    """Reading the certificates takes longer than most requests."""
    return httpx.create_ssl_context()
