"""Requests and answers with all that OpenAI's API knows, and with what nobody knows."""

from __future__ import annotations

from typing import Any

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
    "awAAAABJRU5ErkJggg=="
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a place.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
# The first two messages are the session's prompt; then a conversation with everything in it.
CONVERSATION: list[Any] = [
    {"role": "system", "content": "You classify banking queries.", "name": "bank"},
    {"role": "user", "content": "Query: where is my card?"},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"place": "Zürich", "days": 1}'},
            },
            {
                "id": "call_2",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"place":"Basel"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "rain\u2028\U0001f327"},
    {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "sun"}]},
    {"role": "assistant", "content": "Both.", "audio": {"id": "audio_1"}, "x_thinking": "hm"},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "And this?"},
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            {"type": "file", "file": {"file_id": "file-1"}},
            {"type": "x_part", "x_part": {"score": 1.0}},
        ],
    },
]
REQUEST: dict[str, Any] = {
    "model": "gpt-4.1-nano",
    "messages": CONVERSATION,
    "tools": [WEATHER],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "label",
            "strict": True,
            "schema": {"type": "object", "properties": {"label": {"type": "string"}}},
        },
    },
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"50256": -100},
    "n": 2,
    "seed": 9_007_199_254_740_993,
    "temperature": 1.0,
    "top_p": 0.95,
    "frequency_penalty": -0.0,
    "presence_penalty": 1e-7,
    "stop": ["\n\n", "END"],
    "max_completion_tokens": 64,
    "service_tier": "flex",
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "mp3"},
    "prediction": {"type": "content", "content": "a guess"},
    "reasoning_effort": "low",
    "metadata": {"run": "7"},
    "store": False,
    "user": "user-1",
    "extra_body": {
        "x_vendor": {"one": 1.0, "large": 2**63, "huge": 2**70, "none": None, "list": [[], {}]},
        "top_k": 40,
        "seed_text": "ünïcode \u0000 \ud7ff",
    },
}

# Spaces, escapes and the order of names are as only this server writes them.
ANSWER = rb"""{ "id":"chatcmpl-9",  "object": "chat.completion", "created":1.7e9,
 "model" : "gpt-4.1-nano-2025-04-14", "system_fingerprint":"fp_\u0061bc", "service_tier": "flex",
 "x_provider": {"latency": 1.0, "huge": 1180591620717411303424, "tiny": 1e-320},
 "choices":[{"index":0,"finish_reason":"tool_calls","logprobs":{"content":[{"token":"ok",
 "logprob":-0.10,"bytes":[111,107],"top_logprobs":[{"token":"ok","logprob":-0.10,"bytes":[111]}]}],
 "refusal":null},"message":{"role":"assistant","content":"caf\u00e9 \ud83c\udf27","refusal":null,
 "annotations":[],"x_thinking":"hm","audio":{"id":"audio_2","expires_at":1,"data":"AA==",
 "transcript":"ok"},"tool_calls":[{"id":"call_3","type":"function","function":{"name":"weather",
 "arguments":"{\"place\":\"Bern\"}"}},{"id":"call_4","type":"function","function":
 {"name":"weather","arguments":"{}"}}]}},{"index":1,"finish_reason":"stop","message":
 {"role":"assistant","content":null,"refusal":"No."}}],"usage":{"prompt_tokens":21,
 "completion_tokens":8,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":4,"x_kind":1},
 "completion_tokens_details":{"reasoning_tokens":3}} }
"""

USAGE_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[],'
    b'"usage":{"prompt_tokens":21,"completion_tokens":8,"total_tokens":29}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def event(delta: str, *, index: int = 0, finish: str = "null", more: str = "") -> bytes:
    """One event with this delta, both as JSON, and more fields of the event."""
    return (
        b'data: {"id":"c","object":"chat.completion.chunk", "created":1,"model":"m",'
        b'"system_fingerprint":"fp_1","service_tier":"flex",%s"choices":[{"index":%d,"delta":%s,'
        b'"logprobs":null,"finish_reason":%s}]}\n\n'
    ) % (more.encode(), index, delta.encode(), finish.encode())


# Two choices in turns, two tool calls at once, a refusal, log probabilities, a comment, a name.
EVENTS: list[bytes] = [
    b": keep-alive\n\n",
    event('{"role":"assistant","content":"","refusal":null}', more='"obfuscation":"xY",'),
    event('{"role":"assistant","content":"No"}', index=1),
    event('{"content":"caf\\u00e9", "x_thinking": 1.0}'),
    b"event: message\nid: 4\n" + event('{"refusal":"."}', index=1),
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" ok"},"finish_reason":null,"logprobs":{"content":['
    b'{"token":" ok","logprob":-0.10,"bytes":[32],"top_logprobs":[]}],"refusal":null}}]}\n\n',
    event(
        '{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"weather",'
        '"arguments":"{\\"place\\":"}}]}'
    ),
    event('{"tool_calls":[{"index":0,"function":{"arguments":"\\"Bern\\"}"}}]}'),
    event(
        '{"tool_calls":[{"index":1,"id":"call_2","type":"function","function":{"name":"weather",'
        '"arguments":"{}"}}]}'
    ),
    event("{}", index=1, finish='"stop"'),
    event("{}", finish='"tool_calls"'),
]
