"""Web pages of other origins, kept out: the check that every request passes before anything else.

A page that is open in a browser on this machine reaches a loopback server like any local program.
What it cannot choose is what the browser says about it: the host name that it calls (`Host`) and
where it comes from (`Origin`, `Sec-Fetch-Site`).
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.types import Scope

from prefect_mipro.errors import InputInvalid
from prefect_mipro.server.routes.errors import short
from prefect_mipro.server.upstream.addresses import AllowedHost
from prefect_mipro.transport import is_loopback

DOCS_PATH = "/docs"
HOSTS_REMEMBERED = 256
MOST_WARNINGS = 100

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+?)\.?)(?::([0-9]{1,5}))?", re.IGNORECASE)
_TOLD_BY_BROWSERS = frozenset({b"host", b"origin", b"sec-fetch-site"})
_DEFAULT_PORTS = (80, 443)
_OWN_SITES = (b"same-origin", b"none")  # none: typed, or not sent by a page at all

logger = logging.getLogger("prefect_mipro.server")


class SameOrigin:
    """The check of `Host`, `Origin` and `Sec-Fetch-Site` of each request.

    A server that listens on loopback answers to loopback names, the host of its public URL and the
    `allowed` ones. A server that other machines reach has keys, which a page cannot know: it checks
    names only if `allowed` has any, and takes addresses, which health probes call and which no page
    can give to a name of its own.
    """

    def __init__(
        self, *, listens_on: str, public_url: str | None, allowed: Iterable[AllowedHost]
    ) -> None:
        self._local = is_loopback(listens_on)
        self._allowed = tuple(allowed)
        self._checks_names = self._local or bool(self._allowed)
        public = urlsplit(public_url or "")
        self._own_names = frozenset(filter(None, (listens_on.lower(), public.hostname)))
        self._public_authority = public.netloc.lower().encode()
        self._why_not = lru_cache(HOSTS_REMEMBERED)(self._examined)
        self._warned: set[str] = set()

    def refusal(self, scope: Scope) -> InputInvalid | None:
        """Why the request is not taken; None if it is."""
        told = [header for header in scope["headers"] if header[0] in _TOLD_BY_BROWSERS]
        hosts = [value for name, value in told if name == b"host"]
        if len(hosts) != 1 or not hosts[0]:
            found = f"{len(hosts)} Host headers" if len(hosts) > 1 else "no Host header"
            return InputInvalid(f"the request has {found}; send exactly one", status=400)
        if self._checks_names and (why_not := self._why_not(hosts[0])):
            return InputInvalid(why_not[1], status=why_not[0])
        for name, value in told:
            if name == b"sec-fetch-site" and value not in _OWN_SITES and not _opens_docs(scope):
                return self._foreign_page(scope)
            if name == b"origin" and not self._is_own_origin(value, host=hosts[0]):
                return self._foreign_page(scope)
        return None

    def _is_own_origin(self, origin: bytes, *, host: bytes) -> bool:
        # Without the scheme: TLS may end in front of the server.
        authority = origin.lower().partition(b"://")[2]
        return bool(authority) and authority in (host.lower(), self._public_authority)

    def _foreign_page(self, scope: Scope) -> InputInvalid:
        origin = short(dict(scope["headers"]).get(b"origin", b"unknown").decode("latin-1"))
        if origin not in self._warned and len(self._warned) < MOST_WARNINGS:
            # The browser hides the answer from the page and its author.
            self._warned.add(origin)
            logger.warning("a web page of another origin was refused", extra={"origin": origin})
        return InputInvalid(
            f"the request comes from a web page of another origin ({origin}), and pages may not "
            "call this server; call it from a program, such as the one that serves the page",
            status=403,
        )

    def _examined(self, host: bytes) -> tuple[int, str] | None:
        """Status and message of the refusal of a Host header; None where it is one of ours."""
        text = host.decode("latin-1")
        parsed = _HOST.fullmatch(text)
        if parsed is None:
            return 400, f"the Host header is {short(repr(text))}, not a host name or host:port"
        name = (parsed[1] or parsed[2]).lower()
        ports = (int(parsed[3]),) if parsed[3] else _DEFAULT_PORTS
        if is_loopback(name) or name in self._own_names:
            return None
        if any(allowed.covers(name, port) for allowed in self._allowed for port in ports):
            return None
        if not self._local and _is_address(name):
            return None
        return 403, (
            f"this server does not answer to the host name {short(repr(name))}, so that no web "
            "page reaches it under a name of its own; if the name is yours, start the server with "
            f"--allowed-hosts {short(name)}"
        )


def _opens_docs(scope: Scope) -> bool:
    """Whether a link somewhere leads a person to the page that describes the API.

    The browser shows the page; the origin the link is on sees nothing of it.
    """
    return (
        scope["method"] == "GET"
        and scope["path"] == DOCS_PATH
        and (b"sec-fetch-dest", b"document") in scope["headers"]
    )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
