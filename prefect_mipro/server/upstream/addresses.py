"""Where a host is: on this machine, in a private network, behind a proxy."""

from __future__ import annotations

import ipaddress
import urllib.request

from yarl import URL

from prefect_mipro.errors import ConfigInvalid


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: str) -> bool:
    """Whether it lies in the internet: not on this machine, its networks or a cloud's inside."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
        found = found.ipv4_mapped
    return found.is_global and not found.is_multicast


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
