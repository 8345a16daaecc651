"""The tool calls of a streamed answer, put together from the pieces that its events tell."""

from __future__ import annotations

from prefect_mipro.models.base import JsonObject

# What is kept of an answer: so many calls, and so much of what they are called with.
MOST_CALLS = 1_000
LONGEST_TEXT = 1_000_000

# By the kind of a tool, the field that comes in pieces.
_IN_PIECES = {"function": "arguments", "custom": "input"}


class ToolCalls:
    """The tool calls of one choice, in the order in which they began.

    A piece belongs to the call of its `index`. One with another id begins a new call: some servers
    number all of them 0, or none.
    """

    def __init__(self) -> None:
        self._calls: list[_ToolCall] = []
        self._of_index: dict[object, _ToolCall] = {}
        self._left = LONGEST_TEXT

    def feed(self, pieces: object) -> None:
        """Take the `tool_calls` of a delta."""
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                self._feed(piece)

    @property
    def whole(self) -> list[JsonObject]:
        """The tool calls so far, as an answer that comes whole has them."""
        return [call.whole for call in self._calls]

    def _feed(self, piece: JsonObject) -> None:
        index = piece.get("index")
        index = index if isinstance(index, int) else None
        call = self._of_index.get(index)
        if call is None or call.is_another(piece.get("id")):
            if len(self._calls) >= MOST_CALLS:
                return
            call = self._of_index[index] = _ToolCall()
            self._calls.append(call)
        if self._left > 0:
            self._left -= call.feed(piece)


class _ToolCall:
    def __init__(self) -> None:
        self._told: JsonObject = {}
        self._texts: dict[str, list[str]] = {}

    def is_another(self, call_id: object) -> bool:
        """Whether a piece with that id is of another call."""
        return bool(call_id and self._told.get("id")) and call_id != self._told["id"]

    def feed(self, piece: JsonObject) -> int:
        """Take a piece. Returns how many characters it has added."""
        added = 0
        for key, value in piece.items():
            if key in _IN_PIECES:
                added += self._feed_tool(key, value) if isinstance(value, dict) else 0
            elif value and key != "index":
                self._told.setdefault(key, value)
        return added

    def _feed_tool(self, kind: str, told: JsonObject) -> int:
        tool = self._told.setdefault(kind, {})
        for key, value in told.items():
            if value and key != _IN_PIECES[kind]:
                tool.setdefault(key, value)
        text = told.get(_IN_PIECES[kind])
        texts = self._texts.setdefault(kind, [])
        if not isinstance(text, str):
            return 0
        texts.append(text)
        return len(text)

    @property
    def whole(self) -> JsonObject:
        tools = {
            kind: {**self._told[kind], _IN_PIECES[kind]: "".join(texts)}
            for kind, texts in self._texts.items()
        }
        return {**self._told, **tools}
