"""What the benchmark of flows found, as tables and as bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.gateways.report import Bar

WORKERS = 16
PER_TASK = 50
MODEL_SECONDS = 0.2
MODES = ("map", "threads", "one", "fifty")
FLOWS = ("one", "fifty")

MOST_TIMES_MAP_AND_CALLS = 1.5
LEAST_TIMES_CHEAPER = 10.0
MOST_TIMES_THREADS = 1.12


@dataclass(frozen=True)
class Measurement:
    """One run. CPU is in seconds, `window` from the first rollout's start to the last one's end."""

    round: int
    mode: str
    rollouts: int
    slow: bool
    wall_seconds: float
    window_seconds: float
    client_cpu: float
    server_cpu: float
    task_runs: int
    rewards: int


def table(rows: Sequence[Measurement]) -> Iterator[str]:
    """All figures, medians over rounds (least to most)."""
    heads = f"{'rollouts':>9}{'client':>26}{'Prefect server':>26}{'wall s':>9}"
    yield f"{'CPU, ms a rollout':<18}{heads}"
    for size in _sizes(rows, slow=False):
        for mode in MODES:
            if walls := _figures(rows, mode, size, _wall):
                client, server = (
                    _spread(_figures(rows, mode, size, each)) for each in (_client_ms, _server_ms)
                )
                yield f"{mode:<18}{size:>9}{client:>26}{server:>26}{median(walls):>9.2f}"
    slow_sizes = _sizes(rows, slow=True)
    if slow_sizes:
        heads = f"{'rollouts':>9}{'first to last, s':>26}{'whole call, s':>26}"
        yield f"\n{'0.2 s rollouts':<18}{heads}"
    for size in slow_sizes:
        for mode in MODES:
            if windows := _figures(rows, mode, size, _window, slow=True):
                whole = _spread(_figures(rows, mode, size, _wall, slow=True))
                yield f"{mode:<18}{size:>9}{_spread(windows):>26}{whole:>26}"


def bars(rows: Sequence[Measurement]) -> Iterator[Bar]:
    """Those whose modes were measured."""
    for size in _sizes(rows, slow=False):
        yield from _cpu_bars(rows, size)
    for size in _sizes(rows, slow=True):
        yield from _wall_bars(rows, size)
    yield from _loss_bars(rows)


def _cpu_bars(rows: Sequence[Measurement], size: int) -> Iterator[Bar]:
    bare, calls, one, fifty = (_figures(rows, mode, size, _client_ms) for mode in MODES)
    ratios = [a / (b + c) for a, b, c in zip(one, bare, calls, strict=False)]
    if ratios:
        yield Bar(
            median(ratios) <= MOST_TIMES_MAP_AND_CALLS,
            f"{size} rollouts: client CPU is at most {MOST_TIMES_MAP_AND_CALLS:g} times the bare "
            "map's and the calls'",
            f"{_spread(ratios)}, n = {len(ratios)}",
        )
    one_server, fifty_server = (_figures(rows, mode, size, _server_ms) for mode in FLOWS)
    cheaper = [
        (a - call + a_server) / max(b - call + b_server, 1e-9)
        for a, a_server, b, b_server, call in zip(
            one, one_server, fifty, fifty_server, calls, strict=False
        )
    ]
    if cheaper:
        yield Bar(
            median(cheaper) >= LEAST_TIMES_CHEAPER,
            f"{size} rollouts: with {PER_TASK} a task Prefect costs at least "
            f"{LEAST_TIMES_CHEAPER:g} times less CPU (the client's above the calls, the server's)",
            f"{_spread(cheaper)}, n = {len(cheaper)}",
        )


def _wall_bars(rows: Sequence[Measurement], size: int) -> Iterator[Bar]:
    ideal = size * MODEL_SECONDS / WORKERS
    windows = [row.window_seconds for row in rows if row.slow and row.rollouts == size]
    yield Bar(
        min(windows) >= ideal,
        f"{size} rollouts of {MODEL_SECONDS:g} s take {WORKERS} workers no less than they must",
        f"{min(windows):.2f} s, ideally {ideal:.2f} s",
    )
    threads = _figures(rows, "threads", size, _window, slow=True)
    for mode in FLOWS:
        ours = _figures(rows, mode, size, _window, slow=True)
        if ratios := [a / b for a, b in zip(ours, threads, strict=False)]:
            yield Bar(
                median(ratios) <= MOST_TIMES_THREADS,
                f"{size} rollouts of 0.2 s, {mode}: at most {MOST_TIMES_THREADS:g} times as long "
                "as plain threads",
                f"{_spread(ratios)}, n = {len(ratios)}",
            )


def _loss_bars(rows: Sequence[Measurement]) -> Iterator[Bar]:
    unrewarded = [row for row in rows if row.mode != "map" and row.rewards != row.rollouts]
    yield Bar(not unrewarded, "each rollout has its reward, once", f"{len(rows)} runs")
    each = {"map": 1, "one": 1, "fifty": PER_TASK}
    recorded = [row for row in rows if row.mode in each]
    short = [row for row in recorded if row.task_runs * each[row.mode] < row.rollouts]
    yield Bar(
        not short,
        "Prefect has every task run",
        f"{sum(row.task_runs for row in recorded):,} in {len(recorded)} runs, {len(short)} short",
    )


def _figures(
    rows: Sequence[Measurement],
    mode: str,
    rollouts: int,
    figure: Callable[[Measurement], float],
    *,
    slow: bool = False,
) -> list[float]:
    found = [row for row in rows if (row.mode, row.rollouts, row.slow) == (mode, rollouts, slow)]
    return [figure(row) for row in sorted(found, key=lambda row: row.round)]


def _client_ms(row: Measurement) -> float:
    return 1e3 * row.client_cpu / row.rollouts


def _server_ms(row: Measurement) -> float:
    return 1e3 * row.server_cpu / row.rollouts


def _window(row: Measurement) -> float:
    return row.window_seconds


def _wall(row: Measurement) -> float:
    return row.wall_seconds


def _sizes(rows: Sequence[Measurement], *, slow: bool) -> list[int]:
    return sorted({row.rollouts for row in rows if row.slow is slow})


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
