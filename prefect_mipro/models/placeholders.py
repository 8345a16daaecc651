"""A prompt's placeholders: which there are, and the texts that are put in their places."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.chat import ChatMessage, InitialPrompt

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def placeholders(pattern: str) -> tuple[str, ...]:
    """The names of the pattern's placeholders, each once, in order."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(pattern)))


def fill(pattern: str, texts: Mapping[str, str]) -> str:
    """The pattern with each placeholder that has a text replaced by it; other braces stay."""
    return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), pattern)


def filled(prompt: InitialPrompt, row: Any) -> list[ChatMessage]:
    """The prompt's messages with a text or a number in the place of each placeholder.

    They are the row's fields of that name. Other fields may be there, and one that the prompt calls
    OPTIONAL may be missing. For a prompt with one placeholder the row may be its text. Raises
    InputInvalid.
    """
    values = _values(prompt, row)
    texts = {name: _text(prompt, name, values) for name in names(prompt)}
    return [{"role": m.role, "content": fill(m.pattern, texts)} for m in prompt.ordered]


def names(prompt: InitialPrompt) -> tuple[str, ...]:
    """The names of the placeholders of all its messages."""
    return tuple(dict.fromkeys(name for m in prompt.ordered for name in placeholders(m.pattern)))


def fields_of(row: Any) -> Mapping[str, Any] | None:
    """The fields of a mapping, or of what can be made a dict, such as `sqlite3.Row`; else None."""
    if isinstance(row, Mapping):
        return row
    if hasattr(row, "keys") and hasattr(row, "__getitem__"):
        return dict(row)
    return None


def _values(prompt: InitialPrompt, row: Any) -> Mapping[str, Any]:
    fields = fields_of(row)
    if fields is not None:
        return fields
    wanted = names(prompt)
    if isinstance(row, str) and len(wanted) == 1:
        return {wanted[0]: row}
    raise InputInvalid(
        f"the row is {row!r:.80}; give one with fields for the prompt's placeholders: "
        f"{', '.join(wanted) or 'there are none'}"
    )


def _text(prompt: InitialPrompt, name: str, values: Mapping[str, Any]) -> str:
    value = values.get(name)
    if value is None:
        if prompt.wildcards.get(name) == "OPTIONAL":
            return ""
        if name in values:
            raise InputInvalid(
                f"{name!r} is None, and the prompt has the placeholder {{{name}}}; give a text, or "
                f'say wildcards = {{ {name} = "OPTIONAL" }} in the config\'s initial_prompt'
            )
        raise InputInvalid(
            f"there is no value for the prompt's placeholder {{{name}}} (there are: "
            f"{', '.join(map(str, values)) or 'none'}); name a field like the placeholder"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputInvalid(f"{name!r} is {value!r:.80}; give a text or a number")
    try:
        text = str(value)
    except ValueError:
        raise InputInvalid(f"{name!r} is a number too long to be written; give a text") from None
    if name in prompt.required_wildcards and not text.strip():
        raise InputInvalid(f"{name!r} is blank, and the prompt requires a text there")
    return text
