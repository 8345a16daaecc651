"""Which recorded calls a proposer learns from."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.contrast import contrast
from tests.optimizer.traces import trace


def shown(
    traces: list[ExampleTrace], *, candidate_ids: tuple[str, ...] = (), seed: int = 0
) -> tuple[list[ExampleTrace], list[ExampleTrace]]:
    rng = np.random.default_rng(seed)
    return contrast(traces, threshold=0.8, candidate_ids=candidate_ids, rng=rng)


def call(number: int, reward: float, **fields: Any) -> ExampleTrace:
    return trace(f"input {number}", reward=reward, **fields)


def test_half_failures_and_half_successes_are_shown() -> None:
    good, bad = shown([call(i, float(i % 2)) for i in range(40)])
    assert [len(good), len(bad)] == [3, 3]
    assert all(shown.reward >= 0.8 for shown in good)
    assert all(shown.reward < 0.8 for shown in bad)


def test_feedback_goes_first_then_the_lowest_reward() -> None:
    traces = [call(i, 0.5, feedback="too long" if i == 17 else None) for i in range(30)]
    _, bad = shown([*traces, call(30, 0.1)])
    assert [bad[0].input, bad[1].input] == ["input 17", "input 30"]


def test_calls_that_carried_the_instruction_go_before_all_others() -> None:
    others = [call(i, float(i % 2), feedback="no") for i in range(20)]
    own = [call(i, float(i % 2), candidate_id="own") for i in range(20, 24)]
    good, bad = shown([*others, *own], candidate_ids=("own",))
    assert [t.candidate_id for t in good] == ["own", "own", "candidate-1"]
    assert [t.candidate_id for t in bad] == ["own", "own", "candidate-1"]


def test_no_input_is_shown_twice() -> None:
    good, bad = shown([trace("The same", reward=float(i % 2)) for i in range(9)])
    assert len(good) + len(bad) == 1


def test_other_calls_are_drawn_each_time() -> None:
    traces = [call(i, 0.0) for i in range(30)]
    assert shown(traces) == shown(traces)
    assert shown(traces) != shown(traces, seed=1)
