"""What becomes of a call, and of its session, when the model's server fails."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from prefect_mipro.server.upstream.openai import LARGEST_ANSWER_BYTES
from tests.end_to_end.faults.served import Counted, Served, served
from tests.server.scripted_upstream import (
    COMPLETION,
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
    speak_no_http,
)

PATIENCE_SECONDS = 0.3
# The wait for what is too slow, two repeats, and a machine with other work.
IN_TIME_SECONDS = 8.0
WHOLE = json.dumps(COMPLETION).encode()


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def backend(
    upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    database = tmp_path_factory.mktemp("faults") / "mipro.db"
    with served(
        upstream.url,
        database_url=f"sqlite:///{database}",
        upstream_first_byte_timeout_seconds=PATIENCE_SECONDS,
        upstream_silence_timeout_seconds=PATIENCE_SECONDS,
        upstream_total_timeout_seconds=4 * PATIENCE_SECONDS,
    ) as backend:
        yield backend


@pytest.fixture(autouse=True)
def _nothing_scripted(upstream: ScriptedUpstream) -> None:
    upstream.reset()


def reset(connection: Connection) -> None:
    """The connection is torn down: the peer has crashed."""
    no_wait = struct.pack("ii", 1, 0)
    connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_wait)
    connection.close_connection = True
    connection.connection.close()


def stall(connection: Connection) -> None:
    """The first bytes of an answer, then nothing."""
    connection.answer(WHOLE[:20], length=len(WHOLE))
    connection.wait_until_gone()


def drip(connection: Connection) -> None:
    """A byte now and then, never silent for long."""
    connection.answer(b"{", length=100_000)
    while True:
        connection.wfile.write(b" ")
        time.sleep(PATIENCE_SECONDS / 4)


def page(connection: Connection) -> None:
    connection.answer(b"<html>Sign in</html>", content_type="text/html")


def cut_off(connection: Connection) -> None:
    """A stream in chunks, as HTTP has them, whose last one never comes."""
    connection.send_response(200)
    connection.send_header("Content-Type", "text/event-stream")
    connection.send_header("Transfer-Encoding", "chunked")
    connection.end_headers()
    piece = event("a")
    connection.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    connection.drop()


# Made before, so that the head of the answer does not wait for it.
HUGE = b" " * (LARGEST_ANSWER_BYTES + 1) + WHOLE


def huge(connection: Connection) -> None:
    try:
        connection.answer(HUGE)
    except ConnectionError:
        connection.close_connection = True  # the backend has seen enough


def interim(status: int, then: Script) -> Script:
    """The head of what comes before an answer."""

    def script(connection: Connection) -> None:
        connection.wfile.write(b"HTTP/1.1 %d Wait\r\nServer: x\r\n\r\n" % status)
        then(connection)

    return script


def half(connection: Connection) -> None:
    connection.answer(WHOLE[:40])


def no_content(connection: Connection) -> None:
    connection.answer(b"", status=204, content_type="text/event-stream")


def bytes_of_no_text(connection: Connection) -> None:
    connection.answer(b"\x00\xff\xfe\x80 no text")


def said(*pieces: bytes, then: Script | None = None) -> Script:
    """A stream of these pieces."""

    def script(connection: Connection) -> None:
        connection.begin_stream()
        for piece in pieces:
            connection.wfile.write(piece)
        if then is not None:
            then(connection)

    return script


@dataclass(frozen=True)
class Fault:
    """What the model's server does to one call, with its repeats, and what the caller is told."""

    name: str
    script: tuple[Script, ...]
    status: int
    error: str = ""
    message: str = ""
    retry_after: str | None = None

    def __str__(self) -> str:
        return self.name


REFUSED = "told so"
BEFORE_THE_ANSWER = [
    Fault("a slow first byte", (hang,), 504, "UpstreamTimedOut", "did not begin its answer within"),
    Fault("a connection that ends", (drop,) * 3, 502, "UpstreamUnreachable", "cannot reach"),
    Fault("a connection that is reset", (reset,) * 3, 502, "UpstreamUnreachable", "cannot reach"),
    Fault("no HTTP", (speak_no_http,), 502, "UpstreamFailed", "not HTTP"),
    Fault("a redirect", (answers(302, location="http://x"),), 502, "UpstreamFailed", "redirects"),
    Fault("101", (interim(101, drop),), 502, "UpstreamFailed", "status 101"),
    Fault("150", (interim(150, drop),) * 3, 502, "UpstreamUnreachable", "cannot reach"),
    Fault("150, silence", (interim(150, hang),), 504, "UpstreamTimedOut", "did not begin"),
    Fault("429", (answers(429),) * 3, 429, message=REFUSED),
    Fault("429, come back", (answers(429, retry_after="11"),), 429, "", REFUSED, retry_after="11"),
    Fault("500", (answers(500),), 500, message=REFUSED),
    Fault("503", (answers(503),) * 3, 503, message=REFUSED),
    Fault("a refusal of bytes", (answers(500, b"\x00\xff"),), 500),
]
IN_THE_ANSWER = [
    Fault("a stall", (stall,), 504, "UpstreamTimedOut", "fell silent in the middle"),
    Fault("a drip", (drip,), 504, "UpstreamTimedOut", "took longer to answer than 1.2 seconds"),
    Fault("a broken-off answer", (break_off,), 502, "UpstreamUnreachable", "broke off"),
    Fault("half of the JSON", (half,), 502, "CompletionInvalid", "not JSON"),
    Fault("a huge answer", (huge,), 502, "UpstreamFailed", "32 MB"),
    Fault("bytes", (bytes_of_no_text,), 502, "CompletionInvalid", "not JSON"),
    Fault("a page", (page,), 502, "CompletionInvalid", "not JSON"),
    Fault("a number", (answers(200, b"7"),), 502, "CompletionInvalid", "not an object"),
    Fault("no choices", (answers(200, b"{}"),), 502, "CompletionInvalid", "without choices"),
]
WITHOUT_EVENTS = [
    Fault("nothing", (said(),), 502, "CompletionInvalid", "a stream without events"),
    Fault("empty lines", (said(b"\r\n\n"),), 502, "CompletionInvalid", "a stream without events"),
    Fault("an end", (said(b"data: [DO", b"NE]\n\n"),), 502, "CompletionInvalid", "without events"),
    Fault("204", (no_content,), 502, "CompletionInvalid", "a stream without events"),
    Fault("silence", (said(then=hang),), 504, "UpstreamTimedOut", "fell silent"),
    Fault("a chunk less", (said(then=drop),), 502, "CompletionInvalid", "without events"),
]
IN_THE_STREAM = [
    Fault("a comment", (said(b": wait\n\n"),), 200, "UpstreamUnreachable", "mid-answer"),
    Fault("an end", (said(event("a")),), 200, "UpstreamUnreachable", "mid-answer"),
    Fault("a chunk less", (cut_off,), 200, "UpstreamUnreachable", "broke off"),
    Fault("half an event", (said(event("a")[:30]),), 200, "UpstreamUnreachable", "mid-answer"),
    Fault("silence", (said(event("a"), then=hang),), 200, "UpstreamTimedOut", "fell silent"),
    Fault("bytes", (said(b"\x00\xff\n\n\xfe"),), 200, "UpstreamUnreachable", "mid-answer"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", BEFORE_THE_ANSWER, ids=str)
def test_a_fault_before_the_answer_is_told_as_it_is_and_costs_nothing(
    backend: Served, upstream: ScriptedUpstream, fault: Fault, stream: bool
) -> None:
    session = backend.session()
    upstream.script.extend(fault.script)
    _require_told(session.call("r1", stream=stream), fault)
    assert (len(upstream.received), len(upstream.script)) == (len(fault.script), 0)
    assert session.counted() == Counted(rollouts=1, calls=1, failed_calls=1)
    assert session.tokens() == (0, 0)
    session.goes_on()
    assert session.tokens() == (7, 2)


@pytest.mark.parametrize(
    ("fault", "stream"),
    [(fault, False) for fault in IN_THE_ANSWER] + [(fault, True) for fault in WITHOUT_EVENTS],
    ids=str,
)
def test_a_fault_in_the_answer_is_told_as_it_is_and_never_repeated(
    backend: Served, upstream: ScriptedUpstream, fault: Fault, stream: bool
) -> None:
    session = backend.session()
    upstream.script.extend(fault.script)
    _require_told(session.call("r1", stream=stream), fault)
    assert len(upstream.received) == 1
    assert session.counted() == Counted(rollouts=1, calls=1, failed_calls=1)
    # The model has worked, and nobody says how much.
    assert session.tokens()[0] > 0
    session.goes_on()


@pytest.mark.parametrize("fault", IN_THE_STREAM, ids=str)
def test_a_fault_in_a_stream_ends_it_with_an_error_that_clients_raise(
    backend: Served, upstream: ScriptedUpstream, fault: Fault
) -> None:
    session = backend.session()
    upstream.script.extend(fault.script)
    began = time.monotonic()
    answer = session.call("r1", stream=True)
    assert answer.status_code == 200
    last = answer.content.rpartition(b"data: ")[2]
    _require_error(json.loads(last), fault)
    assert time.monotonic() - began < IN_TIME_SECONDS
    assert session.counted() == Counted(rollouts=1, calls=1, failed_calls=1)
    session.goes_on()


@pytest.mark.parametrize(
    "first", [drop, reset, answers(429), answers(429, retry_after="1"), answers(503)]
)
def test_a_passing_fault_is_bridged_and_counts_as_one_call(
    backend: Served, upstream: ScriptedUpstream, first: Script
) -> None:
    session = backend.session()
    upstream.script.extend([first, complete])
    assert session.call("r1").status_code == 200
    assert len(upstream.received) == 2
    assert session.counted() == Counted(rollouts=1, calls=1)
    assert session.tokens() == (7, 2)


def test_a_stream_of_another_content_type_is_an_answer_all_the_same(
    backend: Served, upstream: ScriptedUpstream
) -> None:
    session = backend.session()
    upstream.script.append(lambda c: c.answer(WHOLE, content_type="text/plain"))
    answer = session.call("r1", stream=True)
    assert (answer.status_code, answer.content) == (200, WHOLE)
    assert session.counted() == Counted(rollouts=1, calls=1)


def test_a_rollout_whose_call_failed_keeps_its_candidate_and_is_rewarded(
    backend: Served, upstream: ScriptedUpstream
) -> None:
    session = backend.session()
    upstream.script.append(answers(500))
    candidates = {session.call("r1").headers["x-mipro-candidate-id"] for _ in range(3)}
    assert len(candidates) == 1
    assert session.reward("r1").json()["candidate_id"] in candidates
    assert session.counted() == Counted(rollouts=1, calls=3, failed_calls=1, rewards=1)


def test_a_healthy_answer_leaves_healthy_counters(backend: Served) -> None:
    session = backend.session()
    for number in range(3):
        session.goes_on(f"r{number}")
    assert session.counted() == Counted(rollouts=3, calls=3, rewards=3)


@pytest.mark.parametrize("end", [DONE, b"data: [DONE]\n\n"])
def test_a_stream_that_is_complete_is_no_failure(
    backend: Served, upstream: ScriptedUpstream, end: bytes
) -> None:
    session = backend.session()
    upstream.script.append(said(event("a"), end))
    assert session.call("r1", stream=True).status_code == 200
    assert session.counted() == Counted(rollouts=1, calls=1)


def _require_told(answer: httpx.Response, fault: Fault) -> None:
    assert answer.status_code == fault.status, answer.text
    assert answer.headers.get("retry-after") == fault.retry_after
    assert answer.elapsed.total_seconds() < IN_TIME_SECONDS
    _require_error(answer.json(), fault)


def _require_error(body: Any, fault: Fault) -> None:
    assert fault.message in body["error"]["message"]
    if fault.error:
        assert body["error"]["code"] == fault.error
