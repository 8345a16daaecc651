"""Where a host is: on this machine, in a private network, behind a proxy."""

from __future__ import annotations

import ipaddress
import urllib.request
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from yarl import URL

from prefect_mipro.errors import ConfigInvalid
from prefect_mipro.transport import is_loopback


@dataclass(frozen=True)
class AllowedHost:
    """One entry of a list of hosts: `api.example.com`, `*.example.com`, either with `:port`."""

    name: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        try:
            parts = urlsplit(f"//{text}")
            port = parts.port
        except ValueError:
            raise ValueError(f"{text!r} is not a host or host:port") from None
        name = parts.hostname or ""
        plain = name.removeprefix("*.")
        if not plain or "*" in plain or "@" in text or parts.path or parts.query:
            raise ValueError(
                f"{text!r} is not a host; write them like api.example.com, *.example.com or "
                "localhost:8000, without scheme and path"
            )
        return cls(name=name, port=port)

    @property
    def literal(self) -> bool:
        """Whether it names one host in full."""
        return not self.name.startswith("*.")

    def covers(self, host: str, port: int) -> bool:
        """Whether URLs of that host and port are allowed by it."""
        if self.port not in (None, port):
            return False
        return host == self.name if self.literal else host.endswith(self.name[1:])


# The IPv6 addresses of the internet, and what in them stands for an IPv4 address or for nothing.
_UNICAST = ipaddress.IPv6Network("2000::/3")
_INSIDE = tuple(
    map(
        ipaddress.ip_network,
        (
            "2001::/23",  # Teredo, and others of the protocol's own
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
            "192.0.0.0/24",
            "192.88.99.0/24",
            "168.63.129.16/32",  # Azure's own services, in each of its networks
        ),
    )
)
# Of an address whose last 64 bits are made from an IPv4 address (ISATAP, RFC 5214).
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


def is_public(address: str) -> bool:
    """Whether it lies in the internet: not on this machine, its networks or a cloud's inside.

    An IPv6 address that stands for an IPv4 address (NAT64, 6to4, Teredo, ISATAP, compatible) is not
    public whatever that is, except a mapped one, which is the IPv4 address.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    if isinstance(found, ipaddress.IPv6Address) and (
        found not in _UNICAST or int(found) >> 32 & 0xFFFF_FFFF in _ISATAP
    ):
        return False
    inside = any(found in network for network in _INSIDE)
    return found.is_global and not found.is_multicast and not inside


def environment_proxy(url: URL) -> str | None:
    """The proxy that the environment names for this URL; none for this machine's own addresses."""
    host = url.host or ""
    if is_loopback(host) or urllib.request.proxy_bypass(f"{host}:{url.port}"):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if proxy is None or "://" not in proxy:
        return proxy and f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise ConfigInvalid(
            f"the environment names a {proxy.partition(':')[0]} proxy for {url.scheme}; only HTTP "
            "proxies are understood: name one, or exclude the host in NO_PROXY"
        )
    return proxy
