"""Records as the services would make them, short to write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect_mipro.models.candidates import Candidate, Duel
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationsValue,
    InstructionValue,
    LeverName,
    LeverVersion,
)
from prefect_mipro.models.rollouts import Reward, Rollout, Trace
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.server.store.records import CallRecord
from prefect_mipro.server.store.store import Store

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
BASELINE = "baseline_1"


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def session(session_id: str = "s1", **values: Any) -> Session:
    baseline_id = BASELINE if session_id == "s1" else f"baseline_of_{session_id}"
    return Session(
        **{
            "session_id": session_id,
            "state": SessionState.RUNNING,
            "config": {"prompt_learning": {"algorithm": "mipro"}},
            "proxy_secret": "0123456789abcdef0123456789abcdef",
            "digest_key": "fedcba9876543210fedcba9876543210",
            "baseline_id": baseline_id,
            "champion_id": baseline_id,
            "created_at": START,
            "updated_at": START,
            **values,
        }
    )


def instruction(version: int = 1, text: str = "Answer.", **values: Any) -> LeverVersion:
    return LeverVersion(
        **{
            "lever": LeverName.INSTRUCTION,
            "version": version,
            "value": InstructionValue(text=text),
            "created_at": START,
            **values,
        }
    )


def demonstrations(version: int = 1, *pairs: tuple[str, str]) -> LeverVersion:
    return LeverVersion(
        lever=LeverName.DEMONSTRATIONS,
        version=version,
        value=DemonstrationsValue(
            demonstrations=tuple(Demonstration(input=i, output=o) for i, o in pairs)
        ),
        created_at=START,
    )


def candidate(number: int = 1, session_id: str = "s1", **values: Any) -> Candidate:
    baseline_id = session(session_id).baseline_id
    return Candidate(
        **{
            "candidate_id": baseline_id if number == 1 else f"cand_{number}",
            "session_id": session_id,
            "number": number,
            "instruction_version": number,
            "demonstrations_version": 1,
            "created_at": START,
            **values,
        }
    )


async def create(store: Store, session_id: str = "s1", **values: Any) -> Session:
    """A session with its first lever versions and baseline."""
    created, _ = await store.create_session(
        session(session_id, **values),
        [instruction(), demonstrations()],
        candidate(session_id=session_id),
    )
    return created


async def challenge(store: Store, number: int = 2) -> None:
    """A further candidate of `s1`, with an instruction of its own."""
    await store.add_candidates("s1", [instruction(number)], [candidate(number)])


def rollout(rollout_id: str = "r1", candidate_id: str = BASELINE, **values: Any) -> Rollout:
    return Rollout(
        **{
            "session_id": "s1",
            "rollout_id": rollout_id,
            "candidate_id": candidate_id,
            "pinned_at": START,
            **values,
        }
    )


def reward(
    reward_id: str = "reward_1", rollout_id: str | None = "r1", score: float = 1.0, **values: Any
) -> Reward:
    return Reward(
        **{
            "reward_id": reward_id,
            "session_id": "s1",
            "rollout_id": rollout_id,
            "candidate_id": None,
            "score": score,
            "value": score,
            "received_at": START,
            **values,
        }
    )


def trace(trace_id: str = "trace_1", rollout_id: str = "r1", **values: Any) -> Trace:
    return Trace(
        **{
            "trace_id": trace_id,
            "session_id": "s1",
            "rollout_id": rollout_id,
            "candidate_id": BASELINE,
            "messages": ({"role": "user", "content": "What?"},),
            "response": {"choices": []},
            "input": "What?",
            "output": "That.",
            "status": 200,
            "latency_seconds": 0.25,
            "usage": Usage(prompt_tokens=7, completion_tokens=3),
            "created_at": START,
            **values,
        }
    )


async def pin(store: Store, wanted: Rollout) -> Rollout:
    """Pin one by itself."""
    (pinned,) = await store.pin([wanted])
    return pinned


async def record(store: Store, of: Trace) -> None:
    """Record one call by itself."""
    await store.record_calls([CallRecord(of)])


def duel(number: int = 1, challenger_id: str = "cand_2", **values: Any) -> Duel:
    return Duel(
        **{
            "session_id": "s1",
            "number": number,
            "champion_id": BASELINE,
            "challenger_id": challenger_id,
            "predicted_lift": 0.1,
            "rollouts_before": 7,
            "started_at": START,
            **values,
        }
    )


async def event_types(store: Store, since: int = 0) -> list[str]:
    """What happened to `s1`, oldest first, without the common prefix."""
    events = await store.events("s1", since=since, limit=1_000)
    return [event.event_type.removeprefix("mipro.") for event in events]
