"""Which traces a proposer is shown."""

from __future__ import annotations

import numpy as np

from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.contrast import contrast


def trace(
    number: int, reward: float, *, text: str = "", feedback: str | None = None
) -> ExampleTrace:
    return ExampleTrace(
        trace_id=f"t{number}",
        rollout_id=f"r{number}",
        candidate_id="c",
        input=text or f"input {number}",
        output="out",
        reward=reward,
        feedback=feedback,
    )


def test_some_good_and_more_bad_traces_are_shown() -> None:
    traces = [trace(i, float(i % 2)) for i in range(40)]
    good, bad = contrast(traces, threshold=0.8, rng=np.random.default_rng(0))
    assert [len(good), len(bad)] == [3, 5]
    assert all(shown.reward >= 0.8 for shown in good)
    assert all(shown.reward < 0.8 for shown in bad)


def test_feedback_goes_first() -> None:
    traces = [trace(i, 0.0, feedback="too long" if i == 17 else None) for i in range(30)]
    _, bad = contrast(traces, threshold=0.8, rng=np.random.default_rng(0))
    assert bad[0].trace_id == "t17"


def test_no_input_is_shown_twice() -> None:
    traces = [trace(i, 0.0, text="The same") for i in range(9)]
    _, bad = contrast(traces, threshold=0.8, rng=np.random.default_rng(0))
    assert len(bad) == 1
