"""A line chart with an interval band as SVG: small enough to travel inside a markdown artifact."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 46
LINE, BAND, GRID, INK = "#2563eb", "#93c5fd", "#e5e7eb", "#374151"


@dataclass(frozen=True)
class Point:
    """A mean at `x`, with the interval it is known to."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line with a name."""

    name: str
    value: float
    color: str


def line_chart(
    points: Sequence[Point],
    *,
    title: str,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
) -> str:
    """The chart as an SVG text. Values are drawn on [0, 1]; what lies beyond is clipped to it."""
    largest = max((point.x for point in points), default=1.0) or 1.0

    def x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / largest

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(1.0, max(0.0, value))

    upper = [(x(p.x), y(p.high)) for p in points]
    lower = [(x(p.x), y(p.low)) for p in reversed(points)]
    marks = [(x(p.x), y(p.mean)) for p in points]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img" font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 18, title, anchor="middle", size=14),
        *(_grid_line(y(share / 5), share / 5) for share in range(6)),
        *(
            _text(x(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", anchor="middle")
            for tick in ticks(largest)
        ),
        _text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle"),
        f'<g transform="rotate(-90 14 {HEIGHT / 2:g})">'
        f"{_text(14, HEIGHT / 2, y_label, anchor='middle')}</g>",
    ]
    if points:
        parts += [
            f'<polygon points="{_path(upper + lower)}" fill="{BAND}" fill-opacity="0.45"/>',
            f'<polyline points="{_path(marks)}" fill="none" stroke="{LINE}" stroke-width="2"/>',
            *(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{LINE}"/>' for a, b in marks),
        ]
    parts += [_level(level, y(level.value)) for level in levels]
    return "".join([*parts, "</svg>"])


def data_uri(svg: str) -> str:
    """The SVG as an address that markdown can show."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def ticks(largest: float, *, count: int = 6) -> list[float]:
    """Round numbers from 0 to `largest`, about `count` of them: steps of 1, 2 or 5."""
    raw = largest / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(size * magnitude for size in (1, 2, 5, 10) if size * magnitude >= raw)
    return [index * step for index in range(int(largest / step + 1e-9) + 1)]


def _grid_line(height: float, value: float) -> str:
    line = (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
        f'stroke="{GRID}"/>'
    )
    return line + _text(LEFT - 8, height + 4, f"{value:.1f}", anchor="end")


def _level(level: Level, height: float) -> str:
    line = (
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" '
        f'stroke="{level.color}" stroke-dasharray="6 4" stroke-width="1.5"/>'
    )
    label = f"{level.name} {level.value:.2f}"
    # Above the line, but not above the chart.
    baseline = height - 5 if height > TOP + 20 else height + 14
    return line + _text(WIDTH - RIGHT - 4, baseline, label, anchor="end", color=level.color)


def _text(x: float, y: float, text: str, *, anchor: str, size: int = 12, color: str = INK) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="{color}">{escape(text)}</text>'
    )


def _path(corners: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
