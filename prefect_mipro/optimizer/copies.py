"""Passages that a text has in common with recorded ones, in any script, with or without spaces.

Only letters and digits are compared, without case, width, spaces and punctuation: what was
written together, apart or in other letter forms is the same. A passage counts by its length in
characters, of which a script that writes a word in one or two needs fewer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from unicodedata import category, name, normalize

# A whole input of this share of a passage tells who wrote it, too.
WHOLE_SHARE = 0.5
LONGEST_READ = 4_000


@dataclass(frozen=True, eq=False)
class Copies:
    """The passages of recorded texts, by their length."""

    passages: dict[int, frozenset[str]]

    @classmethod
    def of(cls, texts: Iterable[str], *, wholes: Iterable[str] = (), known: str = "") -> Copies:
        """Of the texts, and of `wholes` also those that are shorter than a passage.

        What stands in `known`, the caller's own words, is no copy.
        """
        own = squeezed(known)
        found: dict[int, set[str]] = {}
        for text in texts:
            told = squeezed(text[:LONGEST_READ])
            for kind in _KINDS:
                found.setdefault(kind.characters, set()).update(kind.passages(told))
        for text in wholes:
            told = squeezed(text[:LONGEST_READ])
            length = next(kind for kind in _KINDS if kind.writes(told)).characters
            if WHOLE_SHARE * length <= len(told) < length:
                found.setdefault(len(told), set()).add(told)
        return cls(
            {
                length: frozenset(passage for passage in passages if passage not in own)
                for length, passages in found.items()
            }
        )

    def in_text(self, text: str) -> str:
        """The first of the passages that stands in the text; empty when there is none."""
        told = squeezed(text)
        for length, passages in self.passages.items():
            for at in range(len(told) - length + 1):
                if told[at : at + length] in passages:
                    return told[at : at + length]
        return ""


def squeezed(text: str) -> str:
    """Its letters, vowel signs and digits alone, in one case and one form."""
    folded = normalize("NFKC", text).casefold()
    return "".join(c for c in folded if category(c)[0] in "LMN")


@dataclass(frozen=True)
class _Kind:
    """Scripts alike: how long a telling passage is, and how far apart passages are remembered."""

    characters: int
    stride: int
    scripts: tuple[str, ...] = ()

    def passages(self, told: str) -> set[str]:
        windows = (told[at : at + self.characters] for at in self._starts(told))
        return {window for window in windows if self.writes(window)}

    def writes(self, told: str) -> bool:
        """Whether most of its characters are of these scripts."""
        return not self.scripts or 2 * sum(map(self._has, told)) > len(told)

    def _starts(self, told: str) -> range:
        if self.scripts and not any(map(self._has, told)):
            return range(0)
        return range(0, len(told) - self.characters + 1, self.stride)

    def _has(self, character: str) -> bool:
        return ord(character) >= _FIRST and name(character, "").startswith(self.scripts)


# The first character of Thai, before which no script of these stands.
_FIRST = 0x0E00
_KINDS = (
    # Of words or syllables.
    _Kind(8, 1, ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "YI ", "BOPOMOFO")),
    # Of letters without spaces.
    _Kind(22, 4, ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "JAVANESE")),
    # About eight words.
    _Kind(36, 6),
)
