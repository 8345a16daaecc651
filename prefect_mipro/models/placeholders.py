"""Patterns: the placeholders of a prompt, and the texts that are put in their places.

A pattern is read as `str.format` reads it: `{name}` is a placeholder, `{{` and `}}` are braces. A
pattern that `str.format` would refuse, because it has single braces such as those of JSON, is read
as it stands: `{name}` is a placeholder, and all other braces are themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from typing import Any

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import Record
from prefect_mipro.models.chat import ChatMessage, InitialPrompt
from prefect_mipro.models.rows import fields_of, is_missing, row_name

# How many patterns are cached in their split form.
SPLIT_PATTERNS = 1_024

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BRACES = re.compile(rf"\{{\{{|\}}\}}|{_PLACEHOLDER.pattern}|[{{}}]")


class Placeholder(Record):
    """A variable `{name}` of the session's prompt.

    One that is not `required` may be left out. `may_be_blank` says whether its text may be without
    a visible character.
    """

    name: str
    required: bool
    may_be_blank: bool = True


@lru_cache(SPLIT_PATTERNS)
def split(pattern: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The literal parts around the placeholders, one more than there are names, and the names."""
    braces = _BRACES if is_format(pattern) else _PLACEHOLDER
    literals, names, position = [""], [], 0
    for each in braces.finditer(pattern):
        literals[-1] += pattern[position : each.start()]
        if each[1]:
            names.append(each[1])
            literals.append("")
        else:
            literals[-1] += each[0][0]
        position = each.end()
    literals[-1] += pattern[position:]
    return tuple(literals), tuple(names)


def is_format(pattern: str) -> bool:
    """Whether `str.format` would fill the pattern: no brace of it stands alone."""
    return not any(each[0] in ("{", "}") for each in _BRACES.finditer(pattern))


def placeholders(pattern: str) -> tuple[str, ...]:
    """The names of the pattern's placeholders, each once, in order."""
    return tuple(dict.fromkeys(split(pattern)[1]))


def fill(pattern: str, texts: Mapping[str, str]) -> str:
    """The pattern with the text of each placeholder; one that has no text stays as it is."""
    literals, names = split(pattern)
    filled = (
        texts.get(name, f"{{{name}}}") + literal
        for name, literal in zip(names, literals[1:], strict=True)
    )
    return literals[0] + "".join(filled)


def escaped(text: str) -> str:
    """A pattern that is filled with this text, whatever braces are in it."""
    return text.replace("{", "{{").replace("}", "}}")


def placeholders_of(prompt: InitialPrompt) -> tuple[Placeholder, ...]:
    """The placeholders of all messages. One of which the prompt says nothing is required."""
    names = dict.fromkeys(name for m in prompt.ordered for name in placeholders(m.pattern))
    return tuple(
        Placeholder(
            name=name,
            required=prompt.wildcards.get(name) != "OPTIONAL",
            may_be_blank=name not in prompt.required_wildcards,
        )
        for name in names
    )


def filled(prompt: InitialPrompt, row: Any) -> list[ChatMessage]:
    """The prompt's messages, filled with the row's fields; see `texts_of`.

    For a prompt with one placeholder the row may be its text. Raises InputInvalid.
    """
    wanted = placeholders_of(prompt)
    fields = fields_of(row)
    if fields is None and isinstance(row, str) and len(wanted) == 1:
        fields = {wanted[0].name: row}
    if fields is None:
        names = ", ".join(each.name for each in wanted) or "there are none"
        raise InputInvalid(
            f"the row is {row!r:.80}; give one with fields for the prompt's placeholders: {names}"
        )
    texts = texts_of(wanted, fields)
    return [{"role": m.role, "content": fill(m.pattern, texts)} for m in prompt.ordered]


def texts_of(
    wanted: Sequence[Placeholder], fields: Mapping[str, Any], *, name: str = ""
) -> dict[str, str]:
    """The text of each placeholder: the field of its name, a text or a number.

    Other fields may be there; a placeholder that is not required may be missing and is empty then.
    Raises InputInvalid, which calls the fields `name`, else by the row's id.
    """
    return {each.name: _text(each, fields, name) for each in wanted}


def _text(placeholder: Placeholder, fields: Mapping[str, Any], fields_name: str) -> str:
    name = placeholder.name
    value = fields.get(name)

    def row() -> str:
        return fields_name or row_name(fields)

    if is_missing(value):
        if not placeholder.required:
            return ""
        if name in fields:
            raise InputInvalid(
                f"{name!r} is {value} in {row()}, and the prompt has the placeholder {{{name}}}; "
                f'give a text, or say wildcards = {{ {name} = "OPTIONAL" }} in the config\'s '
                "initial_prompt"
            )
        raise InputInvalid(
            f"there is no value for the prompt's placeholder {{{name}}} in {row()} (there are: "
            f"{', '.join(map(str, fields)) or 'none'}); name a field like the placeholder"
        )
    if isinstance(value, bool) or not isinstance(value, str | Real | Decimal):
        raise InputInvalid(f"{name!r} is {value!r:.80} in {row()}; give a text or a number")
    try:
        text = str(value)
    except ValueError:
        raise InputInvalid(
            f"{name!r} is a number too long to be written in {row()}; give a text"
        ) from None
    if not placeholder.may_be_blank and not text.strip():
        raise InputInvalid(f"{name!r} is blank in {row()}, and the prompt requires a text there")
    return text
