"""The defaults that the environment gives to a session, read when they are asked for.

The variables are those of the hosted service's SDK; `MIPRO_BACKEND_URL` and `MIPRO_API_KEY` go
before them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address

import httpx

from prefect_mipro.errors import InputInvalid, KeyMissing


@dataclass(frozen=True)
class _Place:
    """A place that backends run at: the words for it, the variables with its URL, its default."""

    words: frozenset[str]
    variables: tuple[str, ...]
    default: str


_LOCAL = _Place(
    frozenset({"local", "localhost"}),
    ("LOCAL_BACKEND_URL",),
    "http://localhost:8000",
)
_DEVELOPMENT = _Place(
    frozenset({"dev", "development", "staging", "railway"}),
    ("DEV_SYNTH_BACKEND_URL", "DEV_BACKEND_URL"),
    "https://api-dev.usesynth.ai",
)
_PRODUCTION = _Place(
    frozenset({"prod", "production", "main"}),
    ("PROD_SYNTH_BACKEND_URL", "PROD_BACKEND_URL"),
    "https://api.usesynth.ai",
)

_OVERRIDE = "SYNTH_BACKEND_URL_OVERRIDE"
_ANYWHERE = ("SYNTH_BACKEND_URL", "SYNTH_API_URL")
_WHERE_WE_RUN = (
    "ENVIRONMENT",
    "APP_ENVIRONMENT",
    "RAILWAY_ENVIRONMENT",
    "RAILWAY_ENVIRONMENT_NAME",
    "ENV",
)
_KEYS = ("MIPRO_API_KEY", "SYNTH_API_KEY")
_IDENTITY = {
    "X-User-ID": ("SYNTH_USER_ID", "X_USER_ID"),
    "X-Org-ID": ("SYNTH_ORG_ID", "X_ORG_ID"),
}


def backend_url(environ: Mapping[str, str] = os.environ) -> str:
    """The backend to use when the caller names none."""
    if url := _first(environ, "MIPRO_BACKEND_URL"):
        return url
    if override := _first(environ, _OVERRIDE).strip("\"'"):
        return _overriding(override, environ)
    if _first(environ, *_WHERE_WE_RUN).lower() in _PRODUCTION.words:
        place, default = _PRODUCTION, _PRODUCTION.default
    else:
        place, default = _DEVELOPMENT, _LOCAL.default
    first, second = place.variables
    return _first(environ, first, *_ANYWHERE, second, "BACKEND_URL") or default


def api_key(backend_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The key to use when the caller gives none.

    Empty when there is none and the backend is on this machine, where it may run without keys;
    raises KeyMissing when it is elsewhere.
    """
    key = _first(environ, *_KEYS)
    if not key and not is_loopback(backend_url):
        raise KeyMissing(
            f"there is no key for {backend_url}; give api_key, or set {' or '.join(_KEYS)}"
        )
    return key


def identity_headers(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Whom the requests are made for, as far as the environment says."""
    found = {header: _first(environ, *names) for header, names in _IDENTITY.items()}
    return {header: value for header, value in found.items() if value}


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    try:
        host = httpx.URL(url).host
        return host == "localhost" or ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


def _overriding(override: str, environ: Mapping[str, str]) -> str:
    for place in (_LOCAL, _DEVELOPMENT, _PRODUCTION):
        if override.lower() in place.words:
            return _first(environ, *place.variables) or place.default
    if override.startswith(("http://", "https://")):
        return override
    raise InputInvalid(f"{_OVERRIDE} is {override!r}; give a URL, or local, dev or prod")


def _first(environ: Mapping[str, str], *names: str) -> str:
    """The first of the variables that is set and not blank; empty when none is."""
    return next((value for name in names if (value := environ.get(name, "").strip())), "")
