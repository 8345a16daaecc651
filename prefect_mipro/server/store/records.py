"""What a store takes and gives beside the records of `models`, and the cursors of its pages."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic, TypeVar

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.candidates import Candidate, Duel, RewardBlock, Statistics
from prefect_mipro.models.rollouts import CallFailure, FailedRollout, Reward, Rollout, Trace
from prefect_mipro.models.sessions import ForgetSubject, Session, SessionState

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows, and the cursor of the next page, if there is one."""

    items: tuple[T, ...]
    next_cursor: str | None = None


@dataclass(frozen=True)
class SessionFilter:
    """Which sessions to list; `None` matches all."""

    state: SessionState | None = None
    kind: str | None = None
    system_id: str | None = None
    system_name: str | None = None
    workspace: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True)
class SeedEvalFilter:
    """Which rewarded rollouts to list; `None` matches all."""

    session_id: str | None = None
    candidate_id: str | None = None
    seeds: Sequence[int] | None = None
    success: bool | None = None


@dataclass(frozen=True)
class Attached:
    """What became of a reward: the stored one, and whether it was there already.

    `reward.rollout_id` and `reward.candidate_id` name who got it; `candidate_id` is `None` while
    the reward waits for its rollout. `applied` is what is known of the rollout's calls: a reward
    counts for nothing while it is false.
    """

    reward: Reward
    duplicate: bool
    applied: bool | None = None


@dataclass(frozen=True)
class LearningFacts:
    """The facts that a belief follows from, all as of one moment."""

    candidates: tuple[Candidate, ...]
    blocks: tuple[RewardBlock, ...]
    failures: Failures


@dataclass(frozen=True)
class Standing:
    """How a session stands: its newest duel, if any, and the statistics of all its candidates.

    `active_candidates` are how many of them are in play, and `withdrawn_ids` those that must not be
    served at all.
    """

    session: Session
    duel: Duel | None
    totals: Statistics
    active_candidates: int
    withdrawn_ids: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Withdrawal:
    """The candidates that were taken out of play, and the session's champion from then on."""

    champion_id: str
    candidate_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call as it is written.

    `applied` is whether the candidate's prompt was in the call, `None` where only the program
    knows. `if_removed` is the rollout as the call began it, if its rollout was removed before.
    """

    trace: Trace
    applied: bool | None = None
    failure: CallFailure | None = None
    if_removed: Rollout | None = None

    @property
    def session_id(self) -> str:
        return self.trace.session_id


@dataclass(frozen=True)
class Failures:
    """A session's failed rollouts: how many there are, and the newest ones, oldest first.

    `total` is over all epochs, `newest` of the present one.
    """

    total: int = 0
    newest: tuple[FailedRollout, ...] = ()


@dataclass(frozen=True)
class StateTotals:
    """Counts of all sessions in one state; `missing` rollouts were given up without a reward."""

    sessions: int = 0
    rollouts: int = 0
    rewards: int = 0
    missing: int = 0
    promotions: int = 0


@dataclass(frozen=True)
class Overview:
    """What all sessions come to together."""

    by_state: Mapping[SessionState, StateTotals]
    active_candidates: int
    retired_candidates: int


class Texts(StrEnum):
    """Where the words of programs and their users are kept."""

    TRACES = "traces"
    REWARDS = "rewards"


@dataclass(frozen=True)
class Swept:
    """How many rows lost their texts, and where to go on; `None` when nothing old is left."""

    rows: int
    cursor: str | None


@dataclass(frozen=True)
class Removed:
    """How many rows of a session were removed, and which rollouts, if they were rollouts."""

    rows: int
    baseline_id: str = ""
    rollout_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class ForgetOrder:
    """A request to forget that is under way. `rollouts` and `calls` are those removed so far."""

    request_id: str
    session_id: str
    subject: ForgetSubject
    value: str
    requested_at: datetime
    rollouts: int = 0
    calls: int = 0


@dataclass(frozen=True)
class TraceableReward:
    """What names the subject of a rollout and its reward, and the texts that came with these."""

    rollout_id: str
    is_pinned: bool
    correlation_ids: tuple[str | None, ...]
    example_ids: tuple[str | None, ...]
    metadata: JsonObject | None
    expected: str | None
    feedback: str | None


@dataclass(frozen=True)
class CallTexts:
    """The texts of one call."""

    trace_id: str
    input: str
    output: str


def encode_cursor(*key: str | int) -> str:
    """The cursor that `decode_cursor` turns into `key` again."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *types: type) -> tuple[Any, ...]:
    """The key, one value of each type. Raises InputInvalid for a cursor that is not one of ours."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        key = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError):
        key = None
    if not isinstance(key, list) or [type(value) for value in key] != list(types):
        raise InputInvalid(
            f"cursor {cursor[:80]!r} is not one of this list; "
            "send the next_cursor of the page before, or none to start at the first page"
        )
    return tuple(key)
