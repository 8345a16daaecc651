"""Usage of streams: budgets need it, and callers mostly do not ask for it.

The proxy asks for it (`stream_options.include_usage`) and takes out again what comes of that.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum, auto
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.server.upstream.completions import parsed
from prefect_mipro.server.upstream.interface import Reply, StreamedUsage, Upstream

# Callers name models as they like.
MOST_MODELS = 256

# What servers answer to a field that they do not know.
_REFUSALS = frozenset({400, 422})

# Fields that an event has beside what it tells.
_ENVELOPE = frozenset(
    {"id", "object", "created", "model", "system_fingerprint", "service_tier", "obfuscation"}
)
_MEMBER = re.compile(rb'(,\s*)?"usage"\s*:\s*')
_COMMA = re.compile(rb"\s*,\s*")

logger = logging.getLogger(__name__)


def leaves_usage_open(body: ChatBody) -> bool:
    """Whether the call is for a stream and does not ask for its usage."""
    options = body.get("stream_options")
    return body.get("stream") is True and (
        options is None or (isinstance(options, dict) and not options.get("include_usage"))
    )


class UsageRequests:
    """Calls for streams that ask for the usage where the provider tells it on request only.

    A provider that refuses the question gets the call once more as it was sent, and is not asked
    again. Where the usage comes but nothing shows that it came by request, the next stream goes as
    it was sent: if its usage comes all the same, no later one is changed.
    """

    def __init__(self) -> None:
        self._models: WeakKeyDictionary[Upstream, dict[str, _Model]] = WeakKeyDictionary()

    @asynccontextmanager
    async def chat(
        self, upstream: Upstream, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Reply]:
        """The upstream's `chat`, for a body that leaves the usage open."""
        model = self._model(upstream, body.get("model"))
        asks = model.begin()
        usage = StreamedUsage(hidden=asks)
        async with AsyncExitStack() as call:
            call.callback(model.end, usage)
            reply = await call.enter_async_context(
                upstream.chat(_asking(body) if asks else body, api_key=api_key)
            )
            if asks and reply.status in _REFUSALS:
                await call.aclose()
                usage = StreamedUsage()
                reply = await call.enter_async_context(upstream.chat(body, api_key=api_key))
                if reply.status < 400:
                    model.refuses()
                    logger.warning(
                        "provider refuses stream_options; the usage of its streams is estimated",
                        extra={"upstream": repr(upstream), "model": body.get("model")},
                    )
            reply.usage = usage
            yield reply

    def _model(self, upstream: Upstream, name: object) -> _Model:
        models = self._models.setdefault(upstream, {})
        key = name if isinstance(name, str) else ""
        if key not in models:
            if len(models) >= MOST_MODELS:
                del models[next(iter(models))]
            models[key] = _Model()
        return models[key]


class _Habit(Enum):
    """Whether a model tells the usage of its streams, and when."""

    UNKNOWN = auto()
    DOUBTFUL = auto()
    ON_REQUEST = auto()
    ALWAYS = auto()
    REFUSED = auto()


class _Model:
    """The habits of one model of an upstream."""

    def __init__(self) -> None:
        self._habit = _Habit.UNKNOWN
        self._trial = False

    def begin(self) -> bool:
        """Whether the next stream asks for usage. While one is on trial the others go on asking."""
        if self._habit is _Habit.DOUBTFUL and not self._trial:
            self._trial = True
            return False
        return self._habit not in (_Habit.ALWAYS, _Habit.REFUSED)

    def refuses(self) -> None:
        """Note that the request for usage was refused, and the call itself was not."""
        self._habit = _Habit.REFUSED

    def end(self, usage: StreamedUsage) -> None:
        """Learn from a stream that has ended, or that never came to its end."""
        if usage.hidden:
            if self._habit is _Habit.UNKNOWN and usage.told:
                # Servers that say `"usage": null` before do so on request.
                self._habit = _Habit.ON_REQUEST if usage.announced else _Habit.DOUBTFUL
            return
        self._trial = False
        if usage.told:
            self._habit = _Habit.ALWAYS
        elif usage.ended and self._habit is not _Habit.REFUSED:
            self._habit = _Habit.ON_REQUEST


def tells_only_usage(event: JsonObject, previous: JsonObject) -> bool:
    """Whether an event with usage has nothing else to say.

    It has no choices, and its other fields are empty, or those of any event, or as they were in the
    `previous` one.
    """
    return (
        isinstance(event.get("usage"), dict)
        and not event.get("choices")
        and all(
            not value or key == "usage" or key in _ENVELOPE or previous.get(key) == value
            for key, value in event.items()
        )
    )


def without_usage(text: bytes, event: JsonObject) -> bytes:
    """The event's JSON without its member `usage`, and otherwise byte for byte as it was."""
    rest = {key: value for key, value in event.items() if key != "usage"}
    for member in _MEMBER.finditer(text):
        end = _end_of_value(text, member.end())
        if not member[1] and (comma := _COMMA.match(text, end)):
            end = comma.end()
        cut = text[: member.start()] + text[end:]
        # Objects within the event may have a member of that name too.
        if _holds(cut, rest):
            return cut
    return json.dumps(rest, separators=(",", ":")).encode()


def _end_of_value(text: bytes, start: int) -> int:
    """The end of the JSON value that begins at `start`; `start` if there is none."""
    value = text[start:].decode("utf-8", "replace")
    try:
        _, length = json.JSONDecoder().raw_decode(value)
    except ValueError:
        return start
    return start + len(value[:length].encode())


def _holds(text: bytes, event: JsonObject) -> bool:
    try:
        found = parsed(text)
    except ValueError:
        return False
    # NaN, which some servers send, is not equal to itself, but looks alike.
    return bool(found == event) or repr(found) == repr(event)


def _asking(body: ChatBody) -> ChatBody:
    options = body.get("stream_options") or {}
    return {**body, "stream_options": {**options, "include_usage": True}}
