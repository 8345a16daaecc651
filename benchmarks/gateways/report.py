"""The figures of the benchmark as tables, ratios and bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gateways.cells import Measurement, median

TIMES_LITELLM = 60.0
TIMES_TENSORZERO = 2.0
MOST_CPU_OF_BARE = 2.0
MOST_CPU_OF_ONE_SESSION = 1.2
MOST_ADDED_MS = 1.0
MOST_FIRST_BYTE_MS = 1.0
# Half of the speed of the instruments alone: beyond that they, too, would be what is measured.
LARGEST_SHARE_OF_DIRECT = 0.5
MOST_GROWTH_MB = 5.0
NAME_WIDTH = 20

Figure = Callable[[Measurement], float]


def calls_per_second(row: Measurement) -> float:
    return row.calls_per_second


def cpu_microseconds(row: Measurement) -> float:
    return row.cpu_microseconds


def latency_p50_ms(row: Measurement) -> float:
    return row.outcome.latency_p50 * 1e3


def latency_p99_ms(row: Measurement) -> float:
    return row.outcome.latency_p99 * 1e3


def first_byte_p50_ms(row: Measurement) -> float:
    return row.outcome.first_byte_p50 * 1e3


def first_byte_p99_ms(row: Measurement) -> float:
    return row.outcome.first_byte_p99 * 1e3


@dataclass(frozen=True)
class Rows:
    """All measurements of a run."""

    rows: Sequence[Measurement]

    @property
    def systems(self) -> list[str]:
        """In the order in which they took turns."""
        return list(dict.fromkeys(row.system for row in self.rows))

    @property
    def cells(self) -> set[str]:
        return {row.cell for row in self.rows}

    def has(self, cell: str, *systems: str) -> bool:
        """Whether each of them was measured there."""
        return {*systems} <= {row.system for row in self.rows if row.cell == cell}

    def by_round(self, cell: str, system: str, figure: Figure) -> dict[int, float]:
        return {
            row.round: figure(row)
            for row in self.rows
            if (row.cell, row.system) == (cell, system) and row.outcome.calls
        }

    def values(self, cell: str, system: str, figure: Figure) -> list[float]:
        return list(self.by_round(cell, system, figure).values())

    def minus(self, cell: str, system: str, other: str, figure: Figure) -> list[float]:
        """The differences within each round."""
        theirs = self.by_round(cell, other, figure)
        own = self.by_round(cell, system, figure)
        return [own[number] - theirs[number] for number in own if number in theirs]

    def ratios(self, cell: str, system: str, other: str, figure: Figure) -> list[float]:
        """The ratios within each round."""
        theirs = self.by_round(cell, other, figure)
        own = self.by_round(cell, system, figure)
        return [own[number] / theirs[number] for number in own if theirs.get(number)]


def tables(rows: Rows, peak_mb: Mapping[str, float]) -> str:
    """All tables."""
    made = (_speed(rows, peak_mb), _sessions(rows), _latency(rows), _first_byte(rows), _noise(rows))
    return "\n\n".join("\n".join(lines) for table in made if (lines := list(table)))


def _speed(rows: Rows, peak_mb: Mapping[str, float]) -> Iterator[str]:
    others = [name for name in ("litellm", "tensorzero", "bare") if rows.has("c32", name)]
    cells = [cell for cell in ("c32", "c128") if cell in rows.cells]
    if not cells:
        return
    yield "Throughput, calls/s: median over rounds (smallest to largest); CPU us per call at c32"
    heads = [*(f"x {name}" for name in others), "CPU us", "peak MB"]
    yield f"{'':{NAME_WIDTH}}{_columns(cells, 28)}{_columns(heads, 13)}"
    for name in rows.systems:
        speeds = [_spread(rows.values(cell, name, calls_per_second), ".0f") for cell in cells]
        ratios = [median(rows.ratios("c32", name, other, calls_per_second)) for other in others]
        figures = [
            *(_number(ratio, ".2f") for ratio in ratios),
            _number(median(rows.values("c32", name, cpu_microseconds)), ".0f"),
            _number(peak_mb.get(name, math.nan), ".0f"),
        ]
        yield f"{name:{NAME_WIDTH}}{_columns(speeds, 28)}{_columns(figures, 13)}"


def _sessions(rows: Rows) -> Iterator[str]:
    if not rows.has("c32-400", "ours"):
        return
    yield "CPU of ours, us per call at 32 connections: median over rounds (smallest to largest)"
    for cell, title in (("c32", "1 session"), ("c32-400", "400 sessions")):
        used = _spread(rows.values(cell, "ours", cpu_microseconds), ".0f")
        yield f"{title:{NAME_WIDTH}}{used:>28}"
    ratios = _spread(_ratios_to_one_session(rows), ".2f")
    yield f"{'ratio in a round':{NAME_WIDTH}}{ratios:>28}"


def _ratios_to_one_session(rows: Rows) -> list[float]:
    one = rows.by_round("c32", "ours", cpu_microseconds)
    many = rows.by_round("c32-400", "ours", cpu_microseconds)
    return [many[number] / one[number] for number in many if one.get(number)]


def _latency(rows: Rows) -> Iterator[str]:
    cells = [cell for cell in ("c1", "c16", "c1-50ms", "c16-50ms") if rows.has(cell, "direct")]
    if not cells:
        return
    yield "Latency added to direct, ms: p50 / p99, median over rounds of the difference within one"
    yield f"{'':{NAME_WIDTH}}{_columns(cells, 22)}"
    for name in rows.systems:
        if name == "direct":
            figures = [
                _pair(
                    rows.values(cell, name, latency_p50_ms), rows.values(cell, name, latency_p99_ms)
                )
                for cell in cells
            ]
            yield f"{'direct, in full':{NAME_WIDTH}}{_columns(figures, 22)}"
            continue
        figures = [
            _pair(
                rows.minus(cell, name, "direct", latency_p50_ms),
                rows.minus(cell, name, "direct", latency_p99_ms),
            )
            for cell in cells
        ]
        yield f"{name:{NAME_WIDTH}}{_columns(figures, 22)}"


def _first_byte(rows: Rows) -> Iterator[str]:
    cells = [cell for cell in ("stream1", "stream16") if rows.has(cell, "direct")]
    if not cells:
        return
    yield "Time to the first byte of a stream, ms: p50 / p99; minus direct; minus bare (p50)"
    heads = [f"{cell}{what}" for cell in cells for what in ("", " - direct", " - bare")]
    yield f"{'':{NAME_WIDTH}}{_columns(heads, 20)}"
    for name in rows.systems:
        figures = []
        for cell in cells:
            p50, p99 = first_byte_p50_ms, first_byte_p99_ms
            figures += [
                _pair(rows.values(cell, name, p50), rows.values(cell, name, p99)),
                _number(median(rows.minus(cell, name, "direct", p50)), ".2f"),
                _number(median(rows.minus(cell, name, "bare", p50)), ".2f"),
            ]
        yield f"{name:{NAME_WIDTH}}{_columns(figures, 20)}"


def _noise(rows: Rows) -> Iterator[str]:
    foreign = sorted(row.foreign_cores for row in rows.rows)
    if foreign:
        yield (
            f"Noise: what else the machine did took {median(foreign):.2f} cores in the median, "
            f"{foreign[-1]:.2f} at worst, over {len(foreign)} measurements"
        )


@dataclass(frozen=True)
class Bar:
    """A promise, what was found, and whether it is kept."""

    kept: bool
    promise: str
    found: str

    def __str__(self) -> str:
        return f"{'PASS' if self.kept else 'FAIL'}  {self.promise}: {self.found}"


def bars(rows: Rows) -> Iterator[Bar]:
    """Those whose systems were measured."""
    yield from _speed_bars(rows)
    if ratios := _ratios_to_one_session(rows):
        yield Bar(
            median(ratios) <= MOST_CPU_OF_ONE_SESSION,
            "CPU per call with 400 sessions is at most "
            f"{MOST_CPU_OF_ONE_SESSION:g} times that with one",
            _spread(ratios, ".2f"),
        )
    for cell, connections in (("c1", "1"), ("c1-50ms", "1, upstream 50 ms")):
        if rows.has(cell, "ours", "direct"):
            added = median(rows.minus(cell, "ours", "direct", latency_p50_ms))
            yield Bar(
                added < MOST_ADDED_MS,
                f"added p50 at concurrency {connections} is under {MOST_ADDED_MS:g} ms",
                f"{added:.2f} ms",
            )
    for cell, streams in (("stream1", "1 stream"), ("stream16", "16 streams")):
        if rows.has(cell, "ours", "bare"):
            later = median(rows.minus(cell, "ours", "bare", first_byte_p50_ms))
            yield Bar(
                later <= MOST_FIRST_BYTE_MS,
                f"the first byte of {streams} within {MOST_FIRST_BYTE_MS:g} ms of the bare "
                "pass-through",
                f"{later:+.2f} ms",
            )
    if rows.has("c32", "direct"):
        fastest = max(
            (
                median(rows.ratios("c32", name, "direct", calls_per_second))
                for name in rows.systems
                if name != "direct"
            ),
            default=0.0,
        )
        yield Bar(
            fastest <= LARGEST_SHARE_OF_DIRECT,
            "the instruments are no brake: no system comes near their own speed",
            f"the fastest has {fastest:.0%} of it",
        )


def _speed_bars(rows: Rows) -> Iterator[Bar]:
    for name, title, least in (
        ("litellm", "LiteLLM's, one worker each", TIMES_LITELLM),
        ("tensorzero", "TensorZero's, adaptive on PostgreSQL", TIMES_TENSORZERO),
    ):
        if rows.has("c32", "ours", name):
            ratio = median(rows.ratios("c32", "ours", name, calls_per_second))
            yield Bar(
                ratio >= least, f"throughput is at least {least:g} times {title}", f"{ratio:.1f}"
            )
    if rows.has("c32", "ours", "bare"):
        ratio = median(rows.ratios("c32", "ours", "bare", cpu_microseconds))
        yield Bar(
            ratio <= MOST_CPU_OF_BARE,
            f"CPU per call is at most {MOST_CPU_OF_BARE:g} times the bare pass-through's",
            f"{ratio:.2f}",
        )


def memory_bar(samples: Sequence[tuple[int, float]]) -> Bar:
    """Flat: the last quarter of the samples is hardly above the one before."""
    megabytes = [size for _, size in samples]
    quarter = max(len(megabytes) // 4, 1)
    growth = median(megabytes[-quarter:]) - median(megabytes[-2 * quarter : -quarter])
    return Bar(
        growth <= MOST_GROWTH_MB,
        f"memory is flat over {samples[-1][0]:,} calls: from the third quarter of them to the last "
        f"it grows by at most {MOST_GROWTH_MB:g} MB",
        f"{growth:+.1f} MB, {megabytes[0]:.0f} MB at the start, {megabytes[-1]:.0f} MB at the end",
    )


def _columns(texts: Sequence[str], width: int) -> str:
    return "".join(f"{text:>{width}}" for text in texts)


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return format(values[0], f",{form}")
    least, most = (format(value, f",{form}") for value in (min(values), max(values)))
    return f"{median(values):,{form}} ({least} to {most})"


def _pair(first: Sequence[float], second: Sequence[float]) -> str:
    return f"{_number(median(first), '.2f')} / {_number(median(second), '.2f')}"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, f",{form}")
