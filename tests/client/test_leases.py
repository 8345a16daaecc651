"""Leases and posted traces as clients and sessions ask for them, each in both of its forms."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from prefect_mipro.client import operations
from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.client.operations import Operation
from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.errors import AnswerInvalid, Conflict, InputInvalid, RolloutNotFound
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from tests.client.backend import Answer, Backend
from tests.client.conftest import Call

PROMPT = "/api/v1/online/sessions/s/prompt"
TRACES = "/api/v1/online/sessions/s/rollouts/r1/traces"
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Name the intent."},
    {"role": "user", "content": "Query: where is my card?"},
]
LEASE: dict[str, Any] = {
    "online_url": "http://h/o",
    "proxy_url": "http://h/o",
    "chat_completions_url": "http://h/o/chat/completions",
    "session_id": "s",
    "rollout_id": "r1",
    "candidate_id": "cand_1",
    "number": 2,
    "levers": {
        "instruction": {"lever_id": "i", "version": 2, "text": "Name the intent."},
        "demonstrations": {"lever_id": "d", "version": 1, "demonstrations": []},
    },
    "lever_versions": {"p": 2, "i": 2, "d": 1},
    "placeholders": [{"name": "query", "required": True}],
    "policy": {"model": "m", "temperature": None, "max_completion_tokens": None},
    "messages": MESSAGES,
    "unapplied_reason": "",
}
RECEIPT: dict[str, Any] = {
    "status": "accepted",
    "session_id": "s",
    "rollout_id": "r1",
    "candidate_id": "cand_1",
    "trace_id": "t1",
    "duplicate": False,
}


@pytest.mark.parametrize(
    ("operation", "query"),
    [
        (operations.lease("s", "r1"), {"rollout_id": "r1"}),
        (operations.lease("s", "r1", render=True), {"rollout_id": "r1", "render": "True"}),
        (
            operations.lease("s", "r1", example_id="7", correlation_id="c", candidate_id="k"),
            {"rollout_id": "r1", "example_id": "7", "correlation_id": "c", "candidate_id": "k"},
        ),
    ],
)
def test_a_lease_without_a_text_is_a_get(operation: Operation[Lease], query: Any) -> None:
    assert (operation.method, operation.path, operation.query) == ("GET", PROMPT, query)
    assert operation.repeatable


@pytest.mark.parametrize(
    ("operation", "body"),
    [
        (
            operations.lease("s", "r1", inputs={"query": 4}, render=True),
            {"rollout_id": "r1", "inputs": {"query": 4}},
        ),
        (operations.lease("s", "r1", inputs={}), {"rollout_id": "r1", "inputs": {}}),
        (
            operations.lease("s", "r1", messages=MESSAGES, example_id="7"),
            {"rollout_id": "r1", "messages": MESSAGES, "example_id": "7"},
        ),
    ],
)
def test_a_lease_with_inputs_or_messages_is_a_post(operation: Operation[Lease], body: Any) -> None:
    assert (operation.method, operation.path, operation.body) == ("POST", PROMPT, body)
    assert operation.repeatable


def test_a_lease_without_a_rollout_is_for_a_new_one() -> None:
    names = {operations.lease("s").query["rollout_id"] for _ in range(10)}
    assert len(names) == 10


def test_a_trace_is_posted_under_a_key_of_its_request() -> None:
    request = TraceRequest(messages=tuple(MESSAGES), output="x", latency_seconds=0.5)
    operation = operations.post_trace("s", "r1", request, request_key="k")
    assert (operation.method, operation.path) == ("POST", TRACES)
    assert operation.headers == {"Idempotency-Key": "k"}
    assert operation.repeatable
    keys = {operations.post_trace("s", "r1", request).headers["Idempotency-Key"] for _ in range(10)}
    assert len(keys) == 10


def test_a_rollout_stays_one_segment_of_the_path() -> None:
    request = TraceRequest(messages=tuple(MESSAGES), output="x", latency_seconds=0.5)
    assert operations.post_trace("s", "a/b", request).path.endswith("/rollouts/a%2Fb/traces")


@pytest.mark.parametrize("rollout_id", ["", " ", ".."])
def test_a_rollout_that_would_lead_elsewhere_is_refused(rollout_id: str) -> None:
    request = TraceRequest(messages=tuple(MESSAGES), output="x", latency_seconds=0.5)
    with pytest.raises(InputInvalid, match="rollout_id"):
        operations.post_trace("s", rollout_id, request)


def test_both_clients_answer_records(backend: Backend, client: Client) -> None:
    backend.answers(LEASE, RECEIPT)
    lease = client.lease("s", "r1", inputs={"query": "x"})
    request = TraceRequest(messages=lease.messages, output="x", latency_seconds=0.5)
    assert client.post_trace("s", lease.rollout_id, request) == TraceReceipt.model_validate(RECEIPT)
    assert backend.asked == [("POST", PROMPT), ("POST", TRACES)]


async def test_the_async_client_awaits_them(backend: Backend, async_client: AsyncClient) -> None:
    backend.answers(LEASE, RECEIPT)
    lease = await async_client.lease("s", "r1")
    request = TraceRequest(messages=lease.messages, output="x", latency_seconds=0.5)
    assert (await async_client.post_trace("s", "r1", request)).trace_id == "t1"
    assert backend.asked == [("GET", PROMPT), ("POST", TRACES)]


def test_a_trace_that_got_no_answer_is_sent_again_under_the_same_key(
    backend: Backend, client: Client
) -> None:
    backend.answers(Answer(dropped=True), RECEIPT)
    request = TraceRequest(messages=tuple(MESSAGES), output="x", latency_seconds=0.5)
    client.post_trace("s", "r1", request)
    first, second = (each.headers["idempotency-key"] for each in backend.received)
    assert first == second


@pytest.mark.parametrize(("status", "error"), [(404, RolloutNotFound), (409, Conflict)])
def test_refusals_are_the_errors_that_they_name(
    backend: Backend, client: Client, status: int, error: type[Exception]
) -> None:
    backend.answers(Answer({"error": error.__name__, "message": "no"}, status=status))
    request = TraceRequest(messages=tuple(MESSAGES), output="x", latency_seconds=0.5)
    with pytest.raises(error, match="no"):
        client.post_trace("s", "r1", request)


class TestSession:
    def test_it_leases_with_its_correlation_id(
        self, call: Call, backend: Backend, session: MiproOnlineSession
    ) -> None:
        backend.answers(LEASE)
        session.correlation_id = "mine"
        lease = call(session, "lease", "r1", example_id="7")
        assert lease == Lease.model_validate(LEASE)
        assert backend.last.query == {
            "rollout_id": "r1",
            "example_id": "7",
            "correlation_id": "mine",
        }

    def test_it_posts_what_is_given(
        self, call: Call, backend: Backend, session: MiproOnlineSession
    ) -> None:
        backend.answers(RECEIPT)
        receipt = call(
            session,
            "post_trace",
            "r1",
            messages=MESSAGES,
            output="card_arrival",
            usage={"inputTokens": 7, "outputTokens": 2},
            latency_seconds=0.5,
            first_byte_seconds=0.25,
            model="claude",
            trace_id="t1",
        )
        assert receipt == TraceReceipt.model_validate(RECEIPT)
        assert backend.last.body == {
            "messages": MESSAGES,
            "output": "card_arrival",
            "usage": {"prompt_tokens": 7, "completion_tokens": 2},
            "latency_seconds": 0.5,
            "first_byte_seconds": 0.25,
            "model": "claude",
            "trace_id": "t1",
            "unapplied_reason": "",
        }

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"messages": []}, "at least one message"),
            ({"latency_seconds": -1.0}, "latency_seconds"),
            ({"latency_seconds": float("nan")}, "latency_seconds"),
            ({"output": None}, "send the answer"),
            ({"usage": {"tokens": 1}}, "usage.prompt_tokens"),
        ],
    )
    def test_what_is_no_trace_is_refused_before_it_is_sent(
        self,
        call: Call,
        backend: Backend,
        session: MiproOnlineSession,
        change: dict[str, Any],
        words: str,
    ) -> None:
        trace = {"messages": MESSAGES, "output": "x", "latency_seconds": 0.5, **change}
        with pytest.raises(InputInvalid, match=words):
            call(session, "post_trace", "r1", **trace)
        assert backend.received == []

    @pytest.mark.parametrize("name", ["lease", "post_trace"])
    def test_an_answer_of_a_backend_that_knows_no_leases_is_an_error(
        self, call: Call, backend: Backend, session: MiproOnlineSession, name: str
    ) -> None:
        backend.answers({"online_url": "http://h/o"})
        arguments: dict[str, Any] = (
            {} if name == "lease" else {"messages": MESSAGES, "output": "x", "latency_seconds": 0.5}
        )
        with pytest.raises(AnswerInvalid, match="is this a backend that leases prompts"):
            call(session, name, "r1", **arguments)

    def test_the_trace_shows_its_parameters(self) -> None:
        signature = inspect.signature(MiproOnlineSession.post_trace)
        assert list(signature.parameters) == ["self", "rollout_id", "trace"]


class TestLease:
    def test_system_and_turns_are_for_apis_that_take_them_apart(self) -> None:
        messages = [
            {"role": "system", "content": "One."},
            {"role": "developer", "content": "Two."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
        lease = Lease.model_validate({**LEASE, "messages": messages})
        assert lease.system == "One.\n\nTwo."
        assert list(lease.turns) == messages[2:]

    def test_system_texts_may_stand_in_parts(self) -> None:
        parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
        messages = [{"role": "system", "content": parts}, *MESSAGES[1:]]
        assert Lease.model_validate({**LEASE, "messages": messages}).system == "One.\nTwo."

    def test_a_lease_that_was_not_rendered_has_neither(self) -> None:
        lease = Lease.model_validate({**LEASE, "messages": []})
        with pytest.raises(InputInvalid, match="render=True"):
            _ = lease.system
        with pytest.raises(InputInvalid, match="render=True"):
            _ = lease.turns
