"""Where a session's defaults come from."""

from __future__ import annotations

import os
import random
from importlib import import_module

import pytest

from prefect_mipro.client.environment import (
    api_key,
    backend_url,
    identity_headers,
    is_loopback,
    named_backend_url,
)
from prefect_mipro.errors import InputInvalid, KeyMissing
from prefect_mipro.server.settings import ServerSettings
from tests.client.released_sdk import released

PLACES = ("local", "dev", "development", "staging", "railway", "prod", "production", "main")
URL_VARIABLES = (
    "LOCAL_BACKEND_URL",
    "DEV_SYNTH_BACKEND_URL",
    "DEV_BACKEND_URL",
    "PROD_SYNTH_BACKEND_URL",
    "PROD_BACKEND_URL",
    "SYNTH_BACKEND_URL",
    "SYNTH_API_URL",
    "BACKEND_URL",
)
PLACE_VARIABLES = (
    "SYNTH_BACKEND_URL_OVERRIDE",
    "ENVIRONMENT",
    "APP_ENVIRONMENT",
    "RAILWAY_ENVIRONMENT",
    "RAILWAY_ENVIRONMENT_NAME",
    "ENV",
)


def test_our_own_variable_goes_first() -> None:
    environ = {"MIPRO_BACKEND_URL": "http://ours", "SYNTH_BACKEND_URL_OVERRIDE": "http://theirs"}
    assert backend_url(environ) == "http://ours"


@pytest.mark.parametrize("name", PLACE_VARIABLES[1:])
@pytest.mark.parametrize("place", ["", *PLACES])
def test_without_a_url_the_backend_is_where_the_server_listens_by_default(
    name: str, place: str
) -> None:
    environ = {name: place}
    assert named_backend_url(environ) is None
    assert backend_url(environ) == ServerSettings().own_url == "http://127.0.0.1:8765"


def test_a_blank_variable_counts_as_none() -> None:
    assert backend_url({"MIPRO_BACKEND_URL": " ", "BACKEND_URL": "http://h"}) == "http://h"


@pytest.mark.parametrize("override", ["nonsense", "dev", "Production"])
def test_an_override_that_names_no_url_is_refused(override: str) -> None:
    with pytest.raises(InputInvalid, match=f"_OVERRIDE is {override!r}.* set MIPRO_BACKEND_URL"):
        backend_url({"SYNTH_BACKEND_URL_OVERRIDE": override, "SYNTH_BACKEND_URL": "http://h"})


def test_the_former_sdks_variables_mean_what_they_meant_and_its_own_hosts_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released("core")
    theirs = import_module("synth_ai_py").backend_url_base
    chance = random.Random(0)
    for _ in range(300):
        for name in (*URL_VARIABLES, *PLACE_VARIABLES):
            monkeypatch.delenv(name, raising=False)
        for name in chance.sample(URL_VARIABLES, chance.randint(0, 4)):
            monkeypatch.setenv(name, f"http://{name.lower()}")
        for name in chance.sample(PLACE_VARIABLES, chance.randint(0, 2)):
            monkeypatch.setenv(name, chance.choice((*PLACES, "http://there")))
        named = theirs() if theirs() in os.environ.values() else None
        try:
            assert named_backend_url() == named
        except InputInvalid:
            assert named is None
            assert os.environ["SYNTH_BACKEND_URL_OVERRIDE"] in PLACES


@pytest.mark.parametrize(
    ("environ", "key"),
    [
        ({"MIPRO_API_KEY": "ours", "SYNTH_API_KEY": "theirs"}, "ours"),
        ({"SYNTH_API_KEY": " theirs\n"}, "theirs"),
    ],
)
def test_our_key_goes_before_the_sdks(environ: dict[str, str], key: str) -> None:
    assert api_key("https://h", environ) == key


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.0.0.2", "http://[::1]:8000"])
def test_a_backend_on_this_machine_may_do_without_a_key(url: str) -> None:
    assert is_loopback(url)
    assert api_key(url, {}) == ""


@pytest.mark.parametrize(
    "url", ["https://h", "http://10.0.0.1", "http://localhost.evil.example", "http://[::1", ""]
)
def test_a_backend_elsewhere_needs_a_key(url: str) -> None:
    with pytest.raises(KeyMissing, match="MIPRO_API_KEY or SYNTH_API_KEY") as caught:
        api_key(url, {})
    assert isinstance(caught.value, ValueError)


def test_identity_travels_as_headers() -> None:
    environ = {"SYNTH_USER_ID": "u1", "X_USER_ID": "u2", "X_ORG_ID": "o2"}
    assert identity_headers(environ) == {"X-User-ID": "u1", "X-Org-ID": "o2"}
    assert identity_headers({}) == {}
