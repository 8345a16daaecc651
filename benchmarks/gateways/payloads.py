"""What travels in the benchmark of gateways: one request, one answer, one event stream.

All systems get the same question and the same answer of some 1.5 KB, as a chat model of today
sends it, or the same answer as an event stream of `EVENTS` pieces and an end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

SYSTEM_PROMPT = (
    "You are the support desk of a bank. Read the customer's message, decide which one of the "
    "known intents it belongs to, and answer with that intent and two sentences that say why. "
    "If several intents fit, take the one that the customer would be most annoyed to see missed."
)
QUESTION = (
    "I moved some money to my savings account this morning, and now the app shows the transfer "
    "twice. Has it been taken from my account two times, and when will I see it corrected?"
)
WORDS = (
    "The message is about a transfer that seems to be booked twice, so the intent is "
    "transaction_charged_twice. The customer asks whether the money has left the account two times "
    "and when it will be put right; both belong to a duplicate booking and not to a transfer that "
    "is late. "
)
ANSWER = WORDS * 3
EVENTS = 20
EVENT_STREAM = "text/event-stream"


def request_body(model: str, *, stream: bool, system_prompt: bool = True) -> bytes:
    """A call as an OpenAI client writes it."""
    messages = [{"role": "user", "content": QUESTION}]
    if system_prompt:
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "temperature": 0.2,
        "max_tokens": 256,
    }
    return json.dumps(body | ({"stream": True} if stream else {})).encode()


def answer() -> bytes:
    """The body of the answer."""
    body = {
        **_head("chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": ANSWER,
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 118,
            "completion_tokens": 203,
            "total_tokens": 321,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
    }
    return json.dumps(body).encode()


def events() -> tuple[bytes, ...]:
    """The server-sent events of the streamed answer, the end included."""
    size = -(-len(WORDS) // EVENTS)
    pieces = [WORDS[at : at + size] for at in range(0, len(WORDS), size)]
    deltas: list[Mapping[str, Any]] = [{"role": "assistant", "content": pieces[0]}]
    deltas += [{"content": piece} for piece in pieces[1:]]
    return (*(_event(delta, None) for delta in deltas), _event({}, "stop"), b"data: [DONE]\n\n")


def _event(delta: Mapping[str, Any], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    body = {**_head("chat.completion.chunk"), "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _head(kind: str) -> dict[str, Any]:
    return {
        "id": "chatcmpl-BxT3vYq0aWc9hR2mK5nE7dLsJ1uF",
        "object": kind,
        "created": 1_780_000_000,
        "model": "mock",
        "service_tier": "default",
        "system_fingerprint": "fp_3c91a7d205",
    }
