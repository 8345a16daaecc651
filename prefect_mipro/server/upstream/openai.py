"""Any server that speaks OpenAI's chat completions, reached by its base URL."""

from __future__ import annotations

import asyncio
import io
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp
import orjson
from pydantic import SecretStr

from prefect_mipro.errors import UpstreamFailed, UpstreamTimedOut, UpstreamUnreachable
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.interface import Reply

CHAT_PATH = "/chat/completions"
MOST_CONNECTIONS = 1_000
# Some servers answer 500 to input that they cannot process; they would do so each time.
REPEATED_STATUSES = frozenset({429, 502, 503, 504})
# aiohttp writes a larger body in one piece, and warns, unless it is given as a file.
LARGEST_BODY_IN_ONE_PIECE = 1_000_000
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for the connection, for the first byte and each next one, for it all."""

    connect_seconds: float = 5.0
    silence_seconds: float = 120.0
    total_seconds: float = 600.0


@dataclass(frozen=True)
class BackOff:
    """How often a call is repeated before its first byte, and after which waits.

    Waits double from `first_wait_seconds` and lose up to half of themselves by chance. A server
    that asks for more than `longest_wait_seconds` has refused: its answer is passed on.
    """

    repeats: int = 2
    first_wait_seconds: float = 0.4
    longest_wait_seconds: float = 10.0
    chance: Callable[[], float] = random.random

    def seconds(self, repeat: int) -> float:
        """The wait before that repeat, counted from 0."""
        wait_seconds = min(self.first_wait_seconds * 2.0**repeat, self.longest_wait_seconds)
        return wait_seconds * (1.0 - self.chance() / 2)


class OpenAIUpstream:
    """One base URL, for example `https://api.openai.com/v1`, with its key and connections."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: SecretStr | None = None,
        headers: Mapping[str, str] | None = None,
        timeouts: Timeouts | None = None,
        back_off: BackOff | None = None,
    ) -> None:
        self._url = _chat_url(base_url)
        # What logs and errors show; some servers take their key in the query.
        self._name = base_url.partition("?")[0]
        self._headers = {
            "accept-encoding": "identity",
            "content-type": "application/json",
            **({"authorization": f"Bearer {api_key.get_secret_value()}"} if api_key else {}),
            **{name.lower(): value for name, value in (headers or {}).items()},
        }
        self._timeouts = timeouts or Timeouts()
        self._back_off = back_off or BackOff()
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"OpenAIUpstream({self._name!r})"

    @asynccontextmanager
    async def chat(self, body: ChatBody) -> AsyncIterator[Reply]:
        """Send the body unchanged. Raises UpstreamUnreachable, UpstreamTimedOut, UpstreamFailed."""
        response = await self._send(orjson.dumps(body))
        try:
            yield _OpenAIReply(response, self._name)
        finally:
            response.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _send(self, payload: bytes) -> aiohttp.ClientResponse:
        """The first answer that is final, or that is still not so after the last repeat."""
        for repeat in range(self._back_off.repeats):
            try:
                response = await self._post(payload)
            except UpstreamUnreachable:
                # Mostly a kept-alive connection that had ended: the first repeat needs no wait.
                wait_seconds = self._back_off.seconds(repeat) if repeat else 0.0
                outcome = "unreachable"
            else:
                asked_seconds = _retry_after_seconds(response) or 0.0
                if (
                    response.status not in REPEATED_STATUSES
                    or asked_seconds > self._back_off.longest_wait_seconds
                ):
                    return response
                response.close()
                wait_seconds = max(asked_seconds, self._back_off.seconds(repeat))
                outcome = str(response.status)
            logger.info(
                "upstream call repeated",
                extra={"upstream": self._name, "outcome": outcome, "wait_seconds": wait_seconds},
            )
            await asyncio.sleep(wait_seconds)
        return await self._post(payload)

    async def _post(self, payload: bytes) -> aiohttp.ClientResponse:
        data = payload if len(payload) <= LARGEST_BODY_IN_ONE_PIECE else io.BytesIO(payload)
        with _named_failures(self._name):
            response = await self._connected().post(self._url, data=data, allow_redirects=False)
        if 300 <= response.status < 400:
            response.close()
            raise UpstreamFailed(
                f"{self._name} redirects with status {response.status}; "
                "set the provider's base URL to the place it redirects to"
            )
        return response

    def _connected(self) -> aiohttp.ClientSession:
        # aiohttp asks for a running loop, which the composition root need not have.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=MOST_CONNECTIONS, keepalive_timeout=60.0, ttl_dns_cache=60
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(
                    total=self._timeouts.total_seconds,
                    sock_connect=self._timeouts.connect_seconds,
                    sock_read=self._timeouts.silence_seconds,
                ),
            )
        return self._session


class _OpenAIReply:
    """An answer under way."""

    def __init__(self, response: aiohttp.ClientResponse, name: str) -> None:
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        self.retry_after_seconds = _retry_after_seconds(response)
        self._response = response
        self._name = name

    async def read(self) -> bytes:
        with _named_failures(self._name):
            return await self._response.read()

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        while True:
            with _named_failures(self._name):
                chunk = await content.readany()
            if not chunk:
                return
            yield chunk


def _chat_url(base_url: str) -> str:
    """The base URL with the chat path after its own and its query kept."""
    parts = urlsplit(base_url)
    path = parts.path.rstrip("/").removesuffix(CHAT_PATH) + CHAT_PATH
    return parts._replace(path=path, fragment="").geturl()


@contextmanager
def _named_failures(name: str) -> Iterator[None]:
    """Failures of aiohttp as errors of ours, which name the server and no key."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError:
        raise UpstreamUnreachable(f"{name} does not accept connections in time") from None
    except TimeoutError:
        raise UpstreamTimedOut(
            f"{name} took too long to answer; give it more time with "
            "--upstream-silence-timeout-seconds or --upstream-total-timeout-seconds"
        ) from None
    except aiohttp.ClientPayloadError:
        raise UpstreamUnreachable(f"{name} broke off in the middle of its answer") from None
    except aiohttp.ClientConnectionError as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UpstreamUnreachable(f"cannot reach {name}: {reason}") from None
    except aiohttp.ClientError as error:
        raise UpstreamFailed(
            f"{name} answered something that is not HTTP: {type(error).__name__}"
        ) from None


def _retry_after_seconds(response: aiohttp.ClientResponse) -> float | None:
    """The header as seconds from now; it may hold seconds or a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
