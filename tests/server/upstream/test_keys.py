"""Keys: which one goes with a call, and that none is ever shown."""

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from prefect_mipro.errors import KeyMissing, KeyRejected, MiproError
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.patience import BackOff
from tests.server.scripted_upstream import Script, ScriptedUpstream, answers, drop, speak_no_http

BODY: ChatBody = {"messages": [{"role": "user", "content": "hi"}]}
AT_ONCE = BackOff(first_wait_seconds=0.0)


async def call(upstream: OpenAIUpstream, key: str | None = None) -> None:
    try:
        async with upstream.chat(
            BODY, api_key=SecretStr(key) if key is not None else None
        ) as reply:
            await reply.read()
    finally:
        await upstream.close()


async def test_a_callers_key_takes_the_place_of_the_providers_for_one_call() -> None:
    with ScriptedUpstream() as server:
        upstream = OpenAIUpstream(server.url, api_key=SecretStr("sk-provider"))
        for key in (SecretStr("sk-caller"), None):
            async with upstream.chat(BODY, api_key=key) as reply:
                await reply.read()
        await upstream.close()
    keys = [received.headers["authorization"] for received in server.received]
    assert keys == ["Bearer sk-caller", "Bearer sk-provider"]


async def test_a_required_key_that_is_missing_is_a_401_that_names_the_header() -> None:
    upstream = OpenAIUpstream("http://own.invalid/v1", caller_key_required=True)
    with pytest.raises(KeyMissing, match="x-provider-key") as error:
        await call(upstream)
    assert error.value.status == 401


async def test_a_required_key_that_is_there_is_sent() -> None:
    with ScriptedUpstream() as server:
        await call(OpenAIUpstream(server.url, caller_key_required=True), "sk-caller")
    assert server.received[0].headers["authorization"] == "Bearer sk-caller"


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
async def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(KeyRejected) as error:
        await call(OpenAIUpstream("http://own.invalid/v1"), key)
    assert not key or key not in str(error.value)


@pytest.mark.parametrize(
    "script", [drop, speak_no_http, answers(307, location="http://x/"), answers(503)]
)
async def test_no_key_is_in_any_error_log_or_repr(
    caplog: pytest.LogCaptureFixture, script: Script
) -> None:
    with ScriptedUpstream() as server, caplog.at_level(logging.DEBUG):
        server.script.extend([script] * 3)
        upstream = OpenAIUpstream(
            f"{server.url}?key=sk-query",
            api_key=SecretStr("sk-provider"),
            headers={"api-key": "sk-header"},
            back_off=AT_ONCE,
        )
        shown = [repr(upstream), repr(upstream.chat(BODY, api_key=SecretStr("sk-caller")))]
        try:
            await call(upstream, "sk-caller")
        except MiproError as error:
            shown += [str(error), repr(error), repr(error.__cause__), repr(error.detail)]
    shown += [str(vars(record)) for record in caplog.records if record.name.startswith("prefect")]
    assert "sk-" not in "".join(shown)


@pytest.mark.parametrize("status", [200, 401, 429])
async def test_a_key_that_the_server_quotes_is_taken_out_of_its_answer(status: int) -> None:
    said = b'{"error": {"message": "no such key: sk-provider, sk-header or sk-caller"}}'
    with ScriptedUpstream() as server:
        server.script.append(answers(status, said))
        upstream = OpenAIUpstream(
            server.url,
            api_key=SecretStr("sk-provider"),
            headers={"x-api-key": "sk-header", "x-team": "such key"},
            back_off=BackOff(repeats=0),
        )
        async with upstream.chat(BODY, api_key=SecretStr("sk-caller")) as reply:
            body = await reply.read()
        await upstream.close()
    assert body == b'{"error": {"message": "no such key: ***, *** or ***"}}'


async def test_no_key_follows_a_redirect() -> None:
    with ScriptedUpstream() as server, ScriptedUpstream() as elsewhere:
        server.script.append(answers(307, location=f"{elsewhere.url}/chat/completions"))
        with pytest.raises(MiproError, match="redirects"):
            await call(OpenAIUpstream(server.url), "sk-caller")
        assert elsewhere.received == []
