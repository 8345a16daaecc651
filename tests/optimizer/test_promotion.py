"""Who may challenge the champion, and when a duel is over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from prefect_mipro.config import PromotionSettings
from prefect_mipro.models.candidates import Arm, Duel, DuelObservation, DuelState
from prefect_mipro.optimizer.evidence import Evidence
from prefect_mipro.optimizer.posterior import Posterior, posterior
from prefect_mipro.optimizer.promotion import challenger, verdict
from tests.optimizer.arms import arm, duel, grid, observations

SETTINGS = PromotionSettings()


# The challenger


def believed(arms: Sequence[Arm]) -> Posterior:
    return posterior(Evidence.of(arms))


def nominate(
    arms: list[Arm],
    *,
    retired: Sequence[str] = (),
    champion_id: str = "1.1",
    newest: Duel | None = None,
    rollouts_now: int = 1_000,
    settings: PromotionSettings = SETTINGS,
) -> str | None:
    found = challenger(
        believed(arms),
        active=[a.candidate_id for a in arms if a.candidate_id not in retired],
        champion_id=champion_id,
        duel=newest,
        rollouts_now=rollouts_now,
        settings=settings,
    )
    return found[0] if found else None


CLEAR = [arm(1, 1, rewards=30, mean=0.2), arm(1, 2, rewards=30, mean=0.7)]


def test_a_clearly_better_candidate_challenges_after_60_rewards() -> None:
    assert nominate(CLEAR) == "1.2"
    assert nominate([CLEAR[0], arm(1, 2, rewards=29, mean=0.7)]) is None


def test_the_predicted_lift_is_that_of_the_posterior() -> None:
    belief = believed(CLEAR)
    found = challenger(
        belief,
        active=["1.1", "1.2"],
        champion_id="1.1",
        duel=None,
        rollouts_now=60,
        settings=SETTINGS,
    )
    assert found is not None
    assert found[1] == pytest.approx(belief.mean[1] - belief.mean[0])
    assert 0.1 < found[1] < 0.5


def test_among_the_better_ones_the_best_challenges() -> None:
    assert nominate([*CLEAR, arm(2, 3, rewards=30, mean=0.9)]) == "2.3"


def test_a_retired_candidate_does_not_challenge() -> None:
    field = [*CLEAR, arm(2, 3, rewards=30, mean=0.9)]
    assert nominate(field, retired=["2.3"]) == "1.2"
    assert nominate(field, retired=["2.3", "1.2"]) is None


def test_a_candidate_challenges_only_if_likely_better_by_more_than_the_margin() -> None:
    assert nominate(CLEAR, settings=PromotionSettings(min_lift=0.05)) == "1.2"
    assert nominate(CLEAR, settings=PromotionSettings(min_lift=0.4)) is None


def test_an_uncertain_leader_does_not_challenge() -> None:
    assert nominate([arm(1, 1, rewards=30, mean=0.5), arm(1, 2, rewards=30, mean=0.55)]) is None


def test_a_candidate_without_rewards_of_its_own_does_not_challenge() -> None:
    arms = [
        arm(1, 1, rewards=200, mean=0.1),
        arm(2, 2, rewards=200, mean=0.9),
        arm(2, 3, rewards=200, mean=0.9),
        arm(3, 2),
    ]
    assert nominate(arms[1:], champion_id="2.2") is None
    assert nominate([arms[0], arms[3]]) is None


def test_the_champion_alone_has_no_challenger() -> None:
    assert nominate([arm(1, 1, rewards=200, mean=0.1)]) is None


def test_switched_off_nobody_challenges() -> None:
    assert nominate(CLEAR, settings=PromotionSettings(enabled=False)) is None


def test_one_duel_runs_at_a_time() -> None:
    assert nominate(CLEAR, newest=duel(rollouts_before=100, rollouts=100)) is None


def test_after_a_promotion_the_next_duel_may_start_at_once() -> None:
    won = duel(state=DuelState.WON, rollouts_before=900, rollouts=50)
    assert nominate(CLEAR, newest=won) == "1.2"


def test_a_dethroned_champion_may_challenge_back_at_once() -> None:
    won = duel("1.2", "1.1", state=DuelState.WON, rollouts_before=900, rollouts=50)
    assert nominate(CLEAR, newest=won, champion_id="1.1") == "1.2"


@pytest.mark.parametrize("state", [DuelState.LOST, DuelState.ABANDONED, DuelState.EXPIRED])
def test_a_challenger_that_did_not_win_rests(state: DuelState) -> None:
    lost = duel("1.1", "1.2", state=state, rollouts_before=100, rollouts=90)
    ended = 100 + round(90 / SETTINGS.traffic_share)
    assert nominate(CLEAR, newest=lost, rollouts_now=ended + 59) is None
    assert nominate(CLEAR, newest=lost, rollouts_now=ended + 60) == "1.2"


def test_a_better_one_need_not_wait_for_the_rest_of_another() -> None:
    lost = duel("1.1", "2.2", state=DuelState.ABANDONED, rollouts_before=100, rollouts=100)
    assert nominate(CLEAR, newest=lost, rollouts_now=300) == "1.2"


# The verdict


def judge(
    seen: list[DuelObservation],
    arms: list[Arm],
    *,
    retired: Sequence[str] = (),
    awaited: int = 0,
    settings: PromotionSettings = SETTINGS,
    **fields: object,
) -> DuelState:
    active = [a.candidate_id for a in arms if a.candidate_id not in retired]
    contest = duel("1.1", "1.2", **fields)
    return verdict(contest, seen, believed(arms), active=active, awaited=awaited, settings=settings)


def outcome(*, champion: float, challenger: float, rewards: int = 100) -> list[DuelObservation]:
    """Alternating sides, each with its share of successes spread evenly."""
    sides = [number % 2 == 1 for number in range(rewards)]
    scores = [challenger if side else champion for side in sides]
    return observations(sides, scores)


GOOD = outcome(champion=0.1, challenger=0.9)
BAD = outcome(champion=0.9, challenger=0.1)


def test_a_duel_goes_on_while_nothing_is_proven() -> None:
    assert judge(outcome(champion=0.5, challenger=0.5), CLEAR) is DuelState.RUNNING
    assert judge([], CLEAR) is DuelState.RUNNING


def test_enough_evidence_wins() -> None:
    assert judge(GOOD, CLEAR) is DuelState.WON


def test_enough_evidence_against_loses() -> None:
    assert judge(BAD, CLEAR) is DuelState.LOST


@pytest.mark.parametrize(
    ("seen", "state"),
    [([*GOOD, *BAD, *BAD], DuelState.WON), ([*BAD, *GOOD, *GOOD], DuelState.LOST)],
)
def test_what_was_proven_first_counts(seen: list[DuelObservation], state: DuelState) -> None:
    assert judge(seen, CLEAR) is state
    assert judge(seen, CLEAR, rollouts=SETTINGS.max_rollouts) is state


def test_a_smaller_alpha_asks_for_more() -> None:
    first_half = GOOD[:20]
    assert judge(first_half, CLEAR) is DuelState.WON
    strict = PromotionSettings(alpha=1e-6)
    assert judge(first_half, CLEAR, settings=strict) is DuelState.RUNNING


def test_a_lift_within_the_margin_loses() -> None:
    seen = outcome(champion=0.4, challenger=0.6, rewards=400)
    assert judge(seen, CLEAR) is DuelState.WON
    assert judge(seen, CLEAR, settings=PromotionSettings(min_lift=0.5)) is DuelState.LOST


def test_a_duel_expires_at_its_longest() -> None:
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen, CLEAR, rollouts=SETTINGS.max_rollouts) is DuelState.EXPIRED


def test_a_duel_at_its_longest_waits_for_the_rewards_that_are_still_to_come() -> None:
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen, CLEAR, awaited=1, rollouts=SETTINGS.max_rollouts) is DuelState.RUNNING
    assert judge(GOOD, CLEAR, awaited=1, rollouts=SETTINGS.max_rollouts) is DuelState.WON


def test_a_challenger_that_turns_out_worse_is_given_up_after_60_rewards() -> None:
    worse = [arm(1, 1, rewards=100, mean=0.5), arm(1, 2, rewards=100, mean=0.3)]
    seen = outcome(champion=0.5, challenger=0.5)
    assert judge(seen[:59], worse) is DuelState.RUNNING
    assert judge(seen[:60], worse) is DuelState.ABANDONED


BETTER_RIVAL = [*CLEAR, arm(2, 3, rewards=60, mean=0.95)]


def test_a_challenger_gives_way_to_a_clearly_better_one_after_30_rewards() -> None:
    seen = outcome(champion=0.5, challenger=0.45)
    assert judge(seen[:29], BETTER_RIVAL) is DuelState.RUNNING
    assert judge(seen[:30], BETTER_RIVAL) is DuelState.ABANDONED


def test_a_challenger_that_the_evidence_is_for_stays() -> None:
    seen = outcome(champion=0.5, challenger=0.55)
    assert judge(seen[:40], BETTER_RIVAL) is DuelState.RUNNING


def test_a_challenger_does_not_give_way_to_one_that_is_hardly_better() -> None:
    field = [*CLEAR, arm(1, 3, rewards=30, mean=0.71)]
    assert judge(outcome(champion=0.5, challenger=0.5), field) is DuelState.RUNNING


def test_a_challenger_does_not_give_way_to_a_retired_one() -> None:
    seen = outcome(champion=0.5, challenger=0.45, rewards=30)
    assert judge(seen, BETTER_RIVAL, retired=["2.3"]) is DuelState.RUNNING


@pytest.mark.parametrize("side", ["1.1", "1.2"])
def test_a_duel_with_a_retired_side_is_given_up(side: str) -> None:
    assert judge([], CLEAR, retired=[side]) is DuelState.ABANDONED


def test_a_duel_that_ended_stays_ended() -> None:
    seen = outcome(champion=0.1, challenger=0.9)
    assert judge(seen, CLEAR, state=DuelState.EXPIRED) is DuelState.EXPIRED


def test_many_arms_do_not_change_who_is_judged() -> None:
    crowd = [*CLEAR, *grid(3, 3, rewards=5, mean=0.4)[3:]]
    assert judge(outcome(champion=0.1, challenger=0.9), crowd) is DuelState.WON
