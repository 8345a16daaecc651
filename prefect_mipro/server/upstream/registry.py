"""The upstreams of a server by provider name; the embedded one is made when first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prefect_mipro.errors import ConfigInvalid
from prefect_mipro.server.upstream.embedded import EmbeddedUpstream
from prefect_mipro.server.upstream.embedded import check as check_embedded
from prefect_mipro.server.upstream.interface import Upstream

DEFAULT = "default"
EMBEDDED = "embedded"


class Upstreams:
    """The upstreams that a server knows.

    A name it does not know, such as `openai` in a config made for another backend, means the
    default one where there is one.
    """

    def __init__(self, table: Mapping[str, Upstream]) -> None:
        self._table = dict(table)

    def named(self, provider: str) -> Upstream:
        """The upstream of that provider. Raises ConfigInvalid, or ModelMissing for the embedded."""
        self.check(provider)
        if provider == EMBEDDED and EMBEDDED not in self._table:
            self._table[EMBEDDED] = EmbeddedUpstream()
        return self._table.get(provider) or self._table[DEFAULT]

    def check(self, provider: str) -> None:
        """Raise ConfigInvalid if calls to that provider have nowhere to go.

        For the embedded one ModelMissing, unless its runtime and its model are installed.
        """
        if provider == EMBEDDED and EMBEDDED not in self._table:
            check_embedded()
        if not {provider, DEFAULT} & {*self._table, EMBEDDED}:
            known = ", ".join(sorted({*self._table, EMBEDDED}))
            raise ConfigInvalid(
                f"this server has no provider {provider!r} (it has: {known}); "
                "start it with --upstream-url or --providers, "
                'or set prompt_learning.policy.provider = "embedded"'
            )

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(upstream.close() for upstream in self._table.values()))
