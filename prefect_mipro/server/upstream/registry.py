"""The upstreams of a server by provider name; the embedded one is made when first asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from prefect_mipro.errors import ConfigInvalid, ModelMissing
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
        if provider == EMBEDDED and EMBEDDED not in self._table:
            self._table[EMBEDDED] = _embedded()
        self.check(provider)
        return self._table.get(provider) or self._table[DEFAULT]

    def check(self, provider: str) -> None:
        """Raise ConfigInvalid if calls to that provider have nowhere to go."""
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


def _embedded() -> Upstream:
    try:
        from prefect_mipro.server.upstream.embedded import EmbeddedUpstream
    except ModuleNotFoundError as error:
        raise ModelMissing(
            f"the embedded model needs the package {error.name}; "
            "install it with: pip install 'prefect-mipro[embedded]'"
        ) from None
    return EmbeddedUpstream()
