"""A server process whose environment asks for spans, and whose log is JSON."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.server.scripted_upstream import ScriptedUpstream
from tests.server.test_main import ended, first_line, process

CONFIG = {"prompt_learning": {"algorithm": "mipro"}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "a private prompt"}]}


def test_it_writes_spans_where_it_is_told_and_its_log_as_json(tmp_path: Path) -> None:
    with (
        ScriptedUpstream() as upstream,
        process(
            tmp_path,
            *("--upstream-url", upstream.url, "--log-format", "json", "--log-level", "debug"),
            OTEL_TRACES_EXPORTER="console",
            OTEL_SERVICE_NAME="mine",
        ) as child,
    ):
        url = first_line(child)
        body = {"session_id": "s", "config_body": CONFIG}
        online_url = httpx.post(f"{url}/api/v1/online/sessions", json=body).json()["online_url"]
        httpx.post(f"{online_url}/r/chat/completions", json=CHAT, headers={"x-request-id": "req-7"})
        child.terminate()
        _, _, told = ended(child)
    lines = [json.loads(line) for line in told.splitlines() if line.startswith('{"')]
    (call,) = [line for line in lines if line["event"] == "proxied call"]
    assert (call["outcome"], call["rollout_id"], call["request_id"]) == ("ok", "r", "req-7")
    assert '"name": "chat m"' in told
    assert '"service.name": "mine"' in told
    assert "traceparent" in upstream.received[0].headers
    assert online_url.rpartition(".")[2] not in told
    assert "a private prompt" not in told
