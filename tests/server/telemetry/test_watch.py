"""What becomes of rewards and proposal rounds, as it is counted."""

from __future__ import annotations

from contextlib import suppress

import pytest

from prefect_mipro.errors import Conflict, MiproError, RewardConflict, StoreFailed
from prefect_mipro.models.chat import Usage
from prefect_mipro.models.rollouts import RewardReceipt
from prefect_mipro.server.telemetry.watch import Telemetry
from tests.server.store.records import demonstrations, instruction


def value(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return telemetry.meters.registry.get_sample_value(name, labels)


def receipt(*, attached: bool = True, duplicate: bool = False) -> RewardReceipt:
    return RewardReceipt(
        status="accepted",
        session_id="s",
        rollout_id="r",
        candidate_id="c" if attached else None,
        reward=1.0,
        attached=attached,
        duplicate=duplicate,
    )


@pytest.mark.parametrize(
    ("taken", "outcome"),
    [
        (receipt(), "attached"),
        (receipt(attached=False), "waiting"),
        (receipt(duplicate=True), "duplicate"),
    ],
)
def test_a_reward_counts_by_what_became_of_it(taken: RewardReceipt, outcome: str) -> None:
    telemetry = Telemetry()
    with telemetry.reward("s", "r") as watched:
        watched.taken(taken)
    assert value(telemetry, "mipro_rewards_total", outcome=outcome) == 1


@pytest.mark.parametrize(
    ("error", "outcome"), [(RewardConflict("x"), "refused"), (StoreFailed("x"), "failed")]
)
def test_a_reward_that_is_not_taken_is_refused_or_has_failed(
    error: MiproError, outcome: str
) -> None:
    telemetry = Telemetry()
    with suppress(MiproError), telemetry.reward("s", "r"):
        raise error
    assert value(telemetry, "mipro_rewards_total", outcome=outcome) == 1


@pytest.mark.parametrize(("model_failed", "outcome"), [(False, "finished"), (True, "model_failed")])
def test_a_round_counts_by_what_its_model_did(model_failed: bool, outcome: str) -> None:
    telemetry = Telemetry()
    usage = Usage(prompt_tokens=70, completion_tokens=20)
    with telemetry.proposal_round("s") as watched:
        watched.finished(instructions=1, model_failed=model_failed, usage=usage)
    assert value(telemetry, "mipro_proposal_rounds_total", outcome=outcome) == 1
    assert value(telemetry, "mipro_proposer_tokens_total", kind="prompt") == 70


def test_a_round_that_ends_with_an_error_has_failed() -> None:
    telemetry = Telemetry()
    with suppress(MiproError), telemetry.proposal_round("s"):
        raise Conflict("x")
    assert value(telemetry, "mipro_proposal_rounds_total", outcome="failed") == 1


def test_versions_that_are_made_count_by_their_lever() -> None:
    telemetry = Telemetry()
    telemetry.made([instruction(2), instruction(3), demonstrations(2)])
    assert value(telemetry, "mipro_lever_versions_total", lever="instruction") == 2
    assert value(telemetry, "mipro_lever_versions_total", lever="demonstrations") == 1
