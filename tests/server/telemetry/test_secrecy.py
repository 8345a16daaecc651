"""Nothing that watches the server shows a prompt, an answer, a key or a session's secret."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr

from prefect_mipro.server.app import create_app
from prefect_mipro.server.logs import EventFormatter, JsonFormatter
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.telemetry.spans import Spans
from tests.server.live import LiveServer
from tests.server.scripted_upstream import DONE, Connection, ScriptedUpstream, answers, drop, event

KEY = "planted-api-key"
UPSTREAM_KEY = "planted-upstream-key"
CALLERS_KEY = "planted-provider-key"
PROMPT = "planted prompt"
ANSWER = "planted answer"
FEEDBACK = "planted feedback"
SESSION_SECRET = "<the secret of the session>"
SESSIONS = "/api/v1/online/sessions"
CONFIG: dict[str, Any] = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": PROMPT},
                {"role": "user", "order": 1, "pattern": "{query}"},
            ],
            "wildcards": {"query": "REQUIRED"},
        },
    }
}
CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": PROMPT}, {"role": "user", "content": PROMPT}],
}


def speak_of_it(connection: Connection) -> None:
    """A stream whose second event is an error that quotes."""
    connection.begin_stream()
    connection.wfile.write(event(ANSWER) + b'data: {"error": {"message": "planted answer"}}\n\n')


def break_off(connection: Connection) -> None:
    connection.begin_stream()
    connection.wfile.write(event(ANSWER))


UNPLEASANT = {
    "no completion": answers(200, ANSWER.encode()),
    "an error that is a success": answers(200, b'{"error": {"message": "planted answer"}}'),
    "no choices": answers(200, b'{"text": "planted answer"}'),
    "bad request": answers(400, b'{"error": {"message": "planted answer"}}'),
    "a fault": answers(500, ANSWER.encode()),
    "gone": drop,
    "an error in the stream": speak_of_it,
    "half a stream": break_off,
}


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that the log shows at its most talkative, in both formats."""
    written = io.StringIO()
    ours, root = logging.getLogger("prefect_mipro"), logging.getLogger()
    streams = [logging.StreamHandler(written) for _ in range(2)]
    level = ours.level
    for stream, formatter in zip(streams, (EventFormatter(), JsonFormatter()), strict=True):
        stream.setFormatter(formatter)
        root.addHandler(stream)
    ours.setLevel(logging.DEBUG)
    try:
        yield written
    finally:
        ours.setLevel(level)
        for stream in streams:
            root.removeHandler(stream)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The log, the metrics and the spans of a server that has seen all kinds of calls."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with ScriptedUpstream() as upstream, logged() as log:
        settings = ServerSettings(
            database_url=f"sqlite:///{tmp_path_factory.mktemp('planted')}/mipro.db",
            api_keys=(SecretStr(KEY),),
            upstream_url=upstream.url,
            upstream_api_key=SecretStr(UPSTREAM_KEY),
        )
        with (
            LiveServer(create_app(settings, tracing=Spans(provider))) as server,
            httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=20) as http,
        ):
            body = {"session_id": "s", "config_body": CONFIG}
            online = urlsplit(http.post(SESSIONS, json=body).json()["online_url"]).path
            chat = f"{online}/r/chat/completions"
            for script in UNPLEASANT.values():
                upstream.script.extend([script] * 3)
                http.post(chat, json=CHAT, headers={"x-provider-key": CALLERS_KEY})
                upstream.script.clear()
            upstream.script.append(upstream.stream(event(ANSWER) + DONE))
            http.post(chat, json=CHAT | {"stream": True})
            http.post(chat, json=CHAT)
            http.post(
                chat,
                content=f'{{"messages": "{PROMPT}"',
                headers={"Content-Type": "application/json"},
            )
            http.post(chat, json={"messages": PROMPT})
            http.post(f"{online}x/chat/completions", json=CHAT, headers={"x-api-key": "wrong"})
            http.post(f"{online}/r/nowhere", json=CHAT)
            reward = {"score": 1.0, "feedback": FEEDBACK}
            for score in (1.0, 7.0):
                reward["score"] = score
                sent = {"rollout_id": "r", "reward_info": reward}
                http.post(f"{SESSIONS}/s/reward", json=sent)
            metrics = http.get("/metrics").text
    assert "request failed" in log.getvalue()
    #    assert 'mipro_rewards_total{outcome="attached"} 1.0' in metrics
    spans = "\n".join(span.to_json() for span in exporter.get_finished_spans())
    assert '"mipro.outcome": "unreachable"' in spans
    provider.shutdown()
    secret = online.rpartition(".")[2]
    return "\n".join((log.getvalue(), metrics, spans)).replace(secret, SESSION_SECRET)


@pytest.mark.parametrize(
    "planted",
    [KEY, UPSTREAM_KEY, CALLERS_KEY, PROMPT, ANSWER, FEEDBACK, SESSION_SECRET],
)
def test_what_is_planted_is_never_shown(shown: str, planted: str) -> None:
    assert planted not in shown
