"""Foreign text in markdown: escaped for cells, fenced for prompts, so that it can only be read.

Prefect's first UI shows the cells of tables as markdown, its second one as plain text. Escapes are
backslashes, and only where markdown would find something, so that both can be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from textwrap import wrap

CELL_CHARACTERS = 120
LINE_CHARACTERS = 64
BLOCK_CHARACTERS = 20_000
# In a cell, where others of its row have a value.
NO_VALUE = "-"

_SPECIAL = re.compile(
    r"""
    [\\`*\[\]<>&|~@]                     # code, emphasis, links, pictures, HTML, cells, addresses
    | (?<![^\W_])_ | _(?![^\W_])          # emphasis; not within a word, such as an id
    | :(?=//) | (?<=www)\.               # addresses without markup
    | ^[-+=\#]                           # lists, headings, lines
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LIST_NUMBER = re.compile(r"^(\d{1,9})(?=[.)])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")


def one_line(text: str, *, characters: int = CELL_CHARACTERS) -> str:
    """The text on one line, at most so long."""
    flat = " ".join(_CONTROL.sub(" ", text).split())
    return flat if len(flat) <= characters else f"{flat[: characters - 1]}…"


def escaped(text: str) -> str:
    """Markdown that shows a line of text, or a part of one, as it is: no markup, no link."""
    return _LIST_NUMBER.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", text))


def cell(text: str, *, characters: int = CELL_CHARACTERS) -> str:
    """The text on one line, escaped."""
    return escaped(one_line(text, characters=characters))


def plain(text: str) -> str:
    """The text without characters that steer a terminal or turn the direction of reading."""
    return _CONTROL.sub(" ", text)


def fenced(text: str, *, language: str = "text") -> str:
    """A code block that the text cannot close. Long lines go on below: nobody scrolls sideways."""
    shown = plain(text)
    if len(shown) > BLOCK_CHARACTERS:
        rest = len(shown) - BLOCK_CHARACTERS
        shown = f"{shown[:BLOCK_CHARACTERS]}\n… ({rest} more characters)"
    shown = "\n".join(_narrow(shown))
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def quoted(text: str) -> str:
    """A block quote that shows the text itself, for pages where fenced text cannot be read."""
    shown = plain(text)
    if len(shown) > BLOCK_CHARACTERS:
        shown = f"{shown[:BLOCK_CHARACTERS]}…"
    lines = (cell(line, characters=BLOCK_CHARACTERS) for line in shown.split("\n"))
    # Two spaces at the end of a line make its break visible.
    return "  \n".join(f"> {line}" for line in lines)


def folded(summary: str, body: str) -> str:
    """A section that opens on a click. `summary` is text of our own."""
    return f"<details><summary>{summary}</summary>\n\n{body}\n\n</details>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GFM table. Cells are markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _narrow(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if len(line) > LINE_CHARACTERS:
            yield from wrap(
                line,
                LINE_CHARACTERS,
                replace_whitespace=False,
                break_long_words=False,
                break_on_hyphens=False,
            )
        else:
            yield line
