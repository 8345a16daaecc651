"""Two charts as SVG, small enough to travel inside a markdown artifact: a curve, and intervals."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

WIDTH = 760
CURVE_HEIGHT = 320
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 24, 48
NAMES = 118
ROW, TREE, INDENT, DEEPEST, COUNTS = 26, 272, 14, 6, 78
LABEL_CHARACTERS = 34

LINE, BAND, GRID, INK, FAINT = "#2563eb", "#bfdbfe", "#e5e7eb", "#374151", "#6b7280"
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"


@dataclass(frozen=True)
class Point:
    """A mean at `x`, with the interval it is known to."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Level:
    """A dashed line with a name."""

    name: str
    value: float
    color: str


@dataclass(frozen=True)
class Bar:
    """A row: a mean with its interval, what it rests on, and the row that it came from."""

    label: str
    mean: float
    low: float
    high: float
    count: str
    color: str
    parent: int | None = None
    strong: bool = False


def line_chart(
    points: Sequence[Point], *, x_label: str, y_label: str, levels: Sequence[Level] = ()
) -> str:
    """The chart as an SVG text. Values are drawn on [0, 1]; what lies beyond is clipped to it."""
    largest = max((point.x for point in points), default=1.0) or 1.0
    bottom = CURVE_HEIGHT - BOTTOM
    right = WIDTH - (NAMES if levels else RIGHT)

    def x(value: float) -> float:
        return LEFT + (right - LEFT) * value / largest

    def y(value: float) -> float:
        return bottom - (bottom - TOP) * _clipped(value)

    upper = [(x(p.x), y(p.high)) for p in points]
    lower = [(x(p.x), y(p.low)) for p in reversed(points)]
    marks = [(x(p.x), y(p.mean)) for p in points]
    parts = [
        *(_grid_row(y(share / 5), right, share / 5) for share in range(6)),
        *(_text(x(tick), bottom + 18, f"{tick:g}", anchor="middle") for tick in ticks(largest)),
        _text(LEFT + (right - LEFT) / 2, CURVE_HEIGHT - 10, x_label, anchor="middle"),
        f'<g transform="rotate(-90 16 {CURVE_HEIGHT / 2:g})">'
        f"{_text(16, CURVE_HEIGHT / 2, y_label, anchor='middle')}</g>",
    ]
    if points:
        parts += [
            f'<polygon points="{_path(upper + lower)}" fill="{BAND}" fill-opacity="0.6"/>',
            f'<polyline points="{_path(marks)}" fill="none" stroke="{LINE}" stroke-width="2.5" '
            'stroke-linejoin="round"/>',
            *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{LINE}"/>' for a, b in marks),
        ]
    names = _apart([y(level.value) + 4 for level in levels])
    for level, name in zip(levels, names, strict=True):
        height = y(level.value)
        parts.append(_dashed(LEFT, height, right, height, level.color))
        label = f"{level.name} {level.value:.2f}"
        parts.append(_text(right + 6, name, label, color=level.color, more=' font-weight="600"'))
    return _card(parts, CURVE_HEIGHT)


def interval_chart(bars: Sequence[Bar], *, x_label: str, levels: Sequence[Level] = ()) -> str:
    """One row per bar on [0, 1], drawn as a tree: a bar stands below and right of its parent."""
    bottom = TOP + ROW * len(bars)
    height = bottom + BOTTOM
    right = WIDTH - RIGHT - COUNTS
    depths = _depths(bars)

    def x(value: float) -> float:
        return TREE + (right - TREE) * _clipped(value)

    def y(row: int) -> float:
        return TOP + ROW * (row + 0.5)

    def indent(row: int) -> float:
        return 24.0 + INDENT * min(depths[row], DEEPEST)

    parts = [
        *(_grid_column(x(share / 5), bottom, share / 5) for share in range(6)),
        _text(TREE + (right - TREE) / 2, height - 10, x_label, anchor="middle"),
    ]
    for level in levels:
        parts.append(_dashed(x(level.value), TOP - 6, x(level.value), bottom, level.color))
        parts.append(
            _text(x(level.value), TOP - 10, level.name, anchor="middle", color=level.color)
        )
    for row, bar in enumerate(bars):
        if bar.parent is not None:
            parts.append(_branch(indent(bar.parent), y(bar.parent), indent(row), y(row)))
    for row, bar in enumerate(bars):
        weight = ' font-weight="600"' if bar.strong else ""
        label = bar.label[:LABEL_CHARACTERS]
        parts += [
            f'<circle cx="{indent(row):.1f}" cy="{y(row):.1f}" r="4.5" fill="{bar.color}"/>',
            _text(indent(row) + 11, y(row) + 4, label, more=weight),
            f'<line x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{y(row):.1f}" '
            f'y2="{y(row):.1f}" stroke="{bar.color}" stroke-width="7" stroke-opacity="0.28" '
            'stroke-linecap="round"/>',
            f'<circle cx="{x(bar.mean):.1f}" cy="{y(row):.1f}" r="4.5" fill="{bar.color}"/>',
            _text(WIDTH - RIGHT, y(row) + 4, bar.count, anchor="end", color=FAINT),
        ]
    return _card(parts, height)


def data_uri(svg: str) -> str:
    """The SVG as an address that markdown can show."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def ticks(largest: float, *, count: int = 6) -> list[float]:
    """Round numbers from 0 to `largest`, about `count` of them: steps of 1, 2 or 5."""
    raw = largest / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= raw)
    return [index * step for index in range(int(largest / step + 1e-9) + 1)]


def _depths(bars: Sequence[Bar]) -> list[int]:
    depths: list[int] = []
    for bar in bars:
        depths.append(0 if bar.parent is None else depths[bar.parent] + 1)
    return depths


def _clipped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _card(parts: Sequence[str], height: float) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" font-family="{FONT}" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff"/>'
    )
    return "".join([head, *parts, "</svg>"])


def _grid_row(height: float, right: float, value: float) -> str:
    line = f'<line x1="{LEFT}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}" stroke="{GRID}"/>'
    return line + _text(LEFT - 8, height + 4, f"{value:.1f}", anchor="end")


def _grid_column(x: float, bottom: float, value: float) -> str:
    line = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom:.1f}" stroke="{GRID}"/>'
    return line + _text(x, bottom + 18, f"{value:.1f}", anchor="middle")


def _branch(x_parent: float, y_parent: float, x: float, y: float) -> str:
    """From below the parent's dot down, then right to the child's."""
    start = max(x_parent, 0.0) if x > x_parent else x_parent - 8
    return (
        f'<path d="M{start:.1f} {y_parent:.1f}V{y:.1f}H{x:.1f}" fill="none" stroke="#d1d5db" '
        'stroke-width="1.5"/>'
    )


def _apart(heights: Sequence[float], *, least: float = 15.0) -> list[float]:
    """The heights, moved up as far as needed for their texts not to cover each other."""
    moved = list(heights)
    order = sorted(range(len(moved)), key=moved.__getitem__, reverse=True)
    for below, above in pairwise(order):
        moved[above] = min(moved[above], moved[below] - least)
    return moved


def _dashed(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        'stroke-dasharray="6 4" stroke-width="1.5"/>'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", color: str = INK, more: str = ""
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"{more}>'
        f"{escape(text)}</text>"
    )


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
