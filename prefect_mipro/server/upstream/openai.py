"""Any server that speaks OpenAI's chat completions, reached by its base URL."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr
from yarl import URL

from prefect_mipro.errors import (
    KeyMissing,
    KeyRejected,
    UpstreamFailed,
    UpstreamTimedOut,
    UpstreamUnreachable,
)
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.addresses import environment_proxy
from prefect_mipro.server.upstream.interface import Reply, StreamedUsage, UpstreamCounts
from prefect_mipro.server.upstream.limits import Gate, Limits
from prefect_mipro.server.upstream.patience import (
    REPEATED_STATUSES,
    BackOff,
    Timeouts,
)
from prefect_mipro.server.upstream.quoted_keys import keys_in, without
from prefect_mipro.server.upstream.waits import Watch
from prefect_mipro.transport import retry_after_seconds

CHAT_PATH = "/chat/completions"
CALLER_KEY_HEADER = "x-provider-key"
MOST_CONNECTIONS = 1_000
KEEP_ALIVE_SECONDS = 60.0
DNS_SECONDS = 60
# aiohttp writes a larger body in one piece, and warns, unless it is given as a file.
LARGEST_BODY_IN_ONE_PIECE = 1_000_000
# Of an answer that comes whole, after it was unpacked. A stream may be of any length.
LARGEST_ANSWER_BYTES = 32_000_000
# Names of the provider's account, such as openai-organization and openai-project, stay here.
PASSED_ON = frozenset(
    {
        *("retry-after", "retry-after-ms", "x-should-retry"),
        *("x-request-id", "request-id", "apim-request-id"),
        *("openai-model", "openai-processing-ms", "openai-version"),
    }
)
PASSED_ON_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")
# RFC 9110, section 15. Those below 200 come before an answer, for which aiohttp waits but for 101.
STATUSES = range(200, 600)

CallHeaders = Callable[[], Mapping[str, str]]

logger = logging.getLogger(__name__)


class OpenAIUpstream:
    """One base URL, for example `https://api.openai.com/v1`, with its key and connections.

    With `caller_key_required` each call must bring its own key. `proxied` takes the proxy that the
    environment names (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), except to this machine itself. Names
    of hosts are looked up by the `resolver`, else by the system. `call_headers` is asked for more
    headers at each call.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: SecretStr | None = None,
        caller_key_required: bool = False,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        back_off: BackOff | None = None,
        limits: Limits | None = None,
        proxied: bool = False,
        resolver: AbstractResolver | None = None,
        call_headers: CallHeaders | None = None,
    ) -> None:
        self.url = _chat_url(base_url)
        # What logs and errors show; some servers take their key in the query.
        self.name = base_url.partition("?")[0]
        self.caller_key_required = caller_key_required
        self.timeouts = timeouts or Timeouts()
        self.back_off = back_off or BackOff()
        self.call_headers = call_headers
        self.counts = UpstreamCounts()
        self.gate = Gate(limits or Limits(), self.counts, name=self.name)
        self.watch = Watch(tick_seconds=self.timeouts.tick_seconds)
        self.closed = False
        self._headers = {
            "accept-encoding": "identity",
            "content-type": "application/json",
            **({"authorization": _bearer(api_key)} if api_key else {}),
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        self.keys = keys_in(self._headers)
        self._proxy = environment_proxy(self.url) if proxied else None
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self.name!r})"

    def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AbstractAsyncContextManager[Reply]:
        """Send the body unchanged.

        Entering raises UpstreamUnreachable, UpstreamTimedOut, UpstreamFailed, Overloaded, and
        KeyRejected for a key that is missing or that no header can carry.
        """
        return _Call(self, _payload(body), api_key)

    async def close(self) -> None:
        """Close all connections, for good."""
        self.closed = True
        self.watch.stop()
        if self._session is not None:
            await self._session.close()

    async def unreachable(self, *, longest_seconds: float) -> str:
        """Why no connection is taken there, or by the proxy on the way; empty when one is."""
        place = URL(self._proxy) if self._proxy else self.url
        try:
            async with asyncio.timeout(longest_seconds):
                _, writer = await asyncio.open_connection(place.host, place.port)
        except TimeoutError:
            return f"no connection within {longest_seconds:g} s"
        except socket.gaierror:
            return "no such host"
        except OSError as error:
            # Where it has several addresses, the error has no number of its own.
            return os.strerror(error.errno or errno.ECONNREFUSED)
        writer.close()
        return ""

    async def post(self, payload: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send one request. Raises UpstreamFailed, and what aiohttp raises."""
        data = payload if len(payload) <= LARGEST_BODY_IN_ONE_PIECE else io.BytesIO(payload)
        response = await self._connected().post(
            self.url, data=data, headers=headers, allow_redirects=False
        )
        if 300 <= response.status < 400:
            response.close()
            raise UpstreamFailed(
                f"{self.name} redirects with status {response.status}; "
                "set the provider's base URL to the place it redirects to"
            )
        if response.status not in STATUSES:
            response.close()
            raise UpstreamFailed(
                f"{self.name} answered with status {response.status}, which no answer has"
            )
        return response

    def failure(self, error: Exception, *, answering: bool) -> UpstreamFailed:
        """A failure of aiohttp as an error of ours, which names the server and no key."""
        if self.closed:
            return self.broken_off()
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return UpstreamUnreachable(f"{self.name} does not accept connections in time")
        if isinstance(error, aiohttp.ClientPayloadError) or (
            answering and isinstance(error, aiohttp.ClientConnectionError)
        ):
            return UpstreamUnreachable(f"{self.name} broke off in the middle of its answer")
        if isinstance(error, aiohttp.ClientConnectionError):
            reason = getattr(error, "strerror", None) or type(error).__name__
            return UpstreamUnreachable(f"cannot reach {self.name}: {reason}")
        if isinstance(error, aiohttp.ClientHttpProxyError):
            return UpstreamUnreachable(
                f"the proxy on the way to {self.name} answered {error.status}"
            )
        return UpstreamFailed(
            f"{self.name} answered something that is not HTTP: {type(error).__name__}"
        )

    def broken_off(self) -> UpstreamUnreachable:
        """The failure of a call that was under way when this upstream was closed."""
        return UpstreamUnreachable(f"{self.name} was closed before its answer was complete")

    def _connected(self) -> aiohttp.ClientSession:
        if self.closed:
            raise UpstreamUnreachable(f"{self.name} is closed and takes no more calls")
        # aiohttp asks for a running loop, which the composition root need not have.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=MOST_CONNECTIONS,
                    keepalive_timeout=KEEP_ALIVE_SECONDS,
                    ttl_dns_cache=DNS_SECONDS,
                    # A proxy looks the names up by itself.
                    resolver=None if self._proxy else self._resolver,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                proxy=self._proxy,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=self.timeouts.connect_seconds
                ),
            )
        return self._session


class _Call:
    """One call, from its sending to the end of its answer."""

    def __init__(self, upstream: OpenAIUpstream, payload: bytes, key: SecretStr | None) -> None:
        self.model: str | None = None
        self.usage = StreamedUsage()
        self._upstream = upstream
        self._payload = payload
        self._key = key
        self._wait = upstream.watch.wait()
        self._deadline = 0.0
        self._peeked = b""
        self._rest = self._pieces()

    async def __aenter__(self) -> Self:
        upstream = self._upstream
        headers = self._headers = self._own_headers()
        upstream.counts.calls += 1
        try:
            await upstream.gate.enter()
            try:
                self._response = response = await self._final(headers)
            except BaseException:
                upstream.gate.leave()
                raise
        except BaseException:
            upstream.counts.calls -= 1
            raise
        self.status = response.status
        content_type = response.headers.get("content-type", "")
        self.content_type = self._without_keys(content_type) if _can_be_sent(content_type) else ""
        self.retry_after_seconds = _asked_wait_seconds(response)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._response.close()
        self._upstream.gate.leave()
        self._upstream.counts.calls -= 1

    @property
    def headers(self) -> Mapping[str, str]:
        named = ((name.lower(), value) for name, value in self._response.headers.items())
        return {
            name: self._without_keys(value)
            for name, value in named
            if (name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)) and _can_be_sent(value)
        }

    def _without_keys(self, header: str) -> str:
        """The value of a header as callers may see it."""
        return without(self.keys, header.encode()).decode()

    @property
    def keys(self) -> Collection[bytes]:
        return *self._upstream.keys, *keys_in(self._headers)

    async def peek(self, enough: Callable[[bytes], bool]) -> bytes:
        while not enough(self._peeked):
            piece = await anext(self._rest, b"")
            if not piece:
                break
            self._peeked += piece
        return self._peeked

    async def read(self) -> bytes:
        # Into answers, traces and logs: some servers quote the key that they refuse.
        return without(self.keys, await self._read())

    async def _read(self) -> bytes:
        # Short answers come with the head.
        if self._response.content.is_eof() and not self._peeked:
            return await self._response.read()
        pieces: list[bytes] = []
        left_bytes = LARGEST_ANSWER_BYTES
        async for chunk in self.chunks():
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise UpstreamFailed(
                    f"{self._upstream.name} answered with more than "
                    f"{LARGEST_ANSWER_BYTES // 1_000_000} MB; ask for less, or for a stream"
                )
            pieces.append(chunk)
        return b"".join(pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        if self._peeked:
            yield self._peeked
        async for piece in self._rest:
            yield piece

    async def _pieces(self) -> AsyncIterator[bytes]:
        content, wait, upstream = self._response.content, self._wait, self._upstream
        while True:
            if upstream.closed:
                raise upstream.broken_off()
            silent_until = wait.now + upstream.timeouts.silence_seconds
            try:
                with wait.until(min(silent_until, self._deadline)):
                    chunk = await content.readany()
            except aiohttp.ClientError as error:
                if arrived := _arrived(content):
                    yield arrived
                raise upstream.failure(error, answering=True) from None
            except TimeoutError:
                raise self._too_slow(_SILENCE) from None
            if not chunk:
                return
            yield chunk

    def _own_headers(self) -> dict[str, str]:
        """The headers of this call only."""
        told = self._upstream.call_headers
        headers = dict(told()) if told else {}
        if self._key is not None:
            headers["authorization"] = _bearer(self._key)
        elif self._upstream.caller_key_required:
            raise KeyMissing(
                f"calls to {self._upstream.name} go with the caller's own key; "
                f"send yours as header '{CALLER_KEY_HEADER}'"
            )
        return headers

    async def _final(self, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """The first answer that need not be repeated, or the last one."""
        back_off, name = self._upstream.back_off, self._upstream.name
        for repeat in range(back_off.repeats):
            try:
                response = await self._head(headers)
            except UpstreamUnreachable:
                if self._upstream.closed:
                    raise
                # Mostly a kept-alive connection that had ended: the first repeat needs no wait.
                wait_seconds = back_off.seconds(repeat) if repeat else 0.0
                outcome = "unreachable"
            else:
                if response.status not in REPEATED_STATUSES:
                    return response
                asked_seconds = _asked_wait_seconds(response) or 0.0
                if asked_seconds > back_off.longest_wait_seconds:
                    return response
                response.close()
                wait_seconds = max(asked_seconds, back_off.seconds(repeat))
                outcome = "429" if response.status == 429 else "5xx"
            self._upstream.counts.repeats[outcome] += 1
            logger.info(
                "upstream call repeated",
                extra={"upstream": name, "outcome": outcome, "wait_seconds": wait_seconds},
            )
            await asyncio.sleep(wait_seconds)
        return await self._head(headers)

    async def _head(self, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """One request and the head of its answer."""
        upstream, wait = self._upstream, self._wait
        await upstream.gate.turn()
        start, timeouts = wait.now, upstream.timeouts
        self._deadline = start + timeouts.total_seconds
        try:
            with wait.until(min(start + timeouts.first_byte_seconds, self._deadline)):
                return await upstream.post(self._payload, headers)
        except aiohttp.ClientError as error:
            raise upstream.failure(error, answering=False) from None
        except TimeoutError:
            raise self._too_slow(_FIRST_BYTE) from None

    def _too_slow(self, reason: str) -> UpstreamTimedOut:
        timeouts = self._upstream.timeouts
        if self._wait.due >= self._deadline:
            reason = _TOTAL
        seconds = getattr(timeouts, f"{reason}_seconds")
        option = f"--upstream-{reason.replace('_', '-')}-timeout-seconds"
        return UpstreamTimedOut(
            f"{self._upstream.name} {_TOO_SLOW[reason]} {seconds:g} seconds; give it more time "
            f"with {option}, or with timeouts.{reason}_seconds of its provider"
        )


_FIRST_BYTE, _SILENCE, _TOTAL = "first_byte", "silence", "total"
_TOO_SLOW = {
    _FIRST_BYTE: "did not begin its answer within",
    _SILENCE: "fell silent in the middle of its answer for",
    _TOTAL: "took longer to answer than",
}


def _arrived(content: aiohttp.StreamReader) -> bytes:
    """The bytes that came before the connection failed, which aiohttp hides from readers."""
    content.set_exception(None)  # type: ignore[arg-type]
    return content.read_nowait()


def _asked_wait_seconds(response: aiohttp.ClientResponse) -> float | None:
    headers = response.headers
    return retry_after_seconds(headers.get("retry-after"), sent=headers.get("date"))


def _chat_url(base_url: str) -> URL:
    """The base URL with the chat path appended and its query kept."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix(CHAT_PATH) + CHAT_PATH
    return URL(parts._replace(path=path, fragment="").geturl())


def _payload(body: ChatBody) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(body, separators=(",", ":")).encode()


def _can_be_sent(header: str) -> bool:
    """Whether the value can be passed on in a header of ours."""
    return header.isascii() and header.isprintable()


def _bearer(key: SecretStr) -> str:
    """The Authorization header's value. Raises KeyRejected for what no header can carry."""
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise KeyRejected(
            "the model provider's key holds something else than printable ASCII characters "
            "without spaces; check where it comes from"
        )
    return f"Bearer {text}"
