"""One Prefect task per session operation, and the rollout. Each has an `a`-prefixed async twin.

They take a `SessionHandle`, which names the key's block and never holds a key.
"""

from __future__ import annotations

from prefect_mipro.tasks.connections import SessionHandle
from prefect_mipro.tasks.leases import alease_prompt, apost_trace, lease_prompt, post_trace
from prefect_mipro.tasks.live import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.programs import Judgement, RolloutJob
from prefect_mipro.tasks.rollouts import (
    aevaluate_candidate,
    arun_rollout,
    arun_rollouts,
    evaluate_candidate,
    run_rollout,
    run_rollouts,
)
from prefect_mipro.tasks.sessions import (
    abegin_epoch,
    acancel_session,
    acreate_session,
    aget_candidate,
    alist_candidates,
    alist_seed_evals,
    apause_session,
    apromote_candidate,
    areport_reward,
    aresume_session,
    asession_status,
    asession_urls,
    begin_epoch,
    cancel_session,
    create_session,
    get_candidate,
    list_candidates,
    list_seed_evals,
    pause_session,
    promote_candidate,
    report_reward,
    resume_session,
    session_status,
    session_urls,
)

__all__ = [
    "AsyncLiveRollout",
    "Judgement",
    "LiveRollout",
    "RolloutJob",
    "SessionHandle",
    "abegin_epoch",
    "acancel_session",
    "acreate_session",
    "aevaluate_candidate",
    "aget_candidate",
    "alease_prompt",
    "alist_candidates",
    "alist_seed_evals",
    "apause_session",
    "apost_trace",
    "apromote_candidate",
    "areport_reward",
    "aresume_session",
    "arun_rollout",
    "arun_rollouts",
    "asession_status",
    "asession_urls",
    "begin_epoch",
    "cancel_session",
    "create_session",
    "evaluate_candidate",
    "get_candidate",
    "lease_prompt",
    "list_candidates",
    "list_seed_evals",
    "pause_session",
    "post_trace",
    "promote_candidate",
    "report_reward",
    "resume_session",
    "run_rollout",
    "run_rollouts",
    "session_status",
    "session_urls",
]
