"""The upstreams of a server by provider name; the embedded one is made when first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from prefect_mipro.errors import ConfigInvalid
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream, why_missing
from prefect_mipro.server.upstream.embedded import check as check_embedded
from prefect_mipro.server.upstream.inference import InferenceUrls, normal
from prefect_mipro.server.upstream.interface import DEFAULT as DEFAULT
from prefect_mipro.server.upstream.interface import Counted, Reachable, Upstream, UpstreamCounts
from prefect_mipro.server.upstream.openai import OpenAIUpstream

EMBEDDED = "embedded"
# The program calls its model itself: it leases prompts and posts its traces.
NONE = "none"
# What configs made for other backends say, whatever server of OpenAI's API they mean.
OPENAI = "openai"
# The name under which calls to the URLs of session configs are counted.
INFERENCE_URLS = "inference_url"


class Upstreams:
    """The upstreams that a server knows.

    A name it does not know, such as `openai` in a config made for another backend, means the
    default one where there is one. `base_urls` says which provider a URL belongs to, and
    `caller_keyed` which providers take no call without a key of the caller's own.
    """

    def __init__(
        self,
        table: Mapping[str, Upstream],
        *,
        base_urls: Mapping[str, str] | None = None,
        caller_keyed: frozenset[str] = frozenset(),
        inference: InferenceUrls | None = None,
    ) -> None:
        self._table = dict(table)
        self._base_urls = dict(base_urls or {})
        self._caller_keyed = caller_keyed
        self._inference = inference or InferenceUrls((), lambda url, _: OpenAIUpstream(url))

    def named(self, provider: str, *, inference_url: str | None = None) -> Upstream:
        """The upstream of that provider, or of the URL in its place.

        Raises ConfigInvalid, or ModelMissing for the embedded one.
        """
        if inference_url:
            known = self._base_urls.get(normal(inference_url))
            if known is None:
                return self._inference.at(inference_url)
            provider = known
        self.check(provider)
        if provider == NONE and NONE not in self._table:
            raise ConfigInvalid(
                "this session's program calls its model itself: lease its prompts at .../prompt, "
                'or set prompt_learning.policy.provider to something else than "none"'
            )
        if provider == EMBEDDED and EMBEDDED not in self._table:
            self._table[EMBEDDED] = EmbeddedUpstream()
        return self._table.get(provider) or self._table[DEFAULT]

    def check(self, provider: str) -> None:
        """Raise ConfigInvalid if calls to that provider have nowhere to go.

        For the embedded one ModelMissing, unless its runtime and its model are installed.
        """
        if provider == EMBEDDED and EMBEDDED not in self._table:
            check_embedded()
        if not {provider, DEFAULT} & {*self._table, EMBEDDED, NONE}:
            known = ", ".join(sorted({*self._table, EMBEDDED}))
            raise ConfigInvalid(
                f"this server has no provider {provider!r} (it has: {known}); "
                "start it with --upstream-url or --providers, "
                'or set prompt_learning.policy.provider = "embedded"'
            )

    def is_default_for(self, provider: str) -> bool:
        """Whether the default provider stands in for that one, and its host does not bear the name.

        A server that knows https://api.groq.com/openai/v1 as its default is right for `groq`. The
        name `openai` is that of the API which every upstream speaks, so any is right for it.
        """
        if provider in {*self._table, DEFAULT, EMBEDDED, NONE, OPENAI}:
            return False
        hosts = (
            urlsplit(url).hostname or "" for url, name in self._base_urls.items() if name == DEFAULT
        )
        return not any(provider.lower() in host.split(".") for host in hosts)

    @property
    def names(self) -> tuple[str, ...]:
        """The providers that are known by name."""
        return tuple(sorted(self._table))

    async def check_url(self, inference_url: str) -> None:
        """Raise ConfigInvalid if calls to that URL are not allowed."""
        if normal(inference_url) not in self._base_urls:
            await self._inference.check(inference_url)

    def takes_caller_keys_only(self, provider: str, *, inference_url: str | None = None) -> bool:
        """Whether a call of the server's own, which nobody sends a key with, would be refused."""
        if inference_url:
            provider = self._base_urls.get(normal(inference_url), "")
        elif provider not in {*self._table, NONE}:
            provider = DEFAULT
        return provider in self._caller_keyed

    def counts(self) -> Mapping[str, UpstreamCounts]:
        """The calls to each provider so far, and to all inference URLs together."""
        inference = {INFERENCE_URLS: self._inference.counts} if self._inference.allows_any else {}
        return inference | {
            name: upstream.counts
            for name, upstream in self._table.items()
            if isinstance(upstream, Counted)
        }

    async def unreachable(self, *, longest_seconds: float) -> Mapping[str, str]:
        """Why each provider is out of reach, empty where it is not.

        Where no provider is known, calls go to the embedded model.
        """
        if not self._table:
            return {EMBEDDED: why_missing()}
        asked = {name: it for name, it in self._table.items() if isinstance(it, Reachable)}
        found = await asyncio.gather(
            *(upstream.unreachable(longest_seconds=longest_seconds) for upstream in asked.values())
        )
        return dict(zip(asked, found, strict=True))

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(
            *(upstream.close() for upstream in self._table.values()), self._inference.close()
        )
