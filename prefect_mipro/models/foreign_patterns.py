"""Placeholders of other template languages, which would be sent to a model as they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from prefect_mipro.models.chat import InitialPrompt
from prefect_mipro.models.placeholders import is_format, placeholders

# Of bounded length, so that no text makes the search slow.
_NAME = "[A-Za-z_][A-Za-z0-9_]{0,80}"
# {{text}}, {{ row.text | upper }}, {{{text}}}, {{#each rows}}
_MUSTACHE = re.compile(
    r"\{\{[{#/^&>!~-]?\s{0,8}(?:each\s|if\s)?([A-Za-z_][^{}|\s]{0,80})(?:[|\s][^{}]{0,80})?\}\}\}?"
)
# {% if row %}, {# a remark #}
_BLOCK = re.compile(r"(?<!\{)\{(?:%[^{}]{0,200}%|#[^{}]{0,200}#)\}")
# {row.text}, {row["text"]}, {text!r}, {stars:.2f}, {name:>10}, {day:%A}; not {"a": 1}, {eq:1}
_SPEC = (
    r":(?:.?[<>=^]\d{0,4}|[-+]?\d{0,4}[,_]?(?:\.\d{1,4})?[deEfFgGns%]|[-+]?\d{0,4}[,_]?\.\d{1,4}"
    r"|\d{0,4}[,_]|%[^{}]{1,40})"
)
_EXPRESSION = re.compile(
    rf"(?<!\{{)\{{({_NAME}(?:\.[^{{}}\s]{{1,80}}|\[[^{{}}]{{0,80}}\][^{{}}\s]{{0,80}})?)"
    rf"(![rsa])?({_SPEC})?\}}"
)
_PLAIN = re.compile(rf"(?<!\{{)\{{{_NAME}\}}")
# A name between blanks.
_SPACED = re.compile(rf"(?<!\{{)\{{(?:\s{{1,8}}({_NAME})\s{{0,8}}|({_NAME})\s{{1,8}})\}}")
# {} and {0}, the fields of str.format that have no name.
_UNNAMED = re.compile(r"(?<!\{)\{\d{0,3}\}")


def faults(prompt: InitialPrompt) -> Iterator[str]:
    """What in the prompt's patterns cannot be meant as it stands, and what to write instead."""
    escapes = any(_PLAIN.search(message.pattern) for message in prompt.messages)
    for place, pattern in _patterns(prompt):
        for found in _BLOCK.finditer(pattern):
            yield (
                f"{place} has {found[0]}; Jinja is not understood: write the prompt without it, "
                "with {name} for what differs from call to call"
            )
        for found in _EXPRESSION.finditer(pattern):
            path, conversion, spec = found.groups()
            if path != _last(path):
                yield (
                    f"{place} has {found[0]}; a placeholder is a name only: write "
                    f"{{{_last(path)}}}, and give the row a field {_last(path)!r}"
                )
            elif conversion or spec:
                yield (
                    f"{place} has {found[0]}; a placeholder is a name only: write {{{path}}}, and "
                    "format the value in the row"
                )
        for found in () if escapes and is_format(pattern) else _MUSTACHE.finditer(pattern):
            yield f"{place} has {found[0]}; write {{{_last(found[1])}}} for a placeholder"


def doubtful(prompt: InitialPrompt) -> Iterator[str]:
    """What in the prompt is read literally, or has no effect, and may have been meant otherwise."""
    known = {name for message in prompt.messages for name in placeholders(message.pattern)}
    for name in prompt.wildcards:
        if name not in known:
            yield (
                f"prompt_learning.initial_prompt.wildcards names {name!r}, which no pattern has; "
                f"write {{{name}}} where its text belongs"
            )
    for place, pattern in _patterns(prompt):
        for found in _SPACED.finditer(pattern):
            name = found[1] or found[2]
            yield f"{place} has {found[0]}, which is sent as it stands; write {{{name}}}"
        if not known and (unnamed := _UNNAMED.search(pattern)):
            yield (
                f"{place} has {unnamed[0]}, which is sent as it stands; a placeholder has a name: "
                "write {text}, and give the row a field 'text'"
            )
        for found in _MUSTACHE.finditer(pattern):
            yield (
                f"{place} has {found[0]}, in which doubled braces stand for braces, as in "
                f"str.format; write {{{_last(found[1])}}} for a placeholder"
            )


def _patterns(prompt: InitialPrompt) -> Iterator[tuple[str, str]]:
    for number, message in enumerate(prompt.messages):
        yield f"prompt_learning.initial_prompt.messages[{number}].pattern", message.pattern


def _last(path: str) -> str:
    """The name at the end of a path such as `row.text` or `row["text"]`; of a call, the first."""
    names = re.findall(_NAME, path)
    return str(names[0] if "(" in path else names[-1])
