"""Where answers go: tables on a terminal, bare columns in a pipe, or one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NOTHING = "-"

# A column with less room for it says nothing.
NARROWEST = 10
# Between two columns, and at both edges.
_GAP = 2

# Words that stand out on a terminal, as a whole cell.
_STYLES = {
    "running": "green",
    "paused": "yellow",
    "cancelled": "red",
    "succeeded": "cyan",
    "champion": "bold green",
    "baseline": "yellow",
    "retired": "dim",
    "ok": "green",
    "note": "yellow",
    "broken": "bold red",
}


@dataclass(frozen=True)
class Column:
    """A column of a table; one that `gives` is cut, or left out, where a terminal is narrow."""

    name: str
    right: bool = False
    gives: bool = False


class Output:
    """Standard output, in the form that suits who reads it."""

    def __init__(
        self, *, as_json: bool = False, stream: TextIO | None = None, console: Console | None = None
    ) -> None:
        self.as_json = as_json
        self._stream = stream or sys.stdout
        self._console = console or (_console(self._stream) if self._stream.isatty() else None)

    def document(self, value: Mapping[str, Any]) -> None:
        """The whole answer as JSON."""
        self._line(json.dumps(value, ensure_ascii=False, indent=2))

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        """Rows of cells, each on one line."""
        cells = [tuple(_one_line(cell) for cell in row) for row in rows]
        if self._console is None:
            self._columns([[column.name.upper() for column in columns], *cells], columns)
            return
        from rich import box
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0)
        )
        natural = [
            max([len(column.name), *(len(row[index]) for row in cells)])
            for index, column in enumerate(columns)
        ]
        widths = _fitted(natural, columns, self._console.width)
        for index, width in widths.items():
            table.add_column(
                columns[index].name,
                justify="right" if columns[index].right else "left",
                width=width,
                overflow="ellipsis",
                no_wrap=True,
            )
        for row in cells:
            table.add_row(*(_text(row[index]) for index in widths))
        self._console.print(table)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Names and what is to be said of each."""
        shown = {name: _one_line(fact) for name, fact in facts.items() if fact}
        if self._console is None:
            self._columns(
                [[name, fact] for name, fact in shown.items()], [Column("name"), Column("fact")]
            )
            return
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, fact in shown.items():
            grid.add_row(name, _text(fact))
        self._console.print(grid)

    def passage(self, title: str, text: str) -> None:
        """A longer text as it is, under a title."""
        shown = _printable(text)
        if self._console is None:
            indented = "".join(f"  {line}".rstrip() + "\n" for line in shown.splitlines())
            self._stream.write(f"\n{title}\n{indented}")
            return
        from rich import box
        from rich.panel import Panel

        self._console.print(
            Panel(_text(shown), title=title, title_align="left", box=box.ROUNDED, padding=(0, 1))
        )

    def line(self, text: str) -> None:
        """A line of text, however long."""
        if self._console is None:
            self._line(_printable(text))
        else:
            self._console.print(_text(_printable(text)), soft_wrap=True)

    def outcome(self, value: Mapping[str, Any], text: str) -> None:
        """The answer as JSON, or the line that says the same."""
        if self.as_json:
            self.document(value)
        else:
            self.line(text)

    def mark(self, verdict: str, text: str, way_out: str = "") -> None:
        """A verdict in front of what it is about, and below what to do."""
        if self._console is None:
            self._line(f"{verdict:<8}{_printable(text)}")
            if way_out:
                self._line(f"{'':<8}-> {_one_line(way_out)}")
            return
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(width=6, no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(_text(verdict), _text(_one_line(text)))
        if way_out:
            grid.add_row("", _text(f"\N{RIGHTWARDS ARROW} {_one_line(way_out)}"))
        self._console.print(grid)

    def _columns(self, rows: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
        """Each as wide as its widest cell, so that nothing is cut off."""
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        for row in rows:
            cells = (
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            )
            self._line("  ".join(cells).rstrip())

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")


def number(value: float | None, *, digits: int = 3) -> str:
    """A number with so many digits after the point."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def moment(text: str | datetime | None) -> str:
    """A time to the minute, in UTC."""
    if not text:
        return NOTHING
    at = datetime.fromisoformat(text) if isinstance(text, str) else text
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _fitted(natural: Sequence[int], columns: Sequence[Column], room: int) -> dict[int, int]:
    """The width of each column that is shown, by its index."""
    left = (
        room
        - _GAP
        - sum(
            width + _GAP for width, column in zip(natural, columns, strict=True) if not column.gives
        )
    )
    giving = [index for index, column in enumerate(columns) if column.gives]
    widths = {index: width for index, width in enumerate(natural) if index not in giving}
    while giving:
        index = giving.pop(0)
        fair = left // (len(giving) + 1) - _GAP
        if natural[index] <= fair or fair >= NARROWEST:
            widths[index] = min(natural[index], fair)
            left -= widths[index] + _GAP
    return dict(sorted(widths.items()))


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(file=stream, highlight=False, soft_wrap=False)


def _text(cell: str) -> Text:
    """The cell itself: what looks like markup in a prompt is none."""
    from rich.text import Text

    return Text(cell, style=_STYLES.get(cell, ""))


def _one_line(text: str) -> str:
    return " ".join(_printable(text).split()) or NOTHING


def _printable(text: str) -> str:
    """Without control characters: a model's words must not steer the terminal."""
    return "".join(
        character if character.isprintable() or character == "\n" else " " for character in text
    )
