"""Which recorded calls a proposer learns from: some that went well, some that went badly."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer.prompts import normalised

MOST_OF_EACH = 3


def contrast(
    traces: Sequence[ExampleTrace],
    *,
    threshold: float,
    candidate_ids: Collection[str],
    rng: np.random.Generator,
) -> tuple[list[ExampleTrace], list[ExampleTrace]]:
    """At most 3 calls rewarded with `threshold` or more, and 3 of the others; no input twice.

    Those of `candidate_ids`, which carry the instruction to improve, go first: they show what that
    very instruction does (GEPA, arXiv 2507.19457, section 3). Among the bad ones the caller's
    feedback comes next, then the lowest reward; what is equal is drawn.
    """
    drawn = [traces[i] for i in rng.permutation(len(traces))]
    drawn.sort(key=lambda trace: trace.candidate_id not in candidate_ids)
    distinct: dict[str, ExampleTrace] = {}
    for trace in drawn:
        distinct.setdefault(normalised(trace.input), trace)
    good = [trace for trace in distinct.values() if trace.reward >= threshold]
    bad = [trace for trace in distinct.values() if trace.reward < threshold]
    bad.sort(
        key=lambda trace: (
            trace.candidate_id not in candidate_ids,
            not trace.feedback,
            trace.reward,
        )
    )
    return good[:MOST_OF_EACH], bad[:MOST_OF_EACH]
