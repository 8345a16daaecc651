"""What client and server agree on before the first byte: the address, and idle connections."""

from __future__ import annotations

from ipaddress import ip_address

# Where the server listens, and where a client looks, when nobody says otherwise.
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765
DEFAULT_BACKEND_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"

# The server closes an idle connection. A client has to give it up a little earlier: a request that
# crosses the server's close on the wire fails, and one that is not repeatable is lost.
SERVER_IDLE_SECONDS = 75
CLIENT_IDLE_SECONDS = SERVER_IDLE_SECONDS - 5


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`, a name or an IP address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
