"""What all hops agree on: the address, idle connections, and how long a refusal asks to wait."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

# Where the server listens, and where a client looks, when nobody says otherwise.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
DEFAULT_BACKEND_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"

# The server closes an idle connection. A client has to give it up a little earlier: a request that
# crosses the server's close on the wire fails, and one that is not repeatable is lost.
SERVER_IDLE_SECONDS = 75
CLIENT_IDLE_SECONDS = SERVER_IDLE_SECONDS - 5

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]+)?")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`, a name or an IP address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def retry_after_seconds(header: str | None, *, sent: str | None = None) -> float | None:
    """A Retry-After header as seconds from now; it holds seconds or a date (RFC 9110, 10.2.3).

    `sent` is the answer's own Date header. A date counts from there, so that no two clocks are
    compared; from this machine's present where the answer has none.
    """
    if header is None:
        return None
    text = header.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    due = _seconds_of(text)
    if due is None:
        return None
    now = _seconds_of(sent or "")
    return max(0.0, due - (time.time() if now is None else now))


def _seconds_of(date: str) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
