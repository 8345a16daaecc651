"""What a text must not be or do to become an instruction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

from prefect_mipro.models.chat import InitialPrompt
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import wildcards

SHORTEST_CHARACTERS = 20
LONGEST_CHARACTERS = 2_000
NEAR_DUPLICATE = 0.9
COPIED_WORDS = 8
FEWEST_COPIED_WORDS = 4

_WORD = re.compile(r"\w+")
CHAT_TOKEN = re.compile(
    r"<[|\uff5c][^<>\n]{1,40}[|\uff5c]>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>",
    re.IGNORECASE,
)
_FORMAT = re.compile(
    r"\b(?:json|xml|yaml|html|csv|markdown|latex|boxed|uppercase|lowercase)\b"
    r"|</?\w+>|`[^`\n]+`|#{3,}",
    re.IGNORECASE,
)
_SUSPICIOUS = (
    (CHAT_TOKEN, "a chat token"),
    (re.compile(r"^\s*(?:system|developer|user|human|assistant)\s*:", re.I | re.M), "a role"),
    (
        re.compile(r"</?instruction>|\bdata-[0-9a-z]{6,}|\\u003[ce]|\"verdict\":", re.I),
        "a mark of the request",
    ),
    (re.compile(r"\b(?:https?|ftp|file|data):\S|\bwww\.", re.I), "a link"),
    (re.compile(r"[\w.+-]+@[\w-]+\.\w"), "a mail address"),
    (re.compile(r"[A-Za-z0-9+/_-]{48,}|\d(?:[ .-]?\d){8,}"), "a code or a long number"),
    (
        re.compile(
            r"\b(?:ignore|disregard|forget|override|bypass)\b[^.\n]{0,40}"
            r"\b(?:previous|prior|above|earlier|preceding|other|all|your|any|instructions?|rules?)\b",
            re.I,
        ),
        "an order to ignore something",
    ),
)


def lint(
    text: str,
    *,
    baseline: str,
    prompt: InitialPrompt | None,
    others: Sequence[str],
    traces: Sequence[ExampleTrace],
) -> str:
    """Why the text may not become an instruction; empty when it may."""
    allowed = "\n".join([baseline, *(m.pattern for m in prompt.messages)] if prompt else [baseline])
    return (
        _wrong_length(text)
        or _wrong_characters(text, baseline)
        or _wrong_wildcards(text, baseline)
        or _lost_format(text, baseline)
        or _suspicious(text, allowed)
        or _near_duplicate(text, [baseline, *others])
        or _copied(text, allowed, traces)
    )


def _wrong_length(text: str) -> str:
    if SHORTEST_CHARACTERS <= len(text) <= LONGEST_CHARACTERS:
        return ""
    return f"has {len(text)} characters, not {SHORTEST_CHARACTERS} to {LONGEST_CHARACTERS}"


def _wrong_characters(text: str, baseline: str) -> str:
    strange = next((c for c in text if c not in baseline and not _printable(c)), None)
    return f"holds the invisible character {strange!a}" if strange else ""


def _printable(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character)[0] != "C"


def _wrong_wildcards(text: str, baseline: str) -> str:
    kept, wanted = set(wildcards(text)), set(wildcards(baseline))
    if lost := sorted(wanted - kept):
        return f"loses the wildcard {{{lost[0]}}}"
    if strange := sorted(kept - wanted):
        return f"adds the wildcard {{{strange[0]}}}"
    return ""


def _lost_format(text: str, baseline: str) -> str:
    kept = text.casefold()
    lost = next((w for w in _FORMAT.findall(baseline) if w.casefold() not in kept), None)
    return f"loses the output format {lost!r}" if lost else ""


def _suspicious(text: str, allowed: str) -> str:
    known = allowed.casefold()
    for pattern, name in _SUSPICIOUS:
        for found in pattern.finditer(text):
            if found[0].casefold() not in known:
                return f"holds {name}: {found[0][:40]!r}"
    return ""


def _near_duplicate(text: str, others: Iterable[str]) -> str:
    words = set(_words(text))
    for other in others:
        theirs = set(_words(other))
        if len(words & theirs) > NEAR_DUPLICATE * len(words | theirs):
            return f"is nearly the same as {other[:40]!r}"
    return ""


def _copied(text: str, allowed: str, traces: Sequence[ExampleTrace]) -> str:
    """A run of words from a trace, or a whole input of a few words, that the prompt does not have.

    Instructions that swallow a training example score worse than the one they replace
    (arXiv 2406.11695, table 6), and they publish what a user wrote.
    """
    lengths = range(FEWEST_COPIED_WORDS, COPIED_WORDS + 1)
    ours = {run for length in lengths for run in _runs(_words(text), length)}
    ours -= {run for length in lengths for run in _runs(_words(allowed), length)}
    for trace in traces:
        for run in _telling_runs(trace):
            if run in ours:
                return f"copies {' '.join(run)!r} from an example"
    return ""


def _telling_runs(trace: ExampleTrace) -> Iterator[tuple[str, ...]]:
    for text in (trace.input, trace.output, trace.expected, trace.feedback):
        words = _words((text or "")[:LONGEST_CHARACTERS])
        yield from _runs(words, COPIED_WORDS)
        if text is trace.input and len(words) < COPIED_WORDS:
            yield tuple(words)


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
