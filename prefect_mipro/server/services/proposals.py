"""Proposals: the background rounds in which a session gets new lever versions."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefect_mipro.config import MiproConfig
from prefect_mipro.errors import Conflict, MiproError, UpstreamFailed
from prefect_mipro.models.candidates import Candidate, DuelState
from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.levers import (
    DemonstrationsValue,
    InstructionValue,
    LeverActor,
    LeverName,
    LeverProvenance,
    LeverVersion,
)
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.models.sessions import Session, SessionState
from prefect_mipro.optimizer import demonstrations, pool, proposals
from prefect_mipro.optimizer.contrast import contrast
from prefect_mipro.optimizer.lint import lint
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.prompts import answer_text
from prefect_mipro.server.services.identity import Clock, NewId
from prefect_mipro.server.services.knowledge import Knowledge
from prefect_mipro.server.store.interface import Store
from prefect_mipro.server.upstream.registry import Upstreams

TRACES_READ = 600
ATTEMPTS_PER_INSTRUCTION = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """What a round looks at."""

    session: Session
    config: MiproConfig
    candidates: tuple[Candidate, ...]
    levers: tuple[LeverVersion, ...]
    traces: tuple[ExampleTrace, ...]
    belief: Posterior

    def active(self, lever: LeverName) -> list[LeverVersion]:
        """The versions of a lever that are in play."""
        position = list(LeverName).index(lever)
        versions = {c.levers[position] for c in self.candidates if c.active}
        return [v for v in self.levers if v.lever is lever and v.version in versions]

    @property
    def shown(self) -> tuple[ExampleTrace, ...]:
        """What the proposer may be shown: the reference pool's traces where it names examples."""
        pool = {str(seed) for seed in self.config.mipro.reference_pool}
        return tuple(t for t in self.traces if not pool or t.example_id in pool)

    def next_version(self, lever: LeverName) -> int:
        """The number that the next version of a lever gets."""
        return 1 + max(v.version for v in self.levers if v.lever is lever)

    def mean_of(self, version: LeverVersion) -> tuple[float, int]:
        """The posterior mean of a version over its candidates, and its rewards."""
        position = list(LeverName).index(version.lever)
        members = [c for c in self.candidates if c.levers[position] == version.version]
        means = [self.belief.mean[self.belief.index(c.candidate_id)] for c in members]
        return float(np.mean(means)), sum(c.statistics.rewards for c in members)


class Proposals:
    """The proposal rounds of all sessions, one at a time for each."""

    def __init__(
        self,
        store: Store,
        upstreams: Upstreams,
        knowledge: Knowledge,
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._store = store
        self._upstreams = upstreams
        self._knowledge = knowledge
        self._clock = clock
        self._new_id = new_id
        self._rounds: dict[str, asyncio.Task[None]] = {}

    def consider(self, session_id: str) -> None:
        """Begin a round in the background if one is due and none is under way."""
        if session_id in self._rounds:
            return
        task = asyncio.create_task(self._round(session_id))
        self._rounds[session_id] = task
        task.add_done_callback(lambda _: self._rounds.pop(session_id, None))

    async def settle(self) -> None:
        """Wait until no round is under way."""
        await asyncio.gather(*self._rounds.values(), return_exceptions=True)

    async def close(self) -> None:
        """Give up the rounds under way. What they had not stored yet is proposed again later."""
        for task in self._rounds.values():
            task.cancel()
        await self.settle()

    async def waiting_for(self, session: Session, candidates: Sequence[Candidate]) -> str:
        """What the next round waits for, in words; empty when it is due."""
        if session.state is not SessionState.RUNNING:
            return f"the session is {session.state}"
        since = session.proposed_at or session.created_at
        return proposals.due(
            session,
            candidates,
            settings=self._knowledge.config(session).mipro,
            seconds_since_round=(self._clock() - since).total_seconds(),
        )

    async def _round(self, session_id: str) -> None:
        try:
            session = await self._store.session(session_id)
            candidates = await self._store.candidates(session_id)
            if await self.waiting_for(session, candidates):
                return
            evidence = await self._evidence(session, candidates)
            error = await self._propose(evidence)
            await self._store.record_proposal_round(
                session_id,
                rewards=sum(c.statistics.rewards for c in candidates),
                error=error,
                at=self._clock(),
            )
        except MiproError as error:
            # Serving goes on; the next reward asks again.
            log.warning(
                "proposal_round_failed",
                extra={"session_id": session_id, "error": type(error).__name__},
            )

    async def _evidence(self, session: Session, candidates: tuple[Candidate, ...]) -> Evidence:
        config = self._knowledge.config(session)
        traces = await self._store.example_traces(session.session_id, limit=TRACES_READ)
        return Evidence(
            session=session,
            config=config,
            candidates=candidates,
            levers=await self._store.levers(session.session_id),
            traces=tuple(t for t in traces if not held_out(config, t.example_id)),
            belief=posterior([c.arm for c in candidates]),
        )

    async def _propose(self, evidence: Evidence) -> str | None:
        """Retire, propose, store. Returns what went wrong with the proposer model, if anything."""
        rng = np.random.default_rng(
            [evidence.config.mipro.seed & 0xFFFFFFFF, evidence.session.proposal_number]
        )
        evidence = await self._retire(evidence, rng)
        instructions, error = await self._instructions(evidence, rng)
        new = [*instructions, *self._demonstrations(evidence, rng)]
        if new:
            await self._store_new(evidence, new)
        return error

    async def _retire(self, evidence: Evidence, rng: np.random.Generator) -> Evidence:
        session = evidence.session
        duel = await self._store.duel(session.session_id)
        keep = {session.champion_id, session.baseline_id}
        if duel and duel.state is DuelState.RUNNING:
            keep |= {duel.champion_id, duel.challenger_id}
        losers = pool.retirable(evidence.belief, evidence.candidates, keep=keep, rng=rng)
        if not losers:
            return evidence
        await self._store.retire(
            session.session_id,
            losers,
            at=self._clock(),
            reason="the best candidate has none of its levers with 99 % probability",
        )
        return await self._evidence(session, await self._store.candidates(session.session_id))

    async def _instructions(
        self, evidence: Evidence, rng: np.random.Generator
    ) -> tuple[list[LeverVersion], str | None]:
        """New instructions: the proposer model's where they pass the lint, else rewrites."""
        settings = evidence.config.mipro
        active = evidence.active(LeverName.INSTRUCTION)
        room = proposals.room(evidence.candidates, settings=settings)
        wanted = min(settings.proposer.instructions_per_batch, room.instructions)
        known = [v for v in evidence.levers if v.lever is LeverName.INSTRUCTION]
        baseline = known[0]
        if wanted <= 0 or not baseline.text:
            return [], None
        parent = max(active, key=lambda version: evidence.mean_of(version)[0])
        texts = [version.text for version in known]
        accepted: list[tuple[str, LeverProvenance]] = []
        error: str | None = None
        labels = proposals.labels(evidence.traces, threshold=settings.few_shot_score_threshold)
        for operator, text in proposals.rewrites(baseline.text, labels=labels, rng=rng):
            if len(accepted) < (wanted + 1) // 2 and not self._flaw(text, evidence, texts):
                texts.append(text)
                accepted.append((text, _provenance(operator, "model-free rewrite", ())))
        try:
            for _ in range(ATTEMPTS_PER_INSTRUCTION * wanted):
                if len(accepted) >= wanted:
                    break
                written, sources = await self._ask(evidence, parent, known, rng)
                if written and not self._flaw(written, evidence, texts):
                    texts.append(written)
                    provenance = _provenance("reflect", "written by a model", sources)
                    accepted.append((written, provenance))
        except MiproError as failure:
            error = f"{type(failure).__name__}: {failure.message}"
        number = evidence.next_version(LeverName.INSTRUCTION)
        return [
            LeverVersion(
                lever=LeverName.INSTRUCTION,
                version=number + i,
                value=InstructionValue(text=text),
                parent_version=(parent if provenance.operator == "reflect" else baseline).version,
                provenance=provenance,
                created_at=self._clock(),
            )
            for i, (text, provenance) in enumerate(accepted)
        ], error

    async def _ask(
        self,
        evidence: Evidence,
        parent: LeverVersion,
        known: Sequence[LeverVersion],
        rng: np.random.Generator,
    ) -> tuple[str | None, tuple[str, ...]]:
        """One call of the proposer model: its instruction, if it gave one, and its sources."""
        settings = evidence.config.mipro.proposer
        good, bad = contrast(
            evidence.shown, threshold=evidence.config.mipro.few_shot_score_threshold, rng=rng
        )
        body: ChatBody = {
            "messages": proposals.meta_prompt(
                baseline=known[0].text,
                parent=parent.text,
                history=[(v.text, *evidence.mean_of(v)) for v in known],
                good=good,
                bad=bad,
                tip=str(rng.choice(proposals.TIPS)),
                nonce=secrets.token_hex(8),
            ),
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            "model": settings.model or evidence.config.policy.model or "default",
        }
        provider = settings.provider or evidence.config.policy.provider
        async with self._upstreams.named(provider).chat(body) as reply:
            answer = await reply.read()
            if reply.status != 200:
                raise UpstreamFailed(f"the proposer model answered {reply.status}")
        try:
            text = answer_text(json.loads(answer))
        except ValueError:
            raise UpstreamFailed("the proposer model's server answered no JSON") from None
        return proposals.parse(text), tuple(t.trace_id for t in (*good, *bad))

    def _flaw(self, text: str, evidence: Evidence, others: Sequence[str]) -> str:
        return lint(
            text,
            baseline=others[0],
            prompt=evidence.config.initial_prompt,
            others=others,
            traces=evidence.traces,
        )

    def _demonstrations(self, evidence: Evidence, rng: np.random.Generator) -> list[LeverVersion]:
        settings = evidence.config.mipro.demonstrations
        room = proposals.room(evidence.candidates, settings=evidence.config.mipro)
        count = min(settings.sets_per_batch, room.demonstration_sets)
        if count <= 0:
            return []
        known = [v for v in evidence.levers if v.lever is LeverName.DEMONSTRATIONS]
        values = demonstrations.propose_sets(
            demonstrations.examples(
                evidence.traces,
                threshold=evidence.config.mipro.few_shot_score_threshold,
                max_characters=settings.max_characters,
                held_out=lambda example_id: held_out(evidence.config, example_id),
            ),
            existing=[DemonstrationsValue(demonstrations=v.demonstrations) for v in known],
            count=count,
            settings=settings,
            rng=rng,
        )
        number = evidence.next_version(LeverName.DEMONSTRATIONS)
        return [
            LeverVersion(
                lever=LeverName.DEMONSTRATIONS,
                version=number + i,
                value=value,
                parent_version=1,
                provenance=_provenance(
                    "bootstrap",
                    f"{len(value.demonstrations)} worked examples from rewarded rollouts",
                    tuple(d.trace_id for d in value.demonstrations if d.trace_id),
                ),
                created_at=self._clock(),
            )
            for i, value in enumerate(values)
        ]

    async def _store_new(self, evidence: Evidence, new: Sequence[LeverVersion]) -> None:
        room = evidence.config.mipro.online_proposer_max_candidates - sum(
            c.active for c in evidence.candidates
        )
        pairs = pool.combinations(
            evidence.candidates,
            instructions=[v.version for v in new if v.lever is LeverName.INSTRUCTION],
            demonstrations=[v.version for v in new if v.lever is LeverName.DEMONSTRATIONS],
            room=room,
        )
        parents = {c.levers: c.candidate_id for c in evidence.candidates}
        by_key = {(v.lever, v.version): v for v in new}
        candidates = [
            Candidate(
                candidate_id=self._new_id("cand"),
                session_id=evidence.session.session_id,
                number=evidence.candidates[-1].number + 1 + i,
                instruction_version=pair[0],
                demonstrations_version=pair[1],
                parent_id=parents.get(_parent_levers(pair, by_key), evidence.session.baseline_id),
                created_at=self._clock(),
            )
            for i, pair in enumerate(pairs)
        ]
        try:
            await self._store.add_candidates(evidence.session.session_id, new, candidates)
        except Conflict:
            log.info("proposal_round_raced", extra={"session_id": evidence.session.session_id})


def held_out(config: MiproConfig, example_id: str | None) -> bool:
    """Whether learning must not see this example."""
    return config.mipro.split_of(example_id) in ("validation", "held_out")


def _provenance(operator: str, reason: str, sources: tuple[str, ...]) -> LeverProvenance:
    return LeverProvenance(
        actor=LeverActor.OPTIMIZER,
        operator=operator,
        reason=reason,
        template_version=proposals.TEMPLATE_VERSION,
        source_trace_ids=sources,
    )


def _parent_levers(
    pair: tuple[int, int], new: dict[tuple[LeverName, int], LeverVersion]
) -> tuple[int, int]:
    """The levers a new pair descends from: each new version gives way to its parent."""
    instruction, demos = (
        (new[lever, version].parent_version or 1) if (lever, version) in new else version
        for lever, version in zip(LeverName, pair, strict=True)
    )
    return instruction, demos
