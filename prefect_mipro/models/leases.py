"""Leases: a rollout's candidate for a program that calls its model itself, and what it posts."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import PydanticCustomError

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS, ID_PATTERN, JsonObject, Record, RolloutId
from prefect_mipro.models.chat import SYSTEM_ROLES, ChatMessage
from prefect_mipro.models.levers import Demonstration, LeverVersions
from prefect_mipro.models.placeholders import Placeholder
from prefect_mipro.models.sessions import SessionUrls

LONGEST_CALL_SECONDS = 604_800.0
MOST_TOKENS = 1_000_000_000


def _printable(word: str) -> str:
    if not word.isprintable():
        raise _fault("it may have printable characters only")
    return word


def _chat(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    """Messages as far as their text must be found: in a string, or in parts that say their type."""
    if not messages:
        raise _fault("send at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise _fault(f"message {number} has no role that is a word")
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        if not (isinstance(content, list) and all(map(_says_its_type, content))):
            raise _fault(
                f"the content of message {number} is neither text nor a list of parts that say "
                "their type, as they do in OpenAI's API and in the messages of a lease"
            )
    return messages


def _says_its_type(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("type"), str)


def _completion(response: JsonObject) -> JsonObject:
    match response:
        case {"choices": [{"message": {}}, *_]}:
            return response
    raise _fault("it is no chat completion, for it has no choices[0].message; or send output")


def _fault(sentence: str) -> PydanticCustomError:
    # Pydantic puts words of its own in front of a plain ValueError.
    return PydanticCustomError("lease", "{sentence}", {"sentence": sentence})


Word = Annotated[str, StringConstraints(max_length=ID_CHARACTERS), AfterValidator(_printable)]
TraceId = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]
Messages = Annotated[tuple[ChatMessage, ...], AfterValidator(_chat)]
Seconds = Annotated[float, Field(ge=0.0, le=LONGEST_CALL_SECONDS, allow_inf_nan=False)]
# Google's client tells no count of an answer that was blocked.
Tokens = Annotated[
    int, Field(ge=0, le=MOST_TOKENS), BeforeValidator(lambda count: 0 if count is None else count)
]


class LeaseRequest(Record):
    """Body of a call that leases a rollout's candidate and renders its prompt.

    Send `inputs`, a text or number for each placeholder of the session's prompt (other keys are
    ignored, so a whole row may be sent), or `messages`, those that the program would send with its
    own prompt. `candidate_id` asks for that candidate outside of learning: nothing is pinned or
    counted.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "rollout_id": "ticket-4711",
                    "example_id": "4711",
                    "inputs": {"query": "My card has not arrived."},
                }
            ]
        }
    )

    rollout_id: RolloutId
    inputs: JsonObject | None = None
    messages: Messages | None = None
    example_id: Word | None = None
    correlation_id: Word | None = None
    candidate_id: RolloutId | None = None


class LeasedInstruction(Record):
    """The instruction that the candidate stands for; its placeholders are those of the prompt."""

    lever_id: str
    version: int
    text: str


class LeasedDemonstrations(Record):
    """The worked examples that the candidate stands for, without the rollout's own example."""

    lever_id: str
    version: int
    demonstrations: tuple[Demonstration, ...]


class LeasedLevers(Record):
    """The value of both levers."""

    instruction: LeasedInstruction
    demonstrations: LeasedDemonstrations


class LeasedPolicy(Record):
    """The settings of the policy model that the session's config names; null where it does not."""

    model: str | None
    temperature: float | None
    max_completion_tokens: int | None


class Lease(SessionUrls):
    """What a rollout runs with: the candidate, its levers and, when asked for, its messages.

    `number` is the candidate's, and `lever_versions` the three versions by lever id as sensor
    frames have them. `messages` is the whole prompt in the form of OpenAI's API, empty when nothing
    was to be rendered. `unapplied_reason` says why the candidate's prompt is not in them, when it
    is not.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "online_url": "https://mipro.example.com/api/mipro/v1/banking.1f0c",
                    "proxy_url": "https://mipro.example.com/api/mipro/v1/banking.1f0c",
                    "chat_completions_url": (
                        "https://mipro.example.com/api/mipro/v1/banking.1f0c/chat/completions"
                    ),
                    "session_id": "banking",
                    "rollout_id": "ticket-4711",
                    "candidate_id": "cand_5b8e0d1c7a42",
                    "number": 7,
                    "levers": {
                        "instruction": {
                            "lever_id": "mipro.instruction.banking",
                            "version": 3,
                            "text": "Answer with the name of the intent only.",
                        },
                        "demonstrations": {
                            "lever_id": "mipro.demonstrations.banking",
                            "version": 2,
                            "demonstrations": [
                                {
                                    "input": "Query: where is my card?",
                                    "output": "card_arrival",
                                    "trace_id": "trace_09ab12cd34ef56ab",
                                    "example_id": "12",
                                }
                            ],
                        },
                    },
                    "lever_versions": {
                        "mipro.prompt.banking": 7,
                        "mipro.instruction.banking": 3,
                        "mipro.demonstrations.banking": 2,
                    },
                    "placeholders": [{"name": "query", "required": True, "may_be_blank": False}],
                    "policy": {
                        "model": "anthropic.claude-haiku",
                        "temperature": 0.0,
                        "max_completion_tokens": 64,
                    },
                    "messages": [
                        {"role": "system", "content": "Answer with the name of the intent only."},
                        {"role": "user", "content": "Query: where is my card?"},
                        {"role": "assistant", "content": "card_arrival"},
                        {"role": "user", "content": "Query: My card has not arrived."},
                    ],
                    "unapplied_reason": "",
                }
            ]
        }
    )

    session_id: str
    rollout_id: str
    candidate_id: str
    number: int
    levers: LeasedLevers
    lever_versions: LeverVersions
    placeholders: tuple[Placeholder, ...] = ()
    policy: LeasedPolicy
    messages: tuple[ChatMessage, ...] = ()
    unapplied_reason: str = ""

    @property
    def system(self) -> str:
        """The text of the system messages, for APIs that take it apart from the others."""
        texts = (_text(m) for m in self._rendered if m.get("role") in SYSTEM_ROLES)
        return "\n\n".join(filter(None, texts))

    @property
    def turns(self) -> tuple[ChatMessage, ...]:
        """The messages that are not the system's: the demonstrations, then the conversation."""
        return tuple(m for m in self._rendered if m.get("role") not in SYSTEM_ROLES)

    @property
    def _rendered(self) -> tuple[ChatMessage, ...]:
        if not self.messages:
            raise InputInvalid(
                "this lease has no messages; lease with inputs or messages, or with render=True"
            )
        return self.messages


def _text(message: ChatMessage) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


class TraceUsage(Record):
    """The tokens of a call. The names that Bedrock, Vertex and Anthropic give them do as well."""

    model_config = ConfigDict(populate_by_name=True)

    prompt_tokens: Tokens = Field(
        validation_alias=AliasChoices(
            "prompt_tokens",
            "inputTokens",
            "input_tokens",
            "promptTokenCount",
            "prompt_token_count",
        )
    )
    completion_tokens: Tokens = Field(
        validation_alias=AliasChoices(
            "completion_tokens",
            "outputTokens",
            "output_tokens",
            "candidatesTokenCount",
            "candidates_token_count",
        )
    )


class TraceRequest(Record):
    """Body of a call that posts what a leased rollout asked its model, and what came back.

    `messages` are those that the model got. The answer is `output`, its text, or `response`, a chat
    completion; a call that failed has an `error`, and may have the part that came before. `usage`
    and `model` are the response's own where they are not given. `unapplied_reason` says why the
    candidate's prompt was not used, if it was not.

    The same `trace_id` (else the same header `Idempotency-Key`) is the same trace: a repeat counts
    once. Ids of traces are unique over all sessions.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "trace_id": "9e107d9d-372b-4c0e-a1a5-1f8b0d0f3a7e",
                    "messages": [
                        {"role": "system", "content": "Answer with the name of the intent only."},
                        {"role": "user", "content": "Query: My card has not arrived."},
                    ],
                    "output": "card_arrival",
                    "usage": {"prompt_tokens": 41, "completion_tokens": 3},
                    "latency_seconds": 0.42,
                    "model": "anthropic.claude-haiku",
                }
            ]
        }
    )

    messages: Messages
    response: Annotated[JsonObject, AfterValidator(_completion)] | None = None
    output: str | None = None
    error: str | None = None
    usage: TraceUsage | None = None
    latency_seconds: Seconds | None = None
    first_byte_seconds: Seconds | None = None
    model: Word | None = None
    trace_id: TraceId | None = None
    unapplied_reason: str = ""

    @model_validator(mode="after")
    def _has_one_answer(self) -> Self:
        if self.response is not None and self.output is not None:
            raise _fault("send response or output, not both")
        if self.response is None and self.output is None and not self.error:
            raise _fault("send the answer as output or response, or an error")
        return self

    @model_validator(mode="after")
    def _first_byte_is_in_time(self) -> Self:
        whole, first = self.latency_seconds, self.first_byte_seconds
        if whole is not None and first is not None and first > whole:
            raise _fault("first_byte_seconds is longer than latency_seconds")
        return self


class TraceReceipt(Record):
    """Answer to a posted trace: under which id it counts, and whether it did so before."""

    status: str
    session_id: str
    rollout_id: str
    candidate_id: str
    trace_id: str
    duplicate: bool = False
