"""MIPROv2's own way: optuna's tree-structured Parzen estimator over the candidates' levers."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import numpy as np

from prefect_mipro.optimizer.evidence import Vector

# A trial is the mean of so many rewards, or of more: so many trials at most, however long the
# session is, so that asking costs the same.
MINIBATCH = 10
MOST_TRIALS = 200
# Before so many trials optuna samples at random.
STARTUP_TRIALS = 10
SAMPLES = 16

Levers = tuple[int, ...]


def available() -> bool:
    """Whether optuna is installed."""
    return importlib.util.find_spec("optuna") is not None


def shares(
    levers: Sequence[Levers],
    *,
    rewards: Vector,
    reward_sums: Vector,
    pending: Vector,
    rng: np.random.Generator,
) -> Vector:
    """How often the sampler would suggest each of K candidates next, (K,), summing to 1.

    Every minibatch of a candidate's rewards is a trial with the candidate's mean as its value, and
    every one in flight a running trial (Opsahl-Ong et al., "Optimizing instructions and
    demonstrations for multi-stage language model programs", EMNLP 2024, section 4; optuna's
    `TPESampler`, multivariate). The space has the levers in play now: categories of a study cannot
    grow, so each call begins another. First come as many candidates as make the start, and finish
    a minibatch each. Suggestions of combinations that are not in play are passed over.
    """
    size = max(MINIBATCH, int(rewards.sum()) // MOST_TRIALS)
    trials = np.where(rewards >= MINIBATCH, np.maximum(1, rewards // size), 0).astype(int)
    if trials.sum() < STARTUP_TRIALS:
        return _startup(rewards + pending, rng)
    values = np.where(rewards > 0, reward_sums / np.maximum(rewards, 1.0), 0.0)
    running = np.round(pending / size).astype(int)
    counts = np.zeros(len(levers))
    for suggested in _suggestions(levers, trials, values, running, rng):
        if suggested in levers:
            counts[levers.index(suggested)] += 1.0
    return counts / counts.sum() if counts.any() else np.full(len(levers), 1.0 / len(levers))


def _startup(served: Vector, rng: np.random.Generator) -> Vector:
    """Even shares for the candidates that have come furthest, in a random order where equal."""
    order = np.lexsort((rng.random(len(served)), -np.minimum(served, MINIBATCH)))
    first = order[:STARTUP_TRIALS]
    vector = np.zeros(len(served))
    vector[first] = 1.0 / len(first)
    return vector


def _suggestions(
    levers: Sequence[Levers],
    trials: np.ndarray,
    values: Vector,
    running: np.ndarray,
    rng: np.random.Generator,
) -> list[Levers]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    names = [f"lever {position}" for position in range(len(levers[0]))]
    space: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted(set(versions)))
        for name, versions in zip(names, zip(*levers, strict=True), strict=True)
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=int(rng.integers(2**31)),
        multivariate=True,
        constant_liar=True,
        n_startup_trials=STARTUP_TRIALS,
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for arm, finished, value, waiting in zip(levers, trials, values, running, strict=True):
        params = dict(zip(names, arm, strict=True))
        done = create_trial(params=params, distributions=space, value=float(value))
        awaited = create_trial(params=params, distributions=space, state=TrialState.RUNNING)
        study.add_trials([done] * int(finished) + [awaited] * int(waiting))
    study.ask()
    asking = study.trials[-1]
    found = [sampler.sample_relative(study, asking, space) for _ in range(SAMPLES)]
    return [tuple(params[name] for name in names) for params in found]
