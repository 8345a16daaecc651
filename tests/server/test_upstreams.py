"""From the provider table to calls: what an operator says is what a provider gets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from prefect_mipro.errors import ConfigInvalid, KeyMissing, UpstreamTimedOut
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.upstream.addresses import AllowedHost
from prefect_mipro.server.upstreams import upstreams_of
from tests.server.scripted_upstream import ScriptedUpstream, answers, hang

BODY: ChatBody = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


async def call(
    settings: ServerSettings, provider: str, *, key: str | None = None, url: str | None = None
) -> tuple[int, str | None]:
    """One call; its status, and the model that answered in place of the one asked."""
    upstreams = upstreams_of(settings)
    try:
        upstream = upstreams.named(provider, inference_url=url)
        async with upstream.chat(BODY, api_key=SecretStr(key) if key else None) as reply:
            await reply.read()
            return reply.status, reply.model
    finally:
        await upstreams.close()


def told(providers: dict[str, Any], **more: Any) -> ServerSettings:
    return ServerSettings(providers=providers, **more)


async def test_a_provider_has_its_own_key_headers_and_repeats() -> None:
    with ScriptedUpstream() as server:
        server.script.append(answers(503))
        provider = {
            "base_url": server.url,
            "api_key": "sk-1",
            "headers": {"X-Team": "a"},
            "repeats": 0,
        }
        assert await call(told({"groq": provider}), "groq") == (503, None)
        (received,) = server.received
    assert received.headers["authorization"] == "Bearer sk-1"
    assert received.headers["x-team"] == "a"


async def test_a_provider_may_be_the_default_one() -> None:
    with ScriptedUpstream() as server:
        assert await call(told({"default": {"base_url": server.url}}), "openai") == (200, None)


async def test_a_timeout_of_its_own_goes_before_the_servers() -> None:
    with ScriptedUpstream() as server:
        server.script.extend([hang] * 2)
        hasty = {"base_url": server.url, "timeouts": {"first_byte_seconds": 0.05}}
        with pytest.raises(UpstreamTimedOut, match=r"within 0\.05 seconds"):
            await call(told({"p": hasty}), "p")
        settings = told({"p": {"base_url": server.url}}, upstream_first_byte_timeout_seconds=0.06)
        with pytest.raises(UpstreamTimedOut, match=r"within 0\.06 seconds"):
            await call(settings, "p")


async def test_a_fallback_may_be_another_model_of_another_provider() -> None:
    with ScriptedUpstream() as first, ScriptedUpstream() as second:
        first.script.append(answers(500))
        providers = {
            "one": {"base_url": first.url, "fallback": {"provider": "two", "model": "spare"}},
            "two": {"base_url": second.url, "api_key": "sk-2"},
        }
        assert await call(told(providers), "one") == (200, "spare")
        assert second.received[0].headers["authorization"] == "Bearer sk-2"


async def test_a_fallback_may_be_another_model_of_the_same_provider() -> None:
    with ScriptedUpstream() as server:
        server.script.append(answers(500))
        providers = {"one": {"base_url": server.url, "fallback": {"model": "spare"}}}
        assert await call(told(providers), "one") == (200, "spare")
        assert [received.body["model"] for received in server.received] == ["m", "spare"]


async def test_a_provider_may_ask_for_the_callers_own_key() -> None:
    with ScriptedUpstream() as server:
        settings = told({"own": {"base_url": server.url, "caller_key": "required"}})
        with pytest.raises(KeyMissing):
            await call(settings, "own")
        assert await call(settings, "own", key="sk-caller") == (200, None)
        assert server.received[0].headers["authorization"] == "Bearer sk-caller"


async def test_an_inference_url_gets_the_callers_key_and_none_of_the_servers() -> None:
    with ScriptedUpstream() as server:
        settings = ServerSettings(
            upstream_url="http://default.invalid/v1",
            upstream_api_key=SecretStr("sk-default"),
            allowed_inference_hosts=(AllowedHost("127.0.0.1"),),
        )
        await call(settings, "default", url=server.url)
        await call(settings, "default", url=server.url, key="sk-caller")
        assert "authorization" not in server.received[0].headers
        assert server.received[1].headers["authorization"] == "Bearer sk-caller"


async def test_an_inference_url_of_another_host_is_refused_at_each_call() -> None:
    with pytest.raises(ConfigInvalid, match=r"leads to elsewhere\.invalid"):
        await call(told({}), "default", url="http://elsewhere.invalid/v1")
