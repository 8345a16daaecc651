"""A round of proposals: the facts it starts from, and the levers and candidates it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

import numpy as np

from prefect_mipro.config import FromTraffic, MiproConfig
from prefect_mipro.models.candidates import Candidate, Duel, DuelState, Statistics
from prefect_mipro.models.levers import (
    DemonstrationSource,
    DemonstrationsValue,
    InstructionValue,
    LeverActor,
    LeverName,
    LeverProvenance,
    LeverVersion,
    Review,
    ReviewState,
)
from prefect_mipro.models.rollouts import ExampleTrace
from prefect_mipro.optimizer import demonstrations, pool, proposals, rewrites
from prefect_mipro.optimizer.demonstrations import ProposedSet, WorkedExample
from prefect_mipro.optimizer.grounding import Grounding
from prefect_mipro.optimizer.lint import Lint
from prefect_mipro.optimizer.prompts import normalised
from prefect_mipro.server.ids import NewId
from prefect_mipro.server.services.beliefs import Snapshot

SOURCES_NAMED = 24


@dataclass(frozen=True)
class Draft:
    """An instruction without fault, and where it came from."""

    text: str
    parent_version: int
    provenance: LeverProvenance


@dataclass(frozen=True, eq=False)
class Round:
    """The facts that a round of proposals starts from.

    `traces` are without held-out examples: what those measure stays honest; `held_out` counts the
    traces of these. `lint` and `grounding` are made of all of `traces`.
    """

    config: MiproConfig
    snapshot: Snapshot
    levers: tuple[LeverVersion, ...]
    traces: tuple[ExampleTrace, ...]
    held_out: int
    grounding: Grounding
    lint: Lint

    @classmethod
    def of(
        cls,
        config: MiproConfig,
        snapshot: Snapshot,
        levers: tuple[LeverVersion, ...],
        traces: Sequence[ExampleTrace],
    ) -> Round:
        """Read the traces, which takes a moment when they are many and long."""
        learned = tuple(trace for trace in traces if not _held_out(config, trace.example_id))
        grounding = Grounding.of(
            learned,
            threshold=config.mipro.few_shot_score_threshold,
            quotable=config.mipro.demonstrations.from_traffic is FromTraffic.ALLOWED,
        )
        baseline = next(v.text for v in levers if v.lever is LeverName.INSTRUCTION)
        lint = Lint.of(baseline, prompt=config.initial_prompt, grounding=grounding, traces=learned)
        held_out = len(traces) - len(learned)
        return cls(config, snapshot, levers, learned, held_out, grounding, lint)

    @property
    def room(self) -> proposals.Room:
        """How many new versions of each lever the session may still get.

        Sets that wait for a review take their places already.
        """
        room = proposals.room(self.snapshot.candidates, settings=self.config.mipro)
        waiting = sum(version.review_is(ReviewState.WAITING) for version in self.levers)
        return replace(room, demonstration_sets=max(0, room.demonstration_sets - waiting))

    @property
    def instructions_wanted(self) -> int:
        """How many new instructions there should be. An empty baseline has no place for any."""
        batch = self.config.mipro.proposer.instructions_per_batch
        return min(batch, self.room.instructions) if self.lint.baseline else 0

    def versions(self, lever: LeverName) -> list[LeverVersion]:
        """All versions of a lever, by number."""
        return [version for version in self.levers if version.lever is lever]

    def losers(self, duel: Duel | None, rng: np.random.Generator) -> list[str]:
        """The candidates that can no longer win."""
        session = self.snapshot.session
        keep = {session.champion_id, session.baseline_id}
        if duel and duel.state is DuelState.RUNNING:
            keep |= {duel.champion_id, duel.challenger_id}
        return pool.retirable(
            self.snapshot.belief,
            self.snapshot.candidates,
            rewards=self._rewards,
            keep=keep,
            by_hand=self._made_by_hand(),
            rng=rng,
        )

    def parent(self, rng: np.random.Generator) -> LeverVersion:
        """An instruction to build on."""
        drawn = pool.parent(self.snapshot.belief, self.snapshot.active, rng=rng)
        return next(v for v in self.versions(LeverName.INSTRUCTION) if v.version == drawn)

    def rewrites(
        self, count: int, *, beside: Sequence[Draft] = (), rng: np.random.Generator
    ) -> list[Draft]:
        """At most `count` instructions made without a model, from one parent or the baseline."""
        drafts: list[Draft] = []
        if count <= 0:
            return drafts
        for parent in (self.parent(rng), self.versions(LeverName.INSTRUCTION)[0]):
            made = rewrites.rewrites(
                parent.text,
                grounding=self.grounding,
                lint=self.lint,
                others=self.texts([*beside, *drafts]),
                rng=rng,
            )
            for rewrite in made[: count - len(drafts)]:
                provenance = LeverProvenance(
                    actor=LeverActor.OPTIMIZER,
                    operator=rewrite.operator,
                    reason="made without a model",
                    template_version=rewrites.TEMPLATE_VERSION,
                    source_trace_ids=rewrite.trace_ids[:SOURCES_NAMED],
                )
                drafts.append(Draft(rewrite.text, parent.version, provenance))
        return drafts

    def texts(self, drafts: Sequence[Draft] = ()) -> list[str]:
        """Every instruction there is or was, and those of the drafts."""
        versions = self.versions(LeverName.INSTRUCTION)
        known = [version.text for version in versions if not version.forgotten]
        return [*known, *(draft.text for draft in drafts)]

    @cached_property
    def shown(self) -> tuple[ExampleTrace, ...]:
        """The traces for the proposer: the reference pool's, where it names examples."""
        wanted = {str(seed) for seed in self.config.mipro.reference_pool}
        return tuple(t for t in self.traces if not wanted or t.example_id in wanted)

    def carriers(self, instruction: LeverVersion) -> frozenset[str]:
        """The candidates of an instruction."""
        return frozenset(
            candidate.candidate_id
            for candidate in self.snapshot.candidates
            if candidate.instruction_version == instruction.version
        )

    def history(self) -> list[tuple[str, float, int]]:
        """Each instruction with the mean of the belief over its candidates, and its rewards."""
        belief, history = self.snapshot.belief, []
        for version in self.versions(LeverName.INSTRUCTION):
            carriers = self.carriers(version)
            rewards = sum(self._rewards[candidate_id] for candidate_id in carriers)
            if rewards and not version.forgotten:
                means = [belief.mean[belief.index(candidate_id)] for candidate_id in carriers]
                history.append((version.text, float(np.mean(means)), rewards))
        return history

    def worked_examples(self, traces: Sequence[ExampleTrace]) -> tuple[WorkedExample, ...]:
        """The worked examples in the traces that pass the checks."""
        return tuple(example for example, fault in self._checked(traces) if not fault)

    def unfit_examples(self) -> Counter[str]:
        """The number of worked examples that fail the checks, by their fault."""
        return Counter(fault for _, fault in self._checked_showable if fault)

    def _checked(self, traces: Sequence[ExampleTrace]) -> list[tuple[WorkedExample, str]]:
        """The worked examples in the traces, each with its fault or an empty string."""
        found = demonstrations.worked_examples(
            traces,
            threshold=self.config.mipro.few_shot_score_threshold,
            max_characters=self.config.mipro.demonstrations.max_characters,
            own_correlation_id=self.snapshot.session.correlation_id,
        )
        return [(each, self.lint.fault_of_demonstration(each.demonstration)) for each in found]

    @cached_property
    def _checked_showable(self) -> list[tuple[WorkedExample, str]]:
        """As `_checked`, without declined inputs; approved texts need no second review."""
        declined = {
            normalised(shown.input)
            for version in self.levers
            if version.review_is(ReviewState.DECLINED)
            for shown in version.demonstrations
        }
        approved = {
            (shown.input, shown.output)
            for version in self.levers
            if version.review_is(ReviewState.APPROVED) and version.retired_at is None
            for shown in version.demonstrations
        }
        return [
            (example.reviewed() if example.turns in approved else example, fault)
            for example, fault in self._checked(self.showable)
            if example.key not in declined
        ]

    @cached_property
    def showable(self) -> tuple[ExampleTrace, ...]:
        """The traces that other users may be shown, word by word, some only after a review."""
        marked_only = self._from_traffic is FromTraffic.EXPECTED_ONLY
        return tuple(t for t in self.traces if t.shareable) if marked_only else self.traces

    @property
    def _from_traffic(self) -> FromTraffic:
        return self.config.mipro.demonstrations.from_traffic

    def _needs_review(self, proposed: ProposedSet) -> bool:
        return self._from_traffic is FromTraffic.REVIEWED and any(
            shown.source is DemonstrationSource.TRAFFIC for shown in proposed.value.demonstrations
        )

    def sets(self, rng: np.random.Generator) -> list[ProposedSet]:
        """New demonstration sets, as many as there is room for, and as long as the model takes."""
        settings = self.config.mipro.demonstrations
        longest = demonstrations.known_room(self.snapshot.candidates)
        if longest is not None and longest < settings.max_set_characters:
            settings = settings.model_copy(update={"max_set_characters": longest})
        count = min(settings.sets_per_batch, self.room.demonstration_sets)
        if count <= 0:
            return []
        known = [version.demonstrations for version in self.versions(LeverName.DEMONSTRATIONS)]
        return demonstrations.propose_sets(
            [example for example, fault in self._checked_showable if not fault],
            existing=[DemonstrationsValue(demonstrations=shown) for shown in known if shown],
            count=count,
            settings=settings,
            rng=rng,
        )

    def lever_versions(
        self, drafts: Sequence[Draft], sets: Sequence[ProposedSet], *, at: datetime
    ) -> list[LeverVersion]:
        """The drafts and sets as the next versions of their levers.

        Sets that need a review come first: they are stored even where no candidate has room.
        """
        sets = sorted(sets, key=self._needs_review, reverse=True)
        first = {lever: 1 + self.versions(lever)[-1].version for lever in LeverName}
        return [
            *(
                LeverVersion(
                    lever=LeverName.INSTRUCTION,
                    version=first[LeverName.INSTRUCTION] + i,
                    value=InstructionValue(text=draft.text),
                    parent_version=draft.parent_version,
                    provenance=draft.provenance,
                    created_at=at,
                )
                for i, draft in enumerate(drafts)
            ),
            *(
                LeverVersion(
                    lever=LeverName.DEMONSTRATIONS,
                    version=first[LeverName.DEMONSTRATIONS] + i,
                    value=proposed.value,
                    parent_version=1,
                    provenance=_provenance_of_set(
                        proposed,
                        review=(
                            Review(state=ReviewState.WAITING)
                            if self._needs_review(proposed)
                            else None
                        ),
                    ),
                    created_at=at,
                )
                for i, proposed in enumerate(sets)
            ),
        ]

    def candidates_of(
        self, new: Sequence[LeverVersion], *, room: int, new_id: NewId, at: datetime
    ) -> list[Candidate]:
        """At most `room` candidates made of the new versions and of those in play.

        Versions that wait for a review are in none.
        """
        known = self.snapshot.candidates
        new = [version for version in new if not version.review_is(ReviewState.WAITING)]
        pairs = pool.combinations(
            known,
            instructions=[v.version for v in new if v.lever is LeverName.INSTRUCTION],
            demonstrations=[v.version for v in new if v.lever is LeverName.DEMONSTRATIONS],
            room=room,
        )
        ids = {candidate.levers: candidate.candidate_id for candidate in known}
        parents = {(version.lever, version.version): version.parent_version for version in new}
        session = self.snapshot.session
        return [
            Candidate(
                candidate_id=new_id("cand"),
                session_id=session.session_id,
                number=known[-1].number + 1 + i,
                instruction_version=pair[0],
                demonstrations_version=pair[1],
                parent_id=ids.get(_parent_levers(pair, parents), session.baseline_id),
                created_at=at,
            )
            for i, pair in enumerate(pairs)
        ]

    @cached_property
    def _rewards(self) -> dict[str, int]:
        """Each candidate's rewards in the present epoch, on which the belief rests."""
        return {arm.candidate_id: arm.statistics.rewards for arm in self.snapshot.belief.arms}

    def _made_by_hand(self) -> set[str]:
        """The first candidate of each instruction that a human added."""
        human = {
            version.version
            for version in self.versions(LeverName.INSTRUCTION)[1:]
            if version.provenance.actor is LeverActor.HUMAN
        }
        first: dict[int, str] = {}
        for candidate in self.snapshot.candidates:
            first.setdefault(candidate.instruction_version, candidate.candidate_id)
        return {first[version] for version in human & first.keys()}


def not_shown(seen: Round) -> str:
    """Which calls cannot become demonstrations, and why; empty when all can."""
    said = []
    if not seen.showable:
        said.append(
            f"no demonstrations: none of the {len(seen.traces)} recorded calls is marked as safe "
            "to show to other users; send shareable with the rewards of inputs that are, or set "
            "prompt_learning.mipro.demonstrations.from_traffic"
        )
    if unfit := seen.unfit_examples():
        reasons = ", ".join(f"{count} {fault}" for fault, count in unfit.most_common())
        said.append(f"{unfit.total()} worked examples are not fit to be shown: {reasons}")
    return "; ".join(said)


def nothing_seen(seen: Round, totals: Statistics) -> str:
    """Why a round has no recorded call to learn from, and what to do."""
    if seen.held_out:
        return (
            f"nothing to look at: all {seen.held_out} recorded calls are of held-out examples; "
            "leave examples to learn from out of prompt_learning.mipro.val_seeds and test_pool"
        )
    if totals.unapplied_rollouts and not totals.rewards:
        return (
            f"nothing to look at: {totals.unapplied_rollouts} of {totals.rollouts} rollouts ran "
            "without their candidate's prompt; send the messages of prompt_learning.initial_prompt"
        )
    return (
        "nothing to look at: no rewarded rollout consists of a single answered call with the "
        "candidate's prompt and with text on both sides; reward rollouts of one call each, and "
        "keep their texts (trace_content)"
    )


def _held_out(config: MiproConfig, example_id: str | None) -> bool:
    """Whether learning must not see this example."""
    return config.mipro.split_of(example_id) in ("validation", "held_out")


def _provenance_of_set(proposed: ProposedSet, *, review: Review | None) -> LeverProvenance:
    shown = proposed.value.demonstrations
    return LeverProvenance(
        actor=LeverActor.OPTIMIZER,
        operator=f"bootstrap_{proposed.kind}",
        reason=f"{len(shown)} worked examples; set {demonstrations.set_id(proposed.value)}",
        template_version=demonstrations.TEMPLATE_VERSION,
        source_trace_ids=tuple(d.trace_id for d in shown if d.trace_id),
        review=review,
    )


def _parent_levers(
    pair: tuple[int, int], parents: dict[tuple[LeverName, int], int | None]
) -> tuple[int, int]:
    """The levers a new pair descends from: each new version gives way to its parent."""
    instruction, shown = (
        parents.get((lever, version), version) or 1
        for lever, version in zip(LeverName, pair, strict=True)
    )
    return instruction, shown
