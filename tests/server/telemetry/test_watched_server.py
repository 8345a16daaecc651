"""A whole server as those see it who watch it: its metrics, its spans, its log."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.telemetry.spans import Spans
from tests.server.live import LiveServer
from tests.server.scripted_upstream import (
    DONE,
    Connection,
    Script,
    ScriptedUpstream,
    answers,
    break_off,
    complete,
    drop,
    event,
    hang,
)

KEY = "a-key-of-the-tests"
SESSIONS = "/api/v1/online/sessions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "where?"}]}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"
NAME = re.compile(r"`(mipro_[a-z_]+)`")
MOST_SCRAPES = 500
Sample = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Watched:
    """A server with a session `s`, one who calls it, and what its spans are kept in."""

    http: httpx.Client
    upstream: ScriptedUpstream
    exporter: InMemorySpanExporter
    chat_path: str

    def chat(self, *scripts: Script, stream: bool = False, **headers: str) -> httpx.Response:
        self.upstream.script.extend(scripts)
        return self.http.post(self.chat_path, json=CHAT | {"stream": stream}, headers=headers)

    def samples(self) -> dict[Sample, float]:
        """All numbers, once no call is under way: some end just after their answer."""
        for _ in range(MOST_SCRAPES):
            families = text_string_to_metric_families(self.http.get("/metrics").text)
            samples = {
                (sample.name, frozenset(sample.labels.items())): sample.value
                for family in families
                for sample in family.samples
            }
            if not samples["mipro_proxy_calls_in_flight", frozenset()]:
                return samples
        raise AssertionError("a call does not end")

    def risen(self, before: dict[Sample, float], name: str) -> dict[str, float]:
        """What has been added to a counter since, by the first of its labels' values."""
        now = self.samples()
        return {
            dict(labels).get("outcome") or dict(labels).get("kind", ""): value - before.get(key, 0)
            for key, value in now.items()
            if key[0] == name and value != before.get(key, 0)
            for labels in [key[1]]
        }

    def spans(self) -> dict[str, ReadableSpan]:
        """All spans that have ended, by name, once no call is under way."""
        self.samples()
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture(scope="module")
def _live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with ScriptedUpstream() as upstream:
        settings = ServerSettings(
            database_url=f"sqlite:///{tmp_path_factory.mktemp('watched')}/mipro.db",
            api_keys=(SecretStr(KEY),),
            upstream_url=upstream.url,
        )
        with (
            LiveServer(create_app(settings, tracing=Spans(provider))) as server,
            httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=20) as http,
        ):
            config = {"prompt_learning": {"algorithm": "mipro"}}
            made = http.post(SESSIONS, json={"session_id": "s", "config_body": config})
            path = urlsplit(made.json()["online_url"]).path
            yield Watched(http, upstream, exporter, f"{path}/r/chat/completions")
    provider.shutdown()


@pytest.fixture
def watched(_live: Watched) -> Watched:
    _live.upstream.reset()
    _live.exporter.clear()
    return _live


def stream(upstream: ScriptedUpstream) -> Script:
    return upstream.stream(event("hello") + DONE)


def half_a_stream(upstream: ScriptedUpstream) -> Script:
    def script(connection: Connection) -> None:
        connection.answer(event("hello"), content_type="text/event-stream", length=1_000)
        connection.drop()

    return script


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (complete, "ok"),
        (answers(400), "upstream_refused"),
        (answers(401), "upstream_refused"),
        (answers(500), "upstream_error"),
        (answers(200, b"no completion"), "upstream_error"),
        (answers(429, retry_after="3600"), "rate_limited"),
        (break_off, "unreachable"),
    ],
)
def test_each_call_is_counted_by_how_it_ended(
    watched: Watched, script: Script, outcome: str
) -> None:
    before = watched.samples()
    watched.chat(script)
    assert watched.risen(before, "mipro_proxy_calls_total") == {outcome: 1}


def test_a_call_without_a_place_to_go_is_unreachable_after_its_repeats(watched: Watched) -> None:
    before = watched.samples()
    watched.chat(drop, drop, drop)
    assert watched.risen(before, "mipro_proxy_calls_total") == {"unreachable": 1}


@pytest.mark.parametrize(("make", "outcome"), [(stream, "ok"), (half_a_stream, "unreachable")])
def test_streams_are_counted_as_streams(
    watched: Watched, make: Callable[[ScriptedUpstream], Script], outcome: str
) -> None:
    before = watched.samples()
    watched.chat(make(watched.upstream), stream=True)
    assert watched.risen(before, "mipro_proxy_calls_total") == {outcome: 1}
    streams = frozenset({("streaming", "true")})
    key = ("mipro_proxy_first_byte_seconds_count", streams)
    assert watched.samples()[key] == before[key] + 1


def test_what_is_refused_here_is_the_callers_error(watched: Watched) -> None:
    before = watched.samples()
    watched.http.post(watched.chat_path, json={"messages": "text"})
    watched.http.post("/api/mipro/v1/unknown/r/chat/completions", json=CHAT)
    assert watched.risen(before, "mipro_proxy_calls_total") == {"client_error": 2}


def test_a_caller_that_leaves_is_a_cancelled_call(watched: Watched) -> None:
    before = watched.samples()
    watched.upstream.script.append(hang)
    with pytest.raises(httpx.ReadTimeout):
        watched.http.post(watched.chat_path, json=CHAT, timeout=0.3)
    assert watched.upstream.gone.wait(20)
    assert watched.risen(before, "mipro_proxy_calls_total") == {"cancelled": 1}


def test_tokens_and_rewards_are_counted(watched: Watched) -> None:
    before = watched.samples()
    watched.chat()
    for score in (1.0, 1.0, 0.0, 7.0):
        reward = {"rollout_id": "r", "reward_info": {"score": score}}
        watched.http.post(f"{SESSIONS}/s/reward", json=reward)
    assert watched.risen(before, "mipro_proxy_tokens_total") == {"prompt": 7, "completion": 2}
    assert watched.risen(before, "mipro_rewards_total") == {
        "attached": 1,
        "duplicate": 1,
        "refused": 2,
    }


def test_a_proposal_round_is_counted_with_what_its_model_took_and_what_it_made(
    watched: Watched,
) -> None:
    before = watched.samples()
    _propose(watched)
    risen = watched.samples()
    rounds = watched.risen(before, "mipro_proposal_rounds_total")
    assert rounds == {"finished": 1}
    assert watched.risen(before, "mipro_proposer_tokens_total")["prompt"] >= 7
    made = ("mipro_lever_versions_total", frozenset({("lever", "instruction")}))
    assert risen[made] > before[made]
    spans = watched.spans()
    attributes = dict(spans["proposal_round"].attributes or {})
    assert spans["proposal_round"].parent == spans["reward"].context
    assert attributes["mipro.outcome"] == "finished"
    assert attributes["mipro.session_id"] == "proposing"


def test_the_documents_table_is_what_is_shown(watched: Watched) -> None:
    watched.chat(drop, drop, drop)
    shown = {
        (_full_name(family.name, family.type), family.type, _labels(family))
        for family in text_string_to_metric_families(watched.http.get("/metrics").text)
        if family.name.startswith("mipro_")
    }
    assert set(_documented()) == shown


def test_the_document_speaks_of_no_other_metrics() -> None:
    text = DOCUMENT.read_text()
    known = {name for name, _, _ in _documented()}
    parts = ("_bucket", "_sum", "_count")
    for name in set(re.findall(r"\bmipro_[a-z_]+", text)):
        whole = next((name.removesuffix(part) for part in parts if name.endswith(part)), name)
        assert {name, whole} & known, name


def test_openmetrics_is_spoken_to_those_who_ask_for_it(watched: Watched) -> None:
    asked = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = watched.http.get("/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_metrics_ask_for_a_key_where_the_api_does(watched: Watched) -> None:
    answer = watched.http.get("/metrics", headers={"x-api-key": "another"})
    assert answer.status_code == 401
    assert "mipro_proxy" not in answer.text


@pytest.mark.parametrize(
    "open_to_all", [{"api_keys": (SecretStr(KEY),), "public_metrics": True}, {}]
)
def test_metrics_are_open_where_the_server_says_so_or_has_no_keys(
    tmp_path: Path, open_to_all: dict[str, Any]
) -> None:
    settings = ServerSettings(database_url=f"sqlite:///{tmp_path}/mipro.db", **open_to_all)
    with LiveServer(create_app(settings)) as server:
        assert "mipro_proxy_calls_total" in httpx.get(f"{server.url}/metrics").text


def test_the_callers_trace_goes_through_us_to_the_model(watched: Watched) -> None:
    watched.chat(traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01", baggage="user=private")
    (received,) = watched.upstream.received
    spans = watched.spans()
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE_ID}
    sent = received.headers["traceparent"].split("-")
    assert sent[1] == TRACE_ID
    assert int(sent[2], 16) == spans["POST /chat/completions"].context.span_id
    assert "baggage" not in received.headers


@pytest.mark.parametrize("streamed", [False, True])
def test_a_calls_span_says_what_it_took(watched: Watched, streamed: bool) -> None:
    usage = b'data: {"id": "1", "choices": [], "usage": {"prompt_tokens": 7, '
    usage += b'"completion_tokens": 2}}\n\n'
    script = watched.upstream.stream(event("hello") + usage + DONE) if streamed else complete
    answer = watched.chat(script, stream=streamed)
    attributes = dict(watched.spans()["chat m"].attributes or {})
    assert attributes["gen_ai.usage.input_tokens"] == 7
    assert attributes["gen_ai.request.stream"] is streamed
    assert attributes["mipro.candidate_id"] == answer.headers["x-mipro-candidate-id"]
    assert attributes["mipro.session_id"] == "s"
    assert attributes["mipro.outcome"] == "ok"


def test_a_rewards_span_joins_the_callers_trace(watched: Watched) -> None:
    watched.http.post(
        f"{SESSIONS}/s/reward",
        json={"rollout_id": "of-the-future", "reward_info": {"score": 1.0}},
        headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
    )
    span = watched.spans()["reward"]
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert dict(span.attributes or {})["mipro.outcome"] == "waiting"


def test_no_span_holds_the_secret_of_a_session(watched: Watched) -> None:
    secret = watched.chat_path.split("/")[4].rpartition(".")[2]
    watched.chat()
    watched.chat(drop, drop, drop)
    assert len(secret) > 8
    assert all(secret not in span.to_json() for span in watched.spans().values())


def test_the_web_framework_makes_no_spans_of_its_own(tmp_path: Path) -> None:
    program = f"""
import asyncio, httpx
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings

async def main():
    app = create_app(ServerSettings(database_url="sqlite:///{tmp_path}/mipro.db"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            await http.post("/api/mipro/v1/s.secret/r/chat/completions", json={{}})
            await http.get("/health")

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == ""


def _propose(watched: Watched) -> None:
    """One rewarded rollout in a session that proposes after each."""
    config = {
        "prompt_learning": {
            "algorithm": "mipro",
            "initial_prompt": {
                "messages": [{"role": "system", "order": 0, "pattern": "Answer with one word."}]
            },
            "mipro": {"online_proposer_min_rollouts": 1, "online_proposer_min_rewards": 1},
        }
    }
    body = {"session_id": "proposing", "config_body": config}
    online = urlsplit(watched.http.post(SESSIONS, json=body).json()["online_url"]).path
    messages = [
        {"role": "system", "content": "Answer with one word."},
        {"role": "user", "content": "where?"},
    ]
    watched.http.post(f"{online}/r/chat/completions", json={"messages": messages})
    written = "<instruction>Answer with one short and polite word.</instruction>"
    choice = {"message": {"role": "assistant", "content": written}, "finish_reason": "stop"}
    completion = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    watched.upstream.script.extend([answers(200, json.dumps(completion).encode())] * 9)
    reward = {"rollout_id": "r", "reward_info": {"score": 1.0}}
    watched.http.post(f"{SESSIONS}/proposing/reward", json=reward)
    for _ in range(MOST_SCRAPES):
        if watched.http.get(f"{SESSIONS}/proposing").json()["proposal_seq"]:
            return
    raise AssertionError("no round comes")


def _documented() -> Iterator[tuple[str, str, frozenset[str]]]:
    """Names, types and labels of the rows of the table of metrics."""
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and (named := NAME.fullmatch(cells[0])):
            yield named[1], cells[1], frozenset(re.findall(r"`(\w+)`", cells[2]))


def _labels(family: Metric) -> frozenset[str]:
    """Those of its own: `le` is every histogram's."""
    return frozenset(label for sample in family.samples for label in sample.labels) - {"le"}


def _full_name(name: str, kind: str) -> str:
    """The parser takes the ending of counters off."""
    return f"{name}_total" if kind == "counter" else name
