"""When new levers are due, how many there is room for, and what the proposer model is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from prefect_mipro.config import MiproSettings, ProposalTrigger, ProposerMode
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.sessions import Session
from prefect_mipro.optimizer.lint import estimated_tokens
from prefect_mipro.optimizer.meta_prompts import Operator

# Rewards between two rounds: enough that what the last one brought has been tried.
SPACING_REWARDS = 50
SPACING_PER_ARM = 2
LONGEST_BACK_OFF = 16

# From when on an instruction is long beside the caller's own.
LONG_FACTOR = 1.5
LONG_TOKENS = 60


@dataclass(frozen=True)
class Room:
    """How many new versions of each lever the session may still get."""

    instructions: int
    demonstration_sets: int


def room(candidates: Sequence[Candidate], *, settings: MiproSettings) -> Room:
    """What the caps leave. The instruction slots include the caller's own instruction."""
    active = [candidate for candidate in candidates if candidate.active]
    new = max(0, settings.online_proposer_max_candidates - len(active))
    texts = {candidate.instruction_version for candidate in active}
    sets = {candidate.demonstrations_version for candidate in active} - {1}
    mode = settings.proposer.mode
    instructions = min(new, settings.max_instruction_slots - len(texts))
    demonstration_sets = min(new, settings.demonstrations.max_sets - len(sets))
    return Room(
        max(0, instructions) if mode is not ProposerMode.DEMONSTRATIONS_ONLY else 0,
        max(0, demonstration_sets) if mode is not ProposerMode.INSTRUCTION_ONLY else 0,
    )


def due(
    session: Session, *, active: int, settings: MiproSettings, seconds_since_round: float
) -> str:
    """Empty when a round of proposals is due, else what it waits for, in words.

    A round comes due whether or not there is `room`, because it makes room first: it retires what
    can no longer win. The more candidates are `active`, the longer the wait. `seconds_since_round`
    counts from the last round, or from the session's start.
    """
    if settings.online_proposer_mode is ProposalTrigger.OFF:
        return "nothing: proposals are off"
    wanted = _rewards_wanted(session, active, settings)
    if wanted is None:
        return f"nothing: the rounds {settings.proposer.generate_at_iterations} are done"
    missing = (
        (wanted - session.rewards, "rewards"),
        (settings.online_proposer_min_rollouts - session.rollouts, "rollouts"),
        (settings.online_proposer_min_seconds - seconds_since_round, "seconds"),
    )
    return " and ".join(_more(gap, unit) for gap, unit in missing if gap > 0)


def asks_model(session: Session) -> bool:
    """Whether the present round asks the proposer model.

    After f rounds in a row in which it failed, only each `min(2**f, 16)`-th round does. The others
    make do without it.
    """
    back_off = min(1 << session.proposal_failures, LONGEST_BACK_OFF)
    return session.proposal_number % back_off == 0


def model_share(wanted: int, *, own_model: bool, round_number: int) -> int:
    """How many of a round's instructions the proposer model writes; the others need no model.

    At most half where the policy model itself is the proposer, because as one it is weak: of rounds
    with a single instruction each other one, and not the first.
    """
    if not own_model:
        return (wanted + 1) // 2
    if wanted == 1:
        return int(round_number > 0 and round_number % 2 == 0)
    return wanted // 2


def suitable(parent: str, *, baseline: str, failures: bool) -> tuple[Operator, ...]:
    """The operators that make sense for that parent. `failures`: whether bad answers are known."""
    tokens, usual = estimated_tokens(parent), estimated_tokens(baseline)
    long = tokens > max(LONG_FACTOR * usual, usual + LONG_TOKENS)
    return (
        Operator.PROPOSE,
        *((Operator.REFLECT,) if failures else ()),
        *((Operator.SHORTEN,) if long else ()),
    )


def turns(rng: np.random.Generator) -> Iterator[Operator]:
    """All operators by turns, in random order, without end."""
    operators = list(Operator)
    return cycle([operators[k] for k in rng.permutation(len(operators))])


def _rewards_wanted(session: Session, active: int, settings: MiproSettings) -> int | None:
    """How many rewards the next round needs; `None` when no round is left."""
    listed = settings.proposer.generate_at_iterations
    done = session.proposal_number
    if listed is not None and done >= len(listed):
        return None
    first = settings.online_proposer_min_rewards
    spacing = max(SPACING_REWARDS, SPACING_PER_ARM * active)
    since_last = session.proposal_rewards + spacing if done else first
    planned = first + SPACING_REWARDS * sorted(listed)[done] if listed is not None else 0
    return max(first, since_last, planned)


def _more(gap: float, unit: str) -> str:
    return f"1 more {unit.removesuffix('s')}" if gap == 1 else f"{gap:.3g} more {unit}"
