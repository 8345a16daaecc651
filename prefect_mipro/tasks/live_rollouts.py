"""Running rollouts, through which a program calls the policy model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

from prefect_mipro.client import operations
from prefect_mipro.client.arguments import TraceArguments, record_of
from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import AnswerInvalid, InputInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from prefect_mipro.models.placeholders import filled
from prefect_mipro.tasks.connections import AsyncConnection, Connection
from prefect_mipro.tasks.handles import SessionAddress
from prefect_mipro.tasks.openai_clients import usable
from prefect_mipro.tasks.requests import usable_id, without_secret

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

CANDIDATE_HEADER = "x-mipro-candidate-id"
CORRELATION_HEADER = "x-correlation-id"
EXAMPLE_HEADER = "x-mipro-example-id"
PROMPT_HEADER = "x-mipro-prompt"


class _Live:
    """Address, key and headers of one rollout.

    `candidate_id` names the candidate of an evaluation. It is `None` while learning, when the
    backend chooses.
    """

    def __init__(
        self,
        connection: Connection | AsyncConnection,
        session: SessionAddress,
        rollout_id: str,
        example_id: str | None = None,
        candidate_id: str | None = None,
    ) -> None:
        self.session_id = session.session_id
        self.rollout_id = usable_id(rollout_id)
        self.example_id = example_id
        self.candidate_id = candidate_id
        self.base_url = session.proxy_url(rollout_id)
        self._path = session.proxy_path(rollout_id)
        self._prompt = session.prompt
        self._correlation_id = session.correlation_id
        self._api_key = connection.api_key
        self._unapplied_reason = ""
        self.prompt_applied: bool | None = None
        """Whether the candidate's prompt was in any call so far, as far as the answers tell."""

    def heard(self, headers: Mapping[str, str]) -> None:
        """Note from the headers of an answer whether the call had the candidate's prompt."""
        word = headers.get(PROMPT_HEADER)
        if word is not None:
            self._learn_applied(word == "applied")

    def _learn_applied(self, applied: bool) -> None:
        self.prompt_applied = applied or bool(self.prompt_applied)

    @property
    def api_key(self) -> str:
        """The key for an OpenAI client."""
        return usable(self._api_key)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every call of the rollout must send, including the key.

        An OpenAI client takes them as `default_headers`. Without them, a held-out evaluation would
        count as a learning rollout, because no header names its candidate.
        """
        headers = {"Authorization": f"Bearer {self.api_key}"} if self._api_key else {}
        return headers | self._marks()

    def messages(self, row: Any) -> list[ChatMessage]:
        """The session's own prompt, filled with the row's fields. Raises InputInvalid."""
        if self._prompt is None:
            raise InputInvalid(
                f"the handle of session {self.session_id} has no prompt to fill; open the session "
                "with a config that has an initial_prompt, or write the messages in a program"
            )
        return filled(self._prompt, row)

    def _marks(self) -> dict[str, str]:
        named = {
            CANDIDATE_HEADER: self.candidate_id,
            CORRELATION_HEADER: self._correlation_id,
            EXAMPLE_HEADER: self.example_id,
        }
        return {
            name: value
            for name, value in named.items()
            if value and value.isascii() and value.isprintable()
        }

    def _chat(
        self, messages: Sequence[ChatMessage], parameters: dict[str, Any]
    ) -> Operation[JsonObject]:
        return Operation(
            method="POST",
            path=f"{self._path}/chat/completions",
            body={**parameters, "messages": list(messages)},
            headers=self._marks(),
            # Another call of the same rollout: the candidate stays the same.
            repeatable=True,
            answer=dict,
            heard=self.heard,
        )

    def _lease(
        self,
        inputs: Mapping[str, Any] | None,
        messages: Sequence[ChatMessage] | None,
    ) -> Operation[Lease]:
        return operations.lease(
            self.session_id,
            self.rollout_id,
            inputs=inputs,
            messages=messages,
            render=True,
            example_id=self.example_id,
            correlation_id=self._correlation_id,
            candidate_id=self.candidate_id,
        )

    def _trace(self, trace: TraceArguments) -> Operation[TraceReceipt]:
        # The lease has said when its messages lack the prompt.
        reason = {"unapplied_reason": self._unapplied_reason} if self._unapplied_reason else {}
        request = record_of(TraceRequest, **(reason | trace))
        self._learn_applied(not request.unapplied_reason)
        return operations.post_trace(self.session_id, self.rollout_id, request)

    def _shown(self, lease: Lease) -> Lease:
        self._unapplied_reason = lease.unapplied_reason
        return without_secret(lease, self.session_id)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"rollout {self.rollout_id} holds open connections and a key, so it cannot be pickled "
            "or returned from a task; return its answer, or rollout.result"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"


class LiveRollout(_Live):
    """A rollout for programs that block.

    `ask`, `complete` and `chat` call the model, and `openai()` is a ready client for it. Any other
    client works as well: `Other(base_url=rollout.base_url, api_key=rollout.api_key,
    default_headers=rollout.headers)`.
    """

    def __init__(
        self,
        connection: Connection,
        session: SessionAddress,
        rollout_id: str,
        example_id: str | None = None,
        candidate_id: str | None = None,
    ) -> None:
        super().__init__(connection, session, rollout_id, example_id, candidate_id)
        self._model: Client = connection.model
        self._client: Client = connection.client
        self._openai = connection.openai

    def openai(self) -> OpenAI:
        """The official client for this rollout's calls; it needs the package `openai`."""
        return self._openai.at(self, self._marks())

    def ask(self, row: Any, **parameters: Any) -> str:
        """The text of the answer to the session's own prompt, filled with the row's fields."""
        return self.complete(self.messages(row), **parameters)

    def complete(self, messages: Sequence[ChatMessage], **parameters: Any) -> str:
        """The text of the answer to these messages; empty for one that only calls tools."""
        return _text(self.chat(messages, **parameters))

    def chat(self, messages: Sequence[ChatMessage], **parameters: Any) -> JsonObject:
        """The whole chat completion. `parameters` are those of the API, such as `max_tokens`."""
        return self._model.send(self._chat(messages, parameters))

    def lease(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
    ) -> Lease:
        """Lease the prompt, for a model that is not behind the proxy.

        The messages are made from `inputs`, the texts of the prompt's placeholders, or from the
        program's own `messages`. Post each call afterwards.
        """
        return self._shown(self._client.send(self._lease(inputs, messages)))

    def post_trace(self, **trace: Unpack[TraceArguments]) -> TraceReceipt | None:
        """Post a call to that model. `None` on an evaluation, of which nothing is kept."""
        posted = self._trace(trace)
        return None if self.candidate_id else self._client.send(posted)


class AsyncLiveRollout(_Live):
    """A rollout for programs that are coroutine functions; see `LiveRollout`."""

    def __init__(
        self,
        connection: AsyncConnection,
        session: SessionAddress,
        rollout_id: str,
        example_id: str | None = None,
        candidate_id: str | None = None,
    ) -> None:
        super().__init__(connection, session, rollout_id, example_id, candidate_id)
        self._model: AsyncClient = connection.model
        self._client: AsyncClient = connection.client
        self._openai = connection.openai

    def openai(self) -> AsyncOpenAI:
        """The official client for this rollout's calls; it needs the package `openai`."""
        return self._openai.at(self, self._marks())

    async def ask(self, row: Any, **parameters: Any) -> str:
        """The text of the answer to the session's own prompt, filled with the row's fields."""
        return await self.complete(self.messages(row), **parameters)

    async def complete(self, messages: Sequence[ChatMessage], **parameters: Any) -> str:
        """The text of the answer to these messages; empty for one that only calls tools."""
        return _text(await self.chat(messages, **parameters))

    async def chat(self, messages: Sequence[ChatMessage], **parameters: Any) -> JsonObject:
        """The whole chat completion. `parameters` are those of the API, such as `max_tokens`."""
        return await self._model.send(self._chat(messages, parameters))

    async def lease(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
    ) -> Lease:
        """Lease the prompt, for a model that is not behind the proxy; see `LiveRollout.lease`."""
        return self._shown(await self._client.send(self._lease(inputs, messages)))

    async def post_trace(self, **trace: Unpack[TraceArguments]) -> TraceReceipt | None:
        """Post a call to that model. `None` on an evaluation, of which nothing is kept."""
        posted = self._trace(trace)
        return None if self.candidate_id else await self._client.send(posted)


def _text(completion: JsonObject) -> str:
    match completion:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case {"choices": [{"message": {**_message}}, *_]}:
            return ""
    raise AnswerInvalid(
        "the answer is not a chat completion: it has no choices[0].message; "
        f"its keys are {', '.join(sorted(completion)) or 'none'}"
    )
