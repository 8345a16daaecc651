"""What changed between two prompts, word by word, as markdown that a person reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby

from prefect_mipro.artifacts.markdown import BLOCK_CHARACTERS, escaped, fenced, plain

# Of a longer stretch that did not change, only so many words at both ends are shown.
CONTEXT_WORDS = 15
# Texts that have less in common are two texts.
LEAST_SIMILARITY = 0.4

_WORDS = re.compile(r"\n|[^\s]+")


def difference(before: str, after: str, *, show: Callable[[str], str] = fenced) -> str:
    """New words bold, old words struck out; a text written anew shows what was there before.

    `show` makes markdown of a whole text.
    """
    if before == after:
        return "The instruction is the same."
    old, new = _words(before), _words(after)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    if matcher.ratio() < LEAST_SIMILARITY:
        return f"The instruction was written anew. Before, it was:\n\n{show(before)}"
    pieces: list[str] = []
    for what, a, b, c, d in matcher.get_opcodes():
        if what == "equal":
            pieces += _unchanged(new[c:d], first=c == 0, last=d == len(new))
        else:
            gone = [word for word in old[a:b] if word != "\n"]
            pieces += [*_marked(gone, "~~"), *_marked(new[c:d], "**")]
    return _joined(pieces)


def _words(text: str) -> list[str]:
    return _WORDS.findall(plain(text)[:BLOCK_CHARACTERS])


def _unchanged(words: Sequence[str], *, first: bool, last: bool) -> Iterator[str]:
    head = [] if first else words[:CONTEXT_WORDS]
    tail = [] if last else words[-CONTEXT_WORDS:]
    hidden = len(words) - len(head) - len(tail)
    if hidden <= CONTEXT_WORDS:
        yield from map(escaped, words)
        return
    yield from map(escaped, head)
    yield f"*… {hidden:,} words …*"
    yield from map(escaped, tail)


def _marked(words: Sequence[str], mark: str) -> Iterator[str]:
    """The words between marks, which must not reach over the end of a line."""
    for is_break, run in groupby(words, key="\n".__eq__):
        if is_break:
            yield from run
        else:
            yield f"{mark}{' '.join(map(escaped, run))}{mark}"


def _joined(pieces: Sequence[str]) -> str:
    lines = re.split(r" ?\n ?", " ".join(pieces))
    # Two spaces at the end of a line make its break visible.
    return "  \n".join(line.strip() for line in lines).strip()
