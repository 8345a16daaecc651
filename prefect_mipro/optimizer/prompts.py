"""Putting a candidate's prompt in the place of the caller's own, message by message.

The caller keeps sending the baseline prompt. Its messages are recognised by the patterns of the
session's `InitialPrompt`, the system text is replaced, and demonstrations are put in as turns.
Nothing of the caller's data is lost: what cannot be recognised is passed on as it came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import SYSTEM_ROLES, ChatMessage, InitialPrompt, PromptMessage
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.placeholders import SPLIT_PATTERNS, fill, placeholders, split

QUOTED_CHARACTERS = 80

_VISIBLE = re.compile(r"\S")
_TEXT_PART_TYPES = frozenset({"text", "input_text", "output_text"})


@dataclass(frozen=True)
class Applied:
    """The messages to send upstream.

    `mismatch` is `None` when the candidate's prompt is in them.
    """

    messages: tuple[ChatMessage, ...]
    mismatch: Mismatch | None = None

    @property
    def reason(self) -> str:
        """Why the candidate's prompt is not in them; empty when it is."""
        return self.mismatch.reason if self.mismatch else ""


@dataclass(frozen=True)
class Mismatch:
    """Why a conversation does not hold the prompt: the message looked for, and what came instead.

    `reason` quotes the start of both; `looked_for` and `came` tell only their kind and length, for
    logs, which show no prompts.
    """

    reason: str
    looked_for: str
    came: str


@dataclass(frozen=True)
class Recognised:
    """Where a prompt stands in a conversation: its instruction, and its placeholders' texts."""

    instruction_index: int | None
    values: Mapping[str, str] = field(default_factory=dict)


def apply(
    messages: Sequence[ChatMessage],
    *,
    prompt: InitialPrompt | None,
    instruction: str,
    demonstrations: Sequence[Demonstration],
    example_id: str | None = None,
    recognised: Recognised | Mismatch | None = None,
) -> Applied:
    """The caller's messages with the candidate's instruction and demonstrations in them.

    The prompt's messages must occur among the caller's in their order; other messages may stand
    between and after them, as in a conversation. The placeholders' texts are filled into the new
    instruction. Without a prompt every conversation matches, its first system message is the
    instruction's place, and the instruction is sent as it is. An empty instruction, or the
    prompt's own, leaves the system text alone. Demonstrations stand before the conversation, so its
    turns and tool calls stay together; one that asks what the caller asks in it, or was made from
    the example `example_id`, is left out, as it would give the answer away. `recognised` is what
    `recognise` says of messages and prompt, if it has been asked already.

    Messages that do not change are the same objects.
    """
    recognised = recognised or recognise(messages, prompt)
    if isinstance(recognised, Mismatch):
        return Applied(tuple(messages), recognised)
    changed = list(messages)
    own = prompt.instruction if prompt else ""
    if instruction.strip() not in ("", own.strip()):
        text = fill(instruction, recognised.values) if prompt else instruction
        if recognised.instruction_index is None:
            changed.insert(_conversation_index(changed), {"role": "system", "content": text})
        else:
            message = changed[recognised.instruction_index]
            changed[recognised.instruction_index] = _with_text(message, text)
    if not demonstrations:
        return Applied(tuple(changed))
    asked = frozenset(normalised(_text(m)) for m in messages if _role(m) == "user")
    shown = [
        demonstration
        for demonstration in demonstrations
        if normalised(demonstration.input) not in asked
        and (example_id is None or demonstration.example_id != example_id)
    ]
    start = _conversation_index(changed)
    changed[start:start] = _turns(shown)
    return Applied(tuple(changed))


def recognise(
    messages: Sequence[ChatMessage], prompt: InitialPrompt | None
) -> Recognised | Mismatch:
    """Where the prompt stands among the messages. Without a prompt every conversation matches."""
    if prompt is None:
        return Recognised(_system_index(messages))
    required = prompt.required_wildcards
    values: dict[str, str] = {}
    instruction_index: int | None = None
    position = 0
    for number, expected in enumerate(prompt.ordered, start=1):
        for index in range(position, len(messages)):
            if not _same_role(expected, messages[index]):
                continue
            found = match(expected.pattern, _text(messages[index]), required=required)
            if found is not None:
                break
        else:
            return _mismatch(number, expected, messages[position:])
        values = {**found, **values}
        if instruction_index is None and expected.role in SYSTEM_ROLES:
            instruction_index = index
        position = index + 1
    return Recognised(instruction_index, values)


def match(
    pattern: str, text: str, *, required: frozenset[str] = frozenset()
) -> dict[str, str] | None:
    """What each placeholder of the pattern stands for in the text; `None` when they do not match.

    White space at both ends does not count. Each placeholder takes as little as it can, one of
    `required` at least one visible character, and a repeated one the same text again. The literal
    parts are searched from left to right without ever going back, so no text can make it slow.
    """
    literals, names = split(pattern.strip())
    before, after = _blanks_at_the_ends(literals)
    text = text.strip()
    found = _take(literals, names, text, required)
    if found is not None or not (before or after):
        return found
    # A blank placeholder at an end leaves its neighbour's white space there: give it back.
    forms = dict.fromkeys((text + after, before + text, before + text + after))
    others = (_take(literals, names, form, required) for form in forms)
    return next((values for values in others if values is not None), None)


def placeholder_fault(text: str, *, baseline: str) -> str:
    """Which placeholder of the baseline the text loses, or adds to them; empty when none."""
    kept, wanted = set(placeholders(text)), set(placeholders(baseline))
    if lost := sorted(wanted - kept):
        return f"loses the placeholder {{{lost[0]}}}"
    if strange := sorted(kept - wanted):
        return f"adds the placeholder {{{strange[0]}}}"
    return ""


def normalised(text: str) -> str:
    """The text without the differences of case and white space that do not make it another."""
    return " ".join(text.casefold().split())


def user_text(messages: Sequence[ChatMessage]) -> str:
    """The text of the last user message; empty when there is none."""
    return next((_text(m) for m in reversed(messages) if _role(m) == "user"), "")


def characters(messages: Sequence[ChatMessage]) -> int:
    """How long the text of all messages is."""
    return sum(len(_text(message)) for message in messages)


def answer_text(response: JsonObject | None) -> str:
    """The text of a chat completion's first choice; empty when it has none."""
    try:
        message = (response or {})["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return ""
    return _text(message) if isinstance(message, Mapping) else ""


def _mismatch(number: int, expected: PromptMessage, messages: Sequence[ChatMessage]) -> Mismatch:
    wanted = f"the prompt expects a {expected.role} message {_quoted(expected.pattern)}"
    looked_for = (
        f"message {number} of the prompt ({expected.role}, {len(expected.pattern)} characters)"
    )
    found = next((m for m in messages if _same_role(expected, m)), None)
    if found is None:
        nothing = f"no {expected.role} message is left"
        return Mismatch(f"{wanted}, and {nothing}", looked_for, nothing)
    text = _text(found)
    came = f"{_role(found)}, {len(text)} characters"
    return Mismatch(f"{wanted}, and got {_quoted(text)}", looked_for, came)


def _quoted(text: str) -> str:
    text = text.strip()
    cut = text if len(text) <= QUOTED_CHARACTERS else f"{text[:QUOTED_CHARACTERS]}..."
    return repr(cut)


def _same_role(expected: PromptMessage, message: ChatMessage) -> bool:
    role = _role(message)
    return role == expected.role or (role in SYSTEM_ROLES and expected.role in SYSTEM_ROLES)


def _take(
    literals: Sequence[str], names: Sequence[str], text: str, required: frozenset[str]
) -> dict[str, str] | None:
    first, last = literals[0], literals[-1]
    if not names:
        return {} if text == first else None
    if not (text.startswith(first) and text.endswith(last)):
        return None
    values: dict[str, str] = {}
    position, end = len(first), len(text) - len(last)
    for number, (name, literal) in enumerate(zip(names, literals[1:], strict=True), start=1):
        least = _least_end(text, position, again=values.get(name), required=name in required)
        stop = end if number == len(names) else text.find(literal, least, end)
        if not position <= least <= stop or (name in values and stop != least):
            return None
        values[name] = text[position:stop]
        position = stop + len(literal)
    return values


def _least_end(text: str, position: int, *, again: str | None, required: bool) -> int:
    """Where a placeholder that starts at `position` may end at the earliest; -1 when nowhere."""
    if again is not None:
        return position + len(again) if text.startswith(again, position) else -1
    if required:
        visible = _VISIBLE.search(text, position)
        return visible.end() if visible else -1
    return position


@lru_cache(SPLIT_PATTERNS)
def _blanks_at_the_ends(literals: tuple[str, ...]) -> tuple[str, str]:
    """The white space between a placeholder at either end of the pattern and its neighbour."""
    after_first, before_last = literals[:2][-1], literals[-2:][0]
    leading = after_first[: len(after_first) - len(after_first.lstrip())]
    trailing = before_last[len(before_last.rstrip()) :]
    return "" if literals[0] else leading, "" if literals[-1] else trailing


def _role(message: Mapping[str, Any]) -> str:
    role = message.get("role")
    return role if isinstance(role, str) else ""


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(part["text"] for part in parts if _is_text(part))


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict)
        and part.get("type") in _TEXT_PART_TYPES
        and isinstance(part.get("text"), str)
    )


def _with_text(message: ChatMessage, text: str) -> ChatMessage:
    """The message with another text; images and other parts stay, and so does each other field."""
    content = message.get("content")
    if not isinstance(content, list):
        return {**message, "content": text}
    first = next((part for part in content if _is_text(part)), None)
    kept = [part for part in content if part is first or not _is_text(part)]
    if first is None:
        return {**message, "content": [{"type": "text", "text": text}, *kept]}
    changed = [{**part, "text": text} if part is first else part for part in kept]
    return {**message, "content": changed}


def _system_index(messages: Sequence[ChatMessage]) -> int | None:
    return next((i for i, m in enumerate(messages) if _role(m) in SYSTEM_ROLES), None)


def _conversation_index(messages: Sequence[ChatMessage]) -> int:
    """Where the conversation starts: the index of the first message that is not the system's."""
    outside = (i for i, m in enumerate(messages) if _role(m) not in SYSTEM_ROLES)
    return next(outside, len(messages))


def _turns(demonstrations: Sequence[Demonstration]) -> list[ChatMessage]:
    return [
        turn
        for demonstration in demonstrations
        for turn in (
            {"role": "user", "content": demonstration.input},
            {"role": "assistant", "content": demonstration.output},
        )
    ]
