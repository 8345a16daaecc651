"""Which traces a proposer is shown: some that went well, some that went badly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import normalised

MOST_GOOD = 3
MOST_BAD = 5


def contrast(
    traces: Sequence[ExampleTrace], *, threshold: float, rng: np.random.Generator
) -> tuple[list[ExampleTrace], list[ExampleTrace]]:
    """At most 3 traces rewarded with `threshold` or more, and 5 of the others.

    Failures say more than successes (GEPA, arXiv 2507.19457, section 3), and those with the
    caller's feedback most of all. No input is shown twice.
    """
    order = [traces[i] for i in rng.permutation(len(traces))]
    distinct = list({normalised(trace.input): trace for trace in order}.values())
    good = [trace for trace in distinct if trace.reward >= threshold]
    bad = [trace for trace in distinct if trace.reward < threshold]
    bad.sort(key=lambda trace: trace.feedback is None)
    return good[:MOST_GOOD], bad[:MOST_BAD]
