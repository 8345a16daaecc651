"""Creation: the config and the id of a create call, and the first facts of its session."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from prefect_mipro.config import MiproConfig, ProposalTrigger, ProposerMode
from prefect_mipro.errors import ConfigInvalid, InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS, JsonObject
from prefect_mipro.models.candidates import Candidate
from prefect_mipro.models.levers import (
    Demonstration,
    DemonstrationsValue,
    InstructionValue,
    LeverActor,
    LeverName,
    LeverProvenance,
    LeverVersion,
)
from prefect_mipro.models.names import is_identifier, short_text
from prefect_mipro.models.sessions import CreateSession, Session, SessionState
from prefect_mipro.optimizer.prompts import placeholder_fault
from prefect_mipro.server.ids import new_secret
from prefect_mipro.server.upstream.registry import Upstreams

MOST_NAMED = 5


def config_body(request: CreateSession) -> JsonObject:
    """The config that was sent. This backend reads no files and keeps no named configs."""
    sent = {
        name: value
        for name, value in (
            ("config_body", request.config_body),
            ("config", request.config),
            ("config_name", request.config_name),
            ("config_path", request.config_path),
        )
        if value
    }
    if len(sent) != 1:
        found = " and ".join(sent) or "none"
        raise ConfigInvalid(f"a session needs exactly one config source; {found} was sent")
    if "config_path" in sent:
        raise ConfigInvalid(
            f"config_path {sent['config_path']!r} is a path on your machine, and this backend "
            "opens no files; send the parsed TOML as config_body"
        )
    if "config_name" in sent:
        raise ConfigInvalid(
            f"this backend keeps no config named {sent['config_name']!r}; send it as config_body"
        )
    (body,) = sent.values()
    return dict(body) if isinstance(body, dict) else {}


async def admit_models(config: MiproConfig, upstreams: Upstreams) -> None:
    """Raise ConfigInvalid if the session's models cannot be called, or its budget not be kept.

    ModelMissing where it is the embedded model that is not installed.
    """
    if config.prompt_learning.termination_config.max_cost_usd and not config.policy_is_priced:
        model = config.policy.model or "your model"
        raise ConfigInvalid(
            f"prompt_learning.termination_config.max_cost_usd needs the price of {model}; set it "
            f'as prompt_learning.prices."{model}", with prompt_usd_per_million_tokens and '
            "completion_usd_per_million_tokens (0 for a model that costs nothing)"
        )
    endpoints = {
        "prompt_learning.policy": (config.policy.provider, config.policy.inference_url),
        "prompt_learning.mipro.proposer": config.proposer_endpoint,
    }
    for place, (provider, url) in endpoints.items():
        if url is None:
            upstreams.check(provider)
            continue
        try:
            await upstreams.check_url(url)
        except ConfigInvalid as error:
            raise ConfigInvalid(f"{place}.{error.message}") from None
    provider, url = config.proposer_endpoint
    if _asks_model(config) and upstreams.takes_caller_keys_only(provider, inference_url=url):
        raise ConfigInvalid(
            f"the provider {provider!r} takes callers' own keys only, and the proposer has none; "
            "set prompt_learning.mipro.proposer.provider to another one, or "
            'prompt_learning.mipro.proposer.mode = "demonstrations_only"'
        )


def strange_providers(config: MiproConfig, upstreams: Upstreams) -> list[str]:
    """Warnings about providers that the server does not know: their calls go to the default one."""
    policy, proposer = config.policy, config.mipro.proposer
    named = {"prompt_learning.policy.provider": None if policy.inference_url else policy.provider}
    if not proposer.inference_url:
        named["prompt_learning.mipro.proposer.provider"] = proposer.provider
    return [
        f"{place} is {provider!r}, which is no provider of this server (it has: "
        f"{', '.join(upstreams.names)}), so its calls go to the provider 'default'; name one of "
        "these, or start the server with --providers"
        for place, provider in named.items()
        if provider and upstreams.is_default_for(provider)
    ]


def unknown_fields(request: CreateSession) -> list[str]:
    """Warnings about the fields of a create call that nothing reads."""
    known = CreateSession.model_fields
    return [
        f"the field {name[:80]!r} of the create call is not known and has no effect"
        + (f"; did you mean {close[0]!r}?" if close else "")
        for name in sorted(request.model_extra or {})[:MOST_NAMED]
        for close in [difflib.get_close_matches(name, known, n=1)]
    ]


def _asks_model(config: MiproConfig) -> bool:
    """Whether the proposer model will ever be asked."""
    proposer = config.mipro.proposer
    return (
        config.mipro.online_proposer_mode is not ProposalTrigger.OFF
        and proposer.mode is not ProposerMode.DEMONSTRATIONS_ONLY
        and proposer.instructions_per_batch > 0
        and config.initial_prompt is not None
    )


def session_id_of(request: CreateSession, config: MiproConfig) -> str:
    """The id to create or to resume: the caller's, else the system's, else a new one."""
    system = request.system
    for told in (request.session_id, system and system.id, config.mipro.system_id):
        if told:
            if not is_identifier(told):
                raise InputInvalid(
                    f"the session id {told[:80]!r} is not usable in a URL; use up to "
                    f"{ID_CHARACTERS} letters, digits, '_', '-', '.', ':' or '~'"
                )
            return told
    name = system.name if system else None
    return name if name and is_identifier(name) else str(uuid.uuid4())


def first_facts(
    session_id: str,
    request: CreateSession,
    config: MiproConfig,
    body: JsonObject,
    *,
    workspace: str,
    now: datetime,
    baseline_id: str,
) -> tuple[Session, Sequence[LeverVersion], Candidate]:
    """The session, the first version of each lever and the baseline candidate."""
    prompt = config.initial_prompt
    levers = [
        LeverVersion(
            lever=lever,
            version=1,
            value=value,
            provenance=LeverProvenance(actor=LeverActor.HUMAN, reason="the baseline prompt"),
            created_at=now,
        )
        for lever, value in (
            (
                LeverName.INSTRUCTION,
                InstructionValue(text=prompt.instruction if prompt else ""),
            ),
            (LeverName.DEMONSTRATIONS, DemonstrationsValue()),
        )
    ]
    agent_id = short_text("agent_id", request.agent_id or "")
    session = Session(
        session_id=session_id,
        workspace=workspace,
        state=SessionState.RUNNING,
        config=body,
        metadata=request.metadata,
        correlation_id=short_text("correlation_id", request.correlation_id or agent_id) or None,
        agent_id=agent_id or None,
        system_name=(request.system and request.system.name) or config.mipro.system_name,
        proxy_secret=new_secret(),
        digest_key=new_secret(),
        baseline_id=baseline_id,
        champion_id=baseline_id,
        created_at=now,
        updated_at=now,
    )
    baseline = Candidate(
        candidate_id=baseline_id,
        session_id=session_id,
        number=1,
        instruction_version=1,
        demonstrations_version=1,
        label="baseline",
        created_at=now,
    )
    return session, levers, baseline


def human_levers(
    levers: Sequence[LeverVersion],
    champion: Candidate,
    *,
    instruction: str,
    demonstrations: Sequence[Demonstration] | None,
    reason: str,
    at: datetime,
) -> list[LeverVersion]:
    """Lever versions written by a person, children of the champion's. Raises InputInvalid."""
    text = instruction.strip()
    if not text:
        raise InputInvalid("the candidate's instruction is empty; send its text")
    baseline = next(v.text for v in levers if v.lever is LeverName.INSTRUCTION)
    if fault := placeholder_fault(text, baseline=baseline):
        raise InputInvalid(
            f"the instruction {fault}; keep exactly those of the initial prompt's system message"
        )
    values: dict[LeverName, InstructionValue | DemonstrationsValue] = {
        LeverName.INSTRUCTION: InstructionValue(text=text)
    }
    if demonstrations is not None:
        values[LeverName.DEMONSTRATIONS] = DemonstrationsValue(demonstrations=tuple(demonstrations))
    parents = dict(zip(LeverName, champion.levers, strict=True))
    return [
        LeverVersion(
            lever=lever,
            version=1 + max(v.version for v in levers if v.lever is lever),
            value=value,
            parent_version=parents[lever],
            provenance=LeverProvenance(actor=LeverActor.HUMAN, operator="human", reason=reason),
            created_at=at,
        )
        for lever, value in values.items()
    ]


def kept_config(stored: Session, sent: Session) -> list[str]:
    differing = sorted(_differences(stored.config, sent.config, ""))
    if not differing:
        return []
    return [
        f"session {stored.session_id} exists already and keeps its config; yours differs in "
        f"{', '.join(differing[:5])}. Choose another session_id to start with the new one"
    ]


def _differences(one: Any, other: Any, path: str) -> set[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            found
            for key in one.keys() | other.keys()
            for found in _differences(one.get(key), other.get(key), f"{path}.{key}".lstrip("."))
        }
    return set() if one == other else {path}
