"""Patterns in the syntax of other template languages are refused, or doubted, at creation."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import ConfigInvalid


def parsed(*patterns: str) -> MiproConfig:
    messages = [{"role": "user", "pattern": pattern} for pattern in patterns]
    table: dict[str, Any] = {"algorithm": "mipro", "initial_prompt": {"messages": messages}}
    return MiproConfig.parse({"prompt_learning": table})


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("Ticket: {{text}}", r"messages\[0\].pattern has {{text}}; write {text}"),
        ("{{ text }}", "has {{ text }}; write {text}"),
        ("{{ row.text | upper }}", "write {text}"),
        ("{{{text}}}", "has {{{text}}}; write {text}"),
        ("{{#each rows}}", "write {rows}"),
        ('{"a": {{text}}} {b}', "write {text}"),
        ("{% if text %}yes{% endif %} {text}", "has {% if text %}; Jinja is not understood"),
        ("{# a remark #} {text}", "Jinja is not understood"),
        ("{row.text}", "has {row.text}; .* write {text}, and give the row a field 'text'"),
        ('{row["text"]}', "write {text}"),
        ("{rows[0]}", "write {rows}"),
        ("{text.strip()}", "write {text}"),
        ('{"a":{row.text}}', "write {text}"),
        ("{text!r}", "write {text}, and format the value in the row"),
        ("{stars:.2f}", "has {stars:.2f}; .* write {stars}, and format the value in the row"),
        ("{stars:d}", "write {stars}"),
        ("{stars:,}", "write {stars}"),
        ("{name:>10}", "write {name}"),
        ("{day:%Y-%m-%d}", "write {day}"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_what_to_write(pattern: str, sentence: str) -> None:
    with pytest.raises(ConfigInvalid, match=sentence):
        parsed(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        'Answer as {"label": "..."} for {text}',
        'Answer as {{"label": "..."}} for {text}',
        "{label: 1} {a, b} {} {0} for {text}",
        "\\label{eq:1} \\sum_{i=1}^{n} \\frac{f(x)}{2} for {text}",
        "{{1, 2}, {3, 4}} for {text}",
    ],
)
def test_braces_of_other_things_are_text(pattern: str) -> None:
    assert parsed(pattern).warnings == []


@pytest.mark.parametrize(
    "patterns", [("Say {{label}}: {text}",), ("Say {{label}}.", "{text}")], ids=["one", "two"]
)
def test_beside_a_placeholder_doubled_braces_are_braces_with_a_warning(
    patterns: tuple[str, ...],
) -> None:
    (warning,) = parsed(*patterns).warnings
    assert "has {{label}}, in which doubled braces stand for braces" in warning
    assert "write {label} for a placeholder" in warning


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("{ text }", "has { text }, which is sent as it stands; write {text}"),
        ("{text } for {text}", "has {text }, which is sent as it stands; write {text}"),
        (
            "Ticket: {}",
            "has {}, which is sent as it stands; a placeholder has a name: write {text}",
        ),
        ("Ticket: {0}", "has {0}, which is sent as it stands; a placeholder has a name"),
    ],
)
def test_what_may_have_been_meant_as_a_placeholder_is_a_warning(
    pattern: str, sentence: str
) -> None:
    (warning,) = parsed(pattern).warnings
    assert sentence in warning


def test_a_wildcard_that_no_pattern_has_is_a_warning() -> None:
    prompt = {
        "messages": [{"role": "user", "pattern": "Ticket: {text}"}],
        "wildcards": {"text": "REQUIRED", "query": "OPTIONAL"},
    }
    (warning,) = MiproConfig.parse(
        {"prompt_learning": {"algorithm": "mipro", "initial_prompt": prompt}}
    ).warnings
    assert "wildcards names 'query', which no pattern has; write {query} where its" in warning


def test_a_hostile_pattern_takes_no_longer_than_its_length_deserves() -> None:
    for piece in ("{{a", "{{ ", "{a.", ":%", "{a[", "{%", "{#a", "{ a", "a" * 40):
        parsed("{text} {a.{{ " + piece * 5_000)
