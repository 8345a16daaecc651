"""Session defaults from the environment, read at the time of the call.

`MIPRO_BACKEND_URL` and `MIPRO_API_KEY` come first, then the variables of the hosted service's
former SDK. No variable, no foreign host: without a URL the backend is on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import httpx

from prefect_mipro import transport
from prefect_mipro.errors import InputInvalid, KeyMissing

URL_VARIABLE = "MIPRO_BACKEND_URL"

# A URL, or the name of a place whose URL is in the place's own variables.
_OVERRIDE = "SYNTH_BACKEND_URL_OVERRIDE"
_LOCAL = ("LOCAL_BACKEND_URL",)
_DEVELOPMENT = ("DEV_SYNTH_BACKEND_URL", "DEV_BACKEND_URL")
_PRODUCTION = ("PROD_SYNTH_BACKEND_URL", "PROD_BACKEND_URL")
_PLACES = {
    **dict.fromkeys(("local", "localhost"), _LOCAL),
    **dict.fromkeys(("dev", "development", "staging", "railway"), _DEVELOPMENT),
    **dict.fromkeys(("prod", "production", "main"), _PRODUCTION),
}
_ANY_PLACE = ("SYNTH_BACKEND_URL", "SYNTH_API_URL")
# Which place the program itself runs in.
_OWN_PLACE = (
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
    """The backend for a caller that names none: the environment's, else the server's own default.

    Raises InputInvalid.
    """
    return named_backend_url(environ) or transport.DEFAULT_BACKEND_URL


def named_backend_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """The backend that a variable names, ours or one of the former SDK's; None if none does.

    Raises InputInvalid for an override that names neither a URL nor a place with one.
    """
    if url := _first(environ, URL_VARIABLE):
        return url
    if override := _first(environ, _OVERRIDE).strip("\"'"):
        return _overriding(override, environ)
    own_place = _PLACES.get(_first(environ, *_OWN_PLACE).lower())
    first, second = _PRODUCTION if own_place is _PRODUCTION else _DEVELOPMENT
    return _first(environ, first, *_ANY_PLACE, second, "BACKEND_URL") or None


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
        return transport.is_loopback(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def _overriding(override: str, environ: Mapping[str, str]) -> str | None:
    if override.startswith(("http://", "https://")):
        return override
    variables = _PLACES.get(override.lower())
    if variables is None:
        raise InputInvalid(
            f"{_OVERRIDE} is {override!r}; set {URL_VARIABLE} to the backend's URL instead"
        )
    url = _first(environ, *variables)
    if not url and variables is not _LOCAL:
        raise InputInvalid(
            f"{_OVERRIDE} is {override!r}, and no variable says where that is; set {URL_VARIABLE} "
            f"to the backend's URL, or {variables[0]}"
        )
    return url or None


def _first(environ: Mapping[str, str], *names: str) -> str:
    """The first of the variables that is set and not blank; empty when none is."""
    return next((value for name in names if (value := environ.get(name, "").strip())), "")
