"""Proxies that the environment names."""

from __future__ import annotations

import os

import pytest
from yarl import URL

from prefect_mipro.errors import ConfigInvalid, UpstreamUnreachable
from prefect_mipro.server.upstream.addresses import environment_proxy
from tests.server.scripted_upstream import ScriptedUpstream
from tests.server.upstream.calls import read, upstream_at

MODEL = URL("http://model.invalid/v1")


@pytest.fixture(autouse=True)
def _no_proxy_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


async def test_calls_go_through_the_proxy_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedUpstream
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    async with upstream_at(str(MODEL), proxied=True) as upstream:
        assert (await read(upstream))[0] == 200
    assert server.received[0].path == "http://model.invalid/v1/chat/completions"


async def test_calls_go_past_the_proxy_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedUpstream
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
    async with upstream_at(str(MODEL)) as upstream:
        with pytest.raises(UpstreamUnreachable):
            await read(upstream)
    assert server.received == []


def test_each_scheme_has_its_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "secure:3128")
    assert environment_proxy(URL("https://model.invalid/v1")) == "http://secure:3128"
    assert environment_proxy(MODEL) is None
    monkeypatch.setenv("ALL_PROXY", "http://all:3128")
    assert environment_proxy(MODEL) == "http://all:3128"


def test_excluded_hosts_and_this_machine_are_reached_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "inside.invalid")
    assert environment_proxy(URL("http://model.inside.invalid/v1")) is None
    for host in ("localhost", "127.0.0.1", "[::1]"):
        assert environment_proxy(URL(f"http://{host}:8000/v1")) is None


def test_a_proxy_of_another_kind_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://user:hidden@proxy:1080")
    with pytest.raises(ConfigInvalid, match="socks5") as error:
        environment_proxy(MODEL)
    assert "hidden" not in error.value.message
