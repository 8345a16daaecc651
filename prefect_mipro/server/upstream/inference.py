"""The upstreams behind the URLs that session configs name, as far as the operator allows them."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv6Address
from urllib.parse import SplitResult, urlsplit

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult

from prefect_mipro.errors import ConfigInvalid, Overloaded
from prefect_mipro.server.upstream.addresses import AllowedHost, is_public
from prefect_mipro.server.upstream.interface import Upstream, UpstreamCounts
from prefect_mipro.server.upstream.openai import CHAT_PATH, OpenAIUpstream

OPTION = "--allowed-inference-hosts"
MOST_UPSTREAMS = 32
RETRY_AFTER_SECONDS = 5.0
PORTS = {"http": 80, "https": 443}
LONGEST_NAME = 253
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")

MakeUpstream = Callable[[str, AbstractResolver | None], OpenAIUpstream]


class PublicAddresses(AbstractResolver):
    """The system's look-up of names, which fails for addresses that are not public."""

    def __init__(self) -> None:
        self._inner = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises OSError."""
        found = await self._inner.resolve(host, port, family)
        if not found or not all(is_public(address["host"]) for address in found):
            raise OSError(f"{host} has a private address, and only its wildcard is allowed")
        return found

    async def close(self) -> None:
        """There is nothing to close."""


class InferenceUrls:
    """One upstream for each URL in use, up to 32; the one that was idle longest makes way."""

    def __init__(self, allowed: Iterable[AllowedHost], make: MakeUpstream) -> None:
        self._allowed = tuple(allowed)
        self._make = make
        self._upstreams: OrderedDict[str, OpenAIUpstream] = OrderedDict()
        self._before = UpstreamCounts()
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def allows_any(self) -> bool:
        """Whether there is any host that may be called."""
        return bool(self._allowed)

    @property
    def counts(self) -> UpstreamCounts:
        """The calls to all URLs so far, those that have made way included."""
        return sum((upstream.counts for upstream in self._upstreams.values()), self._before)

    async def check(self, url: str) -> None:
        """Raise ConfigInvalid unless calls to that URL are allowed and its host has an address."""
        host, port = _host_and_port(url)
        if self._allowance(host, port).literal:
            return
        try:
            await PublicAddresses().resolve(host, port, socket.AF_UNSPEC)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigInvalid(
                f"inference_url leads to {host}, which this server may not call: {reason}"
            ) from None

    def at(self, url: str) -> Upstream:
        """The upstream of that URL. Raises ConfigInvalid, and Overloaded when too many are busy."""
        host, port = _host_and_port(url)
        allowance = self._allowance(host, port)
        base_url = normal(url)
        if base_url not in self._upstreams:
            self._make_way()
            resolver = None if allowance.literal else PublicAddresses()
            self._upstreams[base_url] = self._make(base_url, resolver)
        self._upstreams.move_to_end(base_url)
        return self._upstreams[base_url]

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(
            *(upstream.close() for upstream in self._upstreams.values()), *self._closing
        )

    def _allowance(self, host: str, port: int) -> AllowedHost:
        covering = [entry for entry in self._allowed if entry.covers(host, port)]
        if not covering:
            raise ConfigInvalid(
                f"inference_url leads to {host}, which this server does not call; its operator can "
                f"allow it with {OPTION} {host}, or add a provider for policy.provider to name"
            )
        return max(covering, key=lambda entry: entry.literal)

    def _make_way(self) -> None:
        if len(self._upstreams) < MOST_UPSTREAMS:
            return
        busy = {url: upstream.counts.calls for url, upstream in self._upstreams.items()}
        idle = next((url for url, calls in busy.items() if not calls), None)
        if idle is None:
            raise Overloaded(
                f"{MOST_UPSTREAMS} inference URLs have calls under way; try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        leaving = self._upstreams.pop(idle)
        self._before += leaving.counts
        closing = asyncio.ensure_future(leaving.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def normal(url: str) -> str:
    """The base URL that a config means, with or without the path of chat completions."""
    return url.strip().rstrip("/").removesuffix(CHAT_PATH).rstrip("/")


def _host_and_port(url: str) -> tuple[str, int]:
    """The host and port of a plain http(s) URL. Raises ConfigInvalid for anything else."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port or PORTS[parts.scheme]
    except (ValueError, KeyError):
        raise _malformed() from None
    host = (parts.hostname or "").removesuffix(".")
    if not _is_host(host) or _carries_more(parts) or not url.strip().isprintable():
        raise _malformed()
    return host, port


def _is_host(host: str) -> bool:
    """Whether the host is an IP address, or a name that can be looked up."""
    if ":" in host:
        with suppress(ValueError):
            return IPv6Address(host).scope_id is None
        return False
    return len(host) <= LONGEST_NAME and all(map(_LABEL.fullmatch, host.split(".")))


def _carries_more(parts: SplitResult) -> bool:
    return "@" in parts.netloc or bool(parts.fragment) or not parts.netloc.isascii()


def _malformed() -> ConfigInvalid:
    # The URL is not repeated: it may hold a password.
    return ConfigInvalid(
        "inference_url is not a plain http(s) URL with a valid host; write it like "
        "https://api.example.com/v1, and send a key with each call as header 'x-provider-key'"
    )
