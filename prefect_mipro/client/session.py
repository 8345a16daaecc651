"""MiproOnlineSession: the documented class, each call as X and X_async."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Unpack

from pydantic import ValidationError

from prefect_mipro.client import environment, operations
from prefect_mipro.client.answers import with_urls
from prefect_mipro.client.arguments import RecordT, TraceArguments, config_source, record_of
from prefect_mipro.client.clients import (
    DEFAULT_TIMEOUT_SECONDS,
    backend_root,
    usable_timeout,
)
from prefect_mipro.client.connections import Backend, Connections
from prefect_mipro.client.operations import Operation, raw
from prefect_mipro.client.steps import Ask, Steps, awaiting, blocking
from prefect_mipro.errors import AnswerInvalid, InputInvalid, MiproError, SessionWarning
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.leases import Lease, TraceReceipt, TraceRequest
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionState

CANDIDATES_PER_PAGE = 200
MOST_PAGES = 100

log = logging.getLogger(__name__)


def _create(
    cls: type[MiproOnlineSession],
    *,
    backend_url: str | None = None,
    api_key: str | None = None,
    config: JsonObject | str | Path | None = None,
    config_name: str | None = None,
    config_path: str | Path | None = None,
    config_body: JsonObject | None = None,
    overrides: JsonObject | None = None,
    metadata: JsonObject | None = None,
    session_id: str | None = None,
    correlation_id: str | None = None,
    agent_id: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> Steps[MiproOnlineSession]:
    """Start a session, or come back to the one that has `session_id`.

    Give one source of the config: `config` (a dict, TOML text with line breaks, or the path of a
    TOML file), `config_body` (a dict), `config_path`, or `config_name` (a config that the backend
    knows). Files are read here, and the config is checked here after `overrides`, which map dotted
    paths such as `prompt_learning.mipro.rollout.budget` to values.

    `backend_url` and `api_key` default to the environment: MIPRO_BACKEND_URL and MIPRO_API_KEY,
    then the variables of the hosted service's SDK, such as SYNTH_BACKEND_URL and SYNTH_API_KEY.
    Without a URL the backend is http://127.0.0.1:8765, the server's own default. A backend on
    this machine may do without a key. `timeout` is in seconds.

    What the backend has to say about config and session, such as a key without effect or a config
    that an existing session does not take over, becomes a `SessionWarning` and a line in the log.

    Raises ConfigInvalid, ConfigNotFound (also a FileNotFoundError), KeyMissing and InputInvalid,
    which are ValueErrors, before any request; then what `prefect_mipro.errors` lists.
    """
    session = _with_defaults(cls, "", backend_url, api_key, timeout)
    request = record_of(
        CreateSession,
        **config_source(config, config_name, config_path, config_body, overrides or {}),
        overrides=overrides or {},
        metadata=metadata or {},
        session_id=session_id or None,
        correlation_id=correlation_id or None,
        agent_id=agent_id or None,
    )
    answer = with_urls((yield session._ask(raw(operations.create_session(request)))))
    session.session_id = str(answer.get("session_id") or "")
    if not session.session_id:
        raise AnswerInvalid("Missing session_id in response", status=200)
    session.correlation_id = answer.get("correlation_id") or correlation_id or agent_id
    session.proxy_url = answer["proxy_url"]
    session.online_url = answer["online_url"]
    session.chat_completions_url = answer["chat_completions_url"]
    for text in _warnings_of(answer):
        log.warning("Session %s: %s", session.session_id, text)
        warning = SessionWarning(f"session {session.session_id}: {text}")
        # Past the steps and the method that drives them, to the line that called it.
        warnings.warn(warning, stacklevel=3)
    return session


def _warnings_of(answer: JsonObject) -> list[str]:
    """What the answer warns of. Other backends may say nothing, or something else."""
    found = answer.get("warnings")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _get_online_url(
    cls: type[MiproOnlineSession],
    session_id: str,
    *,
    backend_url: str | None = None,
    api_key: str | None = None,
    correlation_id: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
) -> Steps[str]:
    """The URL that the program of an existing session calls in place of its model.

    The rollout id and `/chat/completions` are appended to it.
    """
    session = _with_defaults(cls, session_id, backend_url, api_key, timeout)
    answer = yield session._ask(raw(operations.session_status(session_id)))
    if not with_urls(answer)["online_url"]:
        urls = operations.session_urls(session_id, correlation_id=correlation_id)
        answer = yield session._ask(raw(urls))
    online_url = with_urls(answer)["online_url"]
    if not online_url:
        raise AnswerInvalid("Missing online_url in response", status=200)
    return str(online_url)


@dataclass
class MiproOnlineSession:
    """An online session of a backend, as the documented class of the hosted service has it.

    Connections stay open between calls. The key and the URLs are not shown by `repr`; a pickle
    leaves the key behind, and the session takes it from the environment where it is unpickled.
    """

    session_id: str
    backend_url: str
    api_key: str = field(repr=False)
    correlation_id: str | None = None
    proxy_url: str | None = field(default=None, repr=False)
    online_url: str | None = field(default=None, repr=False)
    chat_completions_url: str | None = field(default=None, repr=False)
    timeout: float = DEFAULT_TIMEOUT_SECONDS

    create = classmethod(blocking(_create))
    create_async = classmethod(awaiting(_create))

    get_online_url = classmethod(blocking(_get_online_url))
    get_online_url_async = classmethod(awaiting(_get_online_url))

    def _status(self) -> Steps[JsonObject]:
        """The status object; `prefect_mipro.models.results` has classes that read it."""
        return (yield self._ask(raw(operations.session_status(self.session_id))))

    status = blocking(_status)
    status_async = awaiting(_status)

    def _pause(self) -> Steps[JsonObject]:
        """Stop proposals. Rollouts and rewards may go on."""
        return (yield self._state_change(SessionState.PAUSED))

    pause = blocking(_pause)
    pause_async = awaiting(_pause)

    def _resume(self) -> Steps[JsonObject]:
        """Go on with proposals."""
        return (yield self._state_change(SessionState.RUNNING))

    resume = blocking(_resume)
    resume_async = awaiting(_resume)

    def _cancel(self) -> Steps[JsonObject]:
        """End the session. There is no way back."""
        return (yield self._state_change(SessionState.CANCELLED))

    cancel = blocking(_cancel)
    cancel_async = awaiting(_cancel)

    def _delete(self) -> Steps[JsonObject]:
        """Delete the session and all that is known of it. There is no way back."""
        return (yield self._ask(raw(operations.delete_session(self.session_id))))

    delete = blocking(_delete)
    delete_async = awaiting(_delete)

    def _forget(
        self,
        *,
        rollout_id: str | None = None,
        example_id: str | None = None,
        correlation_id: str | None = None,
        user: str | None = None,
        dry_run: bool = False,
    ) -> Steps[JsonObject]:
        """Remove all of one rollout, example, correlation id or end user; exactly one is named.

        `dry_run` only says what would go. Counters stay. There is no way back.
        """
        wanted = operations.forget(
            self.session_id,
            rollout_id=rollout_id,
            example_id=example_id,
            correlation_id=correlation_id,
            user=user,
            dry_run=dry_run,
        )
        return (yield self._ask(raw(wanted)))

    forget = blocking(_forget)
    forget_async = awaiting(_forget)

    def _promote(self, candidate_id: str, *, reason: str | None = None) -> Steps[JsonObject]:
        """Make a candidate the champion, without a duel: also the way back to an earlier one."""
        wanted = operations.promote(self.session_id, candidate_id, reason=reason)
        return (yield self._ask(raw(wanted)))

    promote = blocking(_promote)
    promote_async = awaiting(_promote)

    def _retire(self, candidate_id: str, *, reason: str | None = None) -> Steps[JsonObject]:
        """Take a candidate of the session out of play, and out of rollouts pinned to it."""
        yield from self._get_candidate(candidate_id)
        return (yield self._ask(raw(operations.retire(candidate_id, reason=reason))))

    retire = blocking(_retire)
    retire_async = awaiting(_retire)

    def _retire_lever(
        self, lever: str, version: int, *, reason: str | None = None
    ) -> Steps[JsonObject]:
        """Retire all candidates that hold a version of `instruction` or `demonstrations`."""
        wanted = operations.retire_lever(self.session_id, lever, version, reason=reason)
        return (yield self._ask(raw(wanted)))

    retire_lever = blocking(_retire_lever)
    retire_lever_async = awaiting(_retire_lever)

    def _reviews(self, *, state: str | None = None) -> Steps[JsonObject]:
        """The demonstration sets that wait for a person, or those `approved` or `declined`."""
        return (yield self._ask(raw(operations.reviews(self.session_id, state=state))))

    reviews = blocking(_reviews)
    reviews_async = awaiting(_reviews)

    def _review(
        self,
        version: int,
        decision: str,
        *,
        without: Iterable[int] = (),
        by: str = "",
        reason: str = "",
    ) -> Steps[JsonObject]:
        """`approve` a demonstration set, `without` some positions (from 1), or `decline` it."""
        wanted = operations.review(
            self.session_id, version, decision, without=without, by=by, reason=reason
        )
        return (yield self._ask(raw(wanted)))

    review = blocking(_review)
    review_async = awaiting(_review)

    def _begin_epoch(self, *, reason: str | None = None) -> Steps[JsonObject]:
        """Learn anew with the same candidates, because the model or the traffic has changed."""
        return (yield self._ask(raw(operations.begin_epoch(self.session_id, reason=reason))))

    begin_epoch = blocking(_begin_epoch)
    begin_epoch_async = awaiting(_begin_epoch)

    def _update_reward(
        self,
        *,
        reward_info: JsonObject,
        artifact: JsonObject | None = None,
        metadata: JsonObject | None = None,
        correlation_id: str | None = None,
        rollout_id: str | None = None,
        candidate_id: str | None = None,
        trace_ref: str | None = None,
        stop: bool | None = None,
    ) -> Steps[JsonObject]:
        """Reward a rollout. `reward_info` has a `score`, and may have `feedback` in words.

        `"shareable": True` in the metadata says that its texts may be shown to other users, as a
        worked example.
        """
        request = record_of(
            RewardRequest,
            reward_info=reward_info,
            artifact=artifact,
            metadata=metadata,
            correlation_id=correlation_id or self.correlation_id or None,
            rollout_id=rollout_id or None,
            candidate_id=candidate_id or None,
            trace_ref=trace_ref or None,
            stop=stop,
        )
        return (yield self._ask(raw(operations.reward(self.session_id, request))))

    update_reward = blocking(_update_reward)
    update_reward_async = awaiting(_update_reward)

    def _lease(
        self,
        rollout_id: str | None = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        render: bool = False,
        example_id: str | None = None,
        correlation_id: str | None = None,
        candidate_id: str | None = None,
    ) -> Steps[Lease]:
        """What a rollout runs with, for a program that calls its model itself.

        `inputs` fill the placeholders of the session's prompt, `messages` are the program's own; of
        either the lease's `messages` are made, with the candidate's prompt in them. `render` makes
        them with the placeholders as they are. Without `rollout_id` the rollout is a new one.
        `candidate_id` asks for that candidate outside of learning.
        """
        wanted = operations.lease(
            self.session_id,
            rollout_id,
            inputs=inputs,
            messages=messages,
            render=render,
            example_id=example_id,
            correlation_id=correlation_id or self.correlation_id,
            candidate_id=candidate_id,
        )
        return (yield from self._answered(wanted))

    lease = blocking(_lease)
    lease_async = awaiting(_lease)

    def _post_trace(self, rollout_id: str, **trace: Unpack[TraceArguments]) -> Steps[TraceReceipt]:
        """Tell of a call that a leased rollout made itself: it counts as one through the proxy.

        It takes `messages`, the answer as `output`, `response` or `error`, and where they are known
        `usage`, `latency_seconds`, `first_byte_seconds`, `model`, `trace_id` and
        `unapplied_reason`: see `TraceArguments`.
        """
        request = record_of(TraceRequest, **trace)
        posted = operations.post_trace(self.session_id, rollout_id, request)
        return (yield from self._answered(posted))

    post_trace = blocking(_post_trace)
    post_trace_async = awaiting(_post_trace)

    def _get_prompt_urls(self, *, correlation_id: str | None = None) -> Steps[JsonObject]:
        """The three URLs; one that the backend does not know is `None`."""
        urls = operations.session_urls(
            self.session_id, correlation_id=correlation_id or self.correlation_id
        )
        return with_urls((yield self._ask(raw(urls))))

    get_prompt_urls = blocking(_get_prompt_urls)
    get_prompt_urls_async = awaiting(_get_prompt_urls)

    def _list_candidates(
        self,
        *,
        job_id: str | None = None,
        algorithm: str | None = None,
        mode: str | None = None,
        status: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        sort: str | None = None,
        include: str | None = None,
    ) -> Steps[JsonObject]:
        """A page of the session's candidates: `items` and `next_cursor`.

        `sort` has the form `objective:desc,created_at:desc`; `include` is a comma list.
        """
        page = operations.candidates(
            self.session_id,
            job_id=job_id,
            algorithm=algorithm,
            mode=mode,
            status=status,
            limit=limit,
            cursor=cursor,
            sort=sort,
            include=include,
        )
        return (yield self._ask(page))

    list_candidates = blocking(_list_candidates)
    list_candidates_async = awaiting(_list_candidates)

    def _get_candidate(self, candidate_id: str, *, job_id: str | None = None) -> Steps[JsonObject]:
        """One candidate of the session. Raises InputInvalid when it belongs to another one."""
        wanted = operations.candidate(candidate_id)
        if job_id:
            of_job = operations.job_candidate(job_id, candidate_id)
            try:
                return (yield self._ask(of_job))
            except MiproError:
                return (yield self._ask(wanted))
        candidate = yield self._ask(wanted)
        owner = str(candidate.get("system_id") or "").strip()
        if owner == self.session_id:
            return candidate
        if owner:
            raise InputInvalid(
                f"Candidate {candidate_id!r} does not belong to MIPRO session {self.session_id!r}"
            )
        return (yield from self._find_candidate(candidate_id))

    get_candidate = blocking(_get_candidate)
    get_candidate_async = awaiting(_get_candidate)

    def _list_seed_evals(
        self,
        *,
        job_id: str | None = None,
        candidate_id: str | None = None,
        split: str | None = None,
        seed: int | None = None,
        success: bool | None = None,
        limit: int = 100,
        cursor: str | None = None,
        sort: str | None = None,
        include: str | None = None,
    ) -> Steps[JsonObject]:
        """A page of the session's rewarded rollouts: `items` and `next_cursor`.

        `split` is `train`, `validation` or `held_out`.
        """
        page = operations.seed_evals(
            self.session_id,
            job_id=job_id,
            candidate_id=candidate_id,
            split=split,
            seed=seed,
            success=success,
            limit=limit,
            cursor=cursor,
            sort=sort,
            include=include,
        )
        return (yield self._ask(page))

    list_seed_evals = blocking(_list_seed_evals)
    list_seed_evals_async = awaiting(_list_seed_evals)

    def __post_init__(self) -> None:
        usable_timeout(self.timeout)
        self._connections = Connections(self)

    def __getstate__(self) -> JsonObject:
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"api_key": ""}

    def __setstate__(self, state: JsonObject) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def _ask(self, operation: Operation[JsonObject]) -> Ask:
        key = self.api_key or environment.api_key(self.backend_url)
        return Ask(self._connections, Backend(self.backend_url, key, self.timeout), operation)

    def _answered(self, operation: Operation[RecordT]) -> Steps[RecordT]:
        """A call whose answer is a record of ours."""
        answer = yield self._ask(raw(operation))
        try:
            return operation.answer(answer)
        except ValidationError as problem:
            raise AnswerInvalid(
                f"the answer is no {problem.title}; is this a backend that leases prompts?",
                status=200,
            ) from None

    def _state_change(self, state: SessionState) -> Ask:
        return self._ask(raw(operations.change_state(self.session_id, state)))

    def _find_candidate(self, candidate_id: str) -> Steps[JsonObject]:
        """Look through the session's candidates: an id such as `baseline` may be of many."""
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            page = yield self._ask(
                operations.candidates(self.session_id, limit=CANDIDATES_PER_PAGE, cursor=cursor)
            )
            items = page.get("items")
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and item.get("candidate_id") == candidate_id:
                    return item
            cursor = page.get("next_cursor")
            if not (items and isinstance(cursor, str) and cursor.strip()):
                break
        raise InputInvalid(
            f"Candidate {candidate_id!r} was not found in MIPRO session {self.session_id!r}"
        )


def _with_defaults(
    cls: type[MiproOnlineSession],
    session_id: str,
    backend_url: str | None,
    api_key: str | None,
    timeout: float,
) -> MiproOnlineSession:
    url = (backend_url or environment.backend_url()).rstrip("/")
    return cls(
        session_id=session_id,
        backend_url=url,
        api_key=api_key or environment.api_key(backend_root(url)),
        timeout=timeout,
    )
