"""The proposer model: requests for instructions, and their failures."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import MiproError, UpstreamFailed
from prefect_mipro.models.chat import ChatBody, ChatMessage, Usage
from prefect_mipro.models.levers import LeverActor, LeverProvenance, LeverVersion
from prefect_mipro.optimizer import meta_prompts, proposals
from prefect_mipro.optimizer.contrast import contrast
from prefect_mipro.optimizer.grounding import Grounding
from prefect_mipro.optimizer.lint import estimated_tokens
from prefect_mipro.optimizer.meta_prompts import TEMPLATE_VERSIONS, Operator, parse
from prefect_mipro.optimizer.prompts import answer_text
from prefect_mipro.server.services.rounds import Draft, Round
from prefect_mipro.server.upstream.completions import Completion, read
from prefect_mipro.server.upstream.registry import Upstreams

ATTEMPTS_PER_INSTRUCTION = 2
EXAMPLES_SHOWN = 3


@dataclass(frozen=True)
class Request:
    """A request to the proposer model: the operator, the parent instruction, the calls shown."""

    operator: Operator
    parent: LeverVersion
    messages: list[ChatMessage]
    reason: str
    trace_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """The outcome of a request: usable instructions, the error, the tokens used.

    `asked` is false when the model was not asked at all.
    """

    drafts: tuple[Draft, ...] = ()
    asked: bool = False
    error: str | None = None
    usage: Usage = field(default_factory=Usage)


class Proposer:
    """The proposer models of all sessions."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams

    async def write(self, seen: Round, count: int, *, rng: np.random.Generator) -> Written:
        """Ask until there are `count` instructions, at most twice as often. Never raises.

        A model whose every answer is unusable has failed as much as one that does not answer.
        """
        drafts: list[Draft] = []
        unparsed, unfit = 0, 0
        error: str | None = None
        usage = Usage()
        operators = proposals.turns(rng)
        for _ in range(ATTEMPTS_PER_INSTRUCTION * count):
            if len(drafts) == count:
                break
            parent = seen.parent(rng)
            possible = _operators(seen, parent)
            operator = next(operator for operator in operators if operator in possible)
            request = await asyncio.to_thread(_REQUESTS[operator], seen, parent, rng)
            try:
                completion = await self._ask(seen.config, request.messages)
            except MiproError as failure:
                error = f"{type(failure).__name__}: {failure.message}"
                break
            usage = _sum(usage, completion.usage)
            text = parse(answer_text(completion.response))
            if text is None:
                unparsed += 1
            elif _fault(text, request, seen, drafts):
                unfit += 1
            else:
                drafts.append(_draft(text, request))
        if not drafts and error is None and count:
            error = (
                f"none of {unparsed + unfit} answers was usable: {unparsed} held no instruction "
                f"between tags, {unfit} held one that is unfit to be served"
            )
        return Written(tuple(drafts), asked=count > 0, error=error, usage=usage)

    async def _ask(self, config: MiproConfig, messages: list[ChatMessage]) -> Completion:
        settings = config.mipro.proposer
        body: ChatBody = {
            "messages": messages,
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "model": settings.model or config.policy.model or "default",
        }
        provider, url = config.proposer_endpoint
        async with self._upstreams.named(provider, inference_url=url).chat(body) as reply:
            answer = await reply.read()
            if reply.status != 200:
                raise UpstreamFailed(f"the proposer model answered {reply.status}")
            completion = read(answer)
        if completion.error:
            raise UpstreamFailed(f"the proposer model answered nonsense: {completion.error}")
        return completion


def _operators(seen: Round, parent: LeverVersion) -> tuple[Operator, ...]:
    """The operators that suit the parent instruction."""
    threshold = seen.config.mipro.few_shot_score_threshold
    failures = any(trace.reward < threshold for trace in seen.shown)
    return proposals.suitable(parent.text, baseline=seen.lint.baseline, failures=failures)


def _propose(seen: Round, parent: LeverVersion, rng: np.random.Generator) -> Request:
    worked = seen.worked_examples(seen.shown)
    drawn = rng.permutation(len(worked))[:EXAMPLES_SHOWN]
    examples = [worked[k].demonstration for k in drawn]
    messages = meta_prompts.propose(
        baseline=seen.lint.baseline,
        parent=parent.text,
        history=seen.history(),
        grounding=Grounding.of(seen.shown, threshold=seen.config.mipro.few_shot_score_threshold),
        examples=examples,
        tip=str(rng.choice(meta_prompts.TIPS)),
        nonce=_nonce(),
    )
    reason = f"by the proposer model from {len(examples)} worked examples and the scores so far"
    trace_ids = tuple(example.trace_id for example in examples if example.trace_id)
    return Request(Operator.PROPOSE, parent, messages, reason, trace_ids)


def _reflect(seen: Round, parent: LeverVersion, rng: np.random.Generator) -> Request:
    good, bad = contrast(
        seen.shown,
        threshold=seen.config.mipro.few_shot_score_threshold,
        candidate_ids=seen.carriers(parent),
        rng=rng,
    )
    messages = meta_prompts.reflect(
        baseline=seen.lint.baseline, parent=parent.text, good=good, bad=bad, nonce=_nonce()
    )
    reason = f"by the proposer model from {len(bad)} bad and {len(good)} good answers"
    trace_ids = tuple(trace.trace_id for trace in (*bad, *good))
    return Request(Operator.REFLECT, parent, messages, reason, trace_ids)


def _shorten(seen: Round, parent: LeverVersion, rng: np.random.Generator) -> Request:
    messages = meta_prompts.shorten(baseline=seen.lint.baseline, parent=parent.text)
    return Request(Operator.SHORTEN, parent, messages, "a shorter wording by the proposer model")


_REQUESTS = {
    Operator.PROPOSE: _propose,
    Operator.REFLECT: _reflect,
    Operator.SHORTEN: _shorten,
}


def _nonce() -> str:
    """A random token, not drawn from the session's generator: its seed would give it away."""
    return secrets.token_hex(8)


def _fault(text: str, request: Request, seen: Round, beside: Sequence[Draft]) -> str:
    """Why the model's text may not be served; empty when it may."""
    tokens = estimated_tokens(request.parent.text)
    if request.operator is Operator.SHORTEN and estimated_tokens(text) >= tokens:
        return "is not shorter"
    return seen.lint.fault(text, others=seen.texts(beside))


def _draft(text: str, request: Request) -> Draft:
    provenance = LeverProvenance(
        actor=LeverActor.OPTIMIZER,
        operator=request.operator,
        reason=request.reason,
        template_version=TEMPLATE_VERSIONS[request.operator],
        source_trace_ids=request.trace_ids,
    )
    return Draft(text, request.parent.version, provenance)


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        prompt_tokens=one.prompt_tokens + other.prompt_tokens,
        completion_tokens=one.completion_tokens + other.completion_tokens,
    )
