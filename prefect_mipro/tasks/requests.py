"""Bodies of the requests of tasks, and URLs without their secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar
from uuid import uuid4

from prefect.runtime import task_run
from pydantic import ValidationError

from prefect_mipro.client.arguments import record_of
from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS
from prefect_mipro.models.judgements import Judgement
from prefect_mipro.models.names import is_rollout_id
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionUrls
from prefect_mipro.tasks.handles import SessionAddress

Urls = TypeVar("Urls", bound=SessionUrls)


def creation_request(
    config: Mapping[str, Any],
    session_id: str | None,
    overrides: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
    agent_id: str | None,
    correlation_id: str | None,
) -> CreateSession:
    """The body of a create call. It always names the session, so that it can be repeated."""
    chosen = session_id or _system_id(config) or own_id()
    try:
        return CreateSession(
            session_id=chosen,
            config_body=dict(config),
            overrides=dict(overrides or {}),
            metadata=dict(metadata or {}),
            agent_id=agent_id,
            correlation_id=correlation_id,
        )
    except ValidationError:
        raise InputInvalid(
            f"the session id {chosen[:80]!r} is not usable in a URL; use up to {ID_CHARACTERS} "
            "letters, digits, '_', '-', '.', ':' or '~'"
        ) from None


def usable_id(rollout_id: Any) -> str:
    """The id, if it can be part of a URL. Raises InputInvalid."""
    if isinstance(rollout_id, str) and is_rollout_id(rollout_id):
        return rollout_id
    raise InputInvalid(
        f"the rollout id {rollout_id!r:.80} is not usable in a URL; use up to {ID_CHARACTERS} "
        "letters, digits, '_', '-', '.', ':' or '~', a letter or digit first, and not 'v1'"
    )


def own_id() -> str:
    """An id of the present task run, the same for each of its retries; a new one outside a task."""
    return str(task_run.get_id() or uuid4())


def reward_request(
    session: SessionAddress,
    judged: Judgement,
    rollout_id: str | None,
    example_id: str | None = None,
    stop: bool | None = None,
    *,
    shareable: bool = False,
    artifact: Mapping[str, Any] | None = None,
    correlation_id: str | None = None,
    candidate_id: str | None = None,
    trace_ref: str | None = None,
) -> RewardRequest:
    """The body of a reward call; the expected answer and the example travel as metadata."""
    known = {"expected": judged.expected, "example_id": example_id}
    facts = {**(judged.metadata or {}), **{key: value for key, value in known.items() if value}}
    reward_info = {"score": judged.score}
    return record_of(
        RewardRequest,
        reward_info=reward_info | ({"feedback": judged.feedback} if judged.feedback else {}),
        artifact=artifact,
        metadata=facts or None,
        correlation_id=correlation_id or session.correlation_id,
        rollout_id=rollout_id,
        candidate_id=candidate_id,
        trace_ref=trace_ref,
        shareable=shareable or None,
        stop=stop,
    )


def without_secret(urls: Urls, session_id: str) -> Urls:
    """The record with the secret removed from its URLs, which then need the key."""
    secret = re.compile(rf"(?<=/{re.escape(session_id)})\.[0-9a-f]{{32}}(?=/|$)")
    names = ("online_url", "proxy_url", "chat_completions_url")
    return urls.model_copy(update={name: secret.sub("", getattr(urls, name)) for name in names})


def _system_id(config: Mapping[str, Any]) -> str | None:
    match config:
        case {"prompt_learning": {"mipro": {"system_id": str(system_id)}}}:
            return system_id
        case _:
            return None
