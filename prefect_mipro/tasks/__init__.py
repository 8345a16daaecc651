"""One Prefect task per session operation, and the rollout. Each has an `a`-prefixed async twin.

They take a `SessionHandle`, which names the key's block and never holds a key.
"""

from __future__ import annotations

from prefect_mipro.models.judgements import Judgement
from prefect_mipro.tasks.candidates import (
    aget_candidate,
    alist_candidates,
    alist_seed_evals,
    apromote_candidate,
    aretire_candidate,
    aretire_lever,
    get_candidate,
    list_candidates,
    list_seed_evals,
    promote_candidate,
    retire_candidate,
    retire_lever,
)
from prefect_mipro.tasks.leases import alease_prompt, apost_trace, lease_prompt, post_trace
from prefect_mipro.tasks.live_rollouts import AsyncLiveRollout, LiveRollout
from prefect_mipro.tasks.open_rollouts import AsyncOpenRollout, OpenRollout
from prefect_mipro.tasks.opening import aopen_session, open_session
from prefect_mipro.tasks.programs import RolloutJob
from prefect_mipro.tasks.rewards import (
    areport_reward,
    areport_rewards,
    report_reward,
    report_rewards,
)
from prefect_mipro.tasks.rollouts import (
    aevaluate_candidate,
    arollout_step,
    arun_rollout,
    arun_rollouts,
    evaluate_candidate,
    rollout_step,
    run_rollout,
    run_rollouts,
)
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.sessions import (
    abegin_epoch,
    acancel_session,
    acreate_session,
    adelete_session,
    aforget_data,
    apause_session,
    aresume_session,
    asession_status,
    asession_urls,
    begin_epoch,
    cancel_session,
    create_session,
    delete_session,
    forget_data,
    pause_session,
    resume_session,
    session_status,
    session_urls,
)

__all__ = [
    "AsyncLiveRollout",
    "AsyncOpenRollout",
    "Judgement",
    "LiveRollout",
    "OpenRollout",
    "RolloutJob",
    "SessionHandle",
    "abegin_epoch",
    "acancel_session",
    "acreate_session",
    "adelete_session",
    "aevaluate_candidate",
    "aforget_data",
    "aget_candidate",
    "alease_prompt",
    "alist_candidates",
    "alist_seed_evals",
    "aopen_session",
    "apause_session",
    "apost_trace",
    "apromote_candidate",
    "areport_reward",
    "areport_rewards",
    "aresume_session",
    "aretire_candidate",
    "aretire_lever",
    "arollout_step",
    "arun_rollout",
    "arun_rollouts",
    "asession_status",
    "asession_urls",
    "begin_epoch",
    "cancel_session",
    "create_session",
    "delete_session",
    "evaluate_candidate",
    "forget_data",
    "get_candidate",
    "lease_prompt",
    "list_candidates",
    "list_seed_evals",
    "open_session",
    "pause_session",
    "post_trace",
    "promote_candidate",
    "report_reward",
    "report_rewards",
    "resume_session",
    "retire_candidate",
    "retire_lever",
    "rollout_step",
    "run_rollout",
    "run_rollouts",
    "session_status",
    "session_urls",
]
