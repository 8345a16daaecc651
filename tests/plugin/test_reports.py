"""What a status looks like: values, order, and foreign text that can only be read."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings

from prefect_mipro.artifacts.charts import ticks
from prefect_mipro.artifacts.markdown import cell, one_line, table
from prefect_mipro.artifacts.reports import (
    artifact_key,
    candidates_chart,
    champion_page,
    headline,
    leaderboard,
    progress,
    reward_chart,
    sensor_frames,
)
from prefect_mipro.models.levers import Demonstration, ReviewState
from prefect_mipro.models.reviews import DemonstrationReview
from prefect_mipro.models.sensors import SensorFrameSummary
from prefect_mipro.models.sessions import ContextApply, ProposerReport, SessionState
from prefect_mipro.models.summaries import Evaluation
from tests.plugin.examples import candidate, candidate_id, duel, large_status, status
from tests.plugin.markdown import active, hostile_texts, shown


def test_progress_is_the_share_of_planned_rollouts_that_are_done() -> None:
    assert progress(status(candidate(1)), done=30, planned=120) == 25.0


def test_progress_never_exceeds_one_hundred() -> None:
    assert progress(status(candidate(1)), done=7, planned=5) == 100.0


def test_progress_of_an_ended_session_is_complete() -> None:
    ended = status(candidate(1), status=SessionState.SUCCEEDED)
    assert progress(ended, done=0, planned=100) == 100.0


def test_headline_begins_with_the_numbers_because_cards_show_thirty_letters() -> None:
    text = headline(status(candidate(1), candidate(2, mean=0.78, interval=(0.7, 0.84)), champion=2))
    assert text.startswith("0.78, up from 0.02: candidate 2 is champion (0.70 to 0.84; ")
    assert "the baseline 0.01 to 0.03)" in text


def test_headline_of_a_champion_that_has_fallen_behind_says_so() -> None:
    text = headline(status(candidate(1, mean=0.5), candidate(2, mean=0.4), champion=2))
    assert text.startswith("0.40, down from 0.50: candidate 2 is champion")


def test_headline_before_any_promotion_says_that_the_baseline_leads() -> None:
    text = headline(status(candidate(1)))
    assert text.startswith("0.02: the baseline is champion (0.01 to 0.03). ")


def test_headline_names_a_leader_that_is_not_yet_champion() -> None:
    text = headline(status(candidate(1), candidate(2), best_candidate_id=candidate_id(2)))
    assert "the baseline is champion" in text
    assert "Candidate 2 leads with 0.04 (0.02 to 0.06)" in text


def test_headline_of_a_session_without_candidates_says_so() -> None:
    assert "no candidate yet" in headline(status())


def test_leaderboard_puts_the_champion_first_then_the_highest_mean() -> None:
    rows = leaderboard(status(*(candidate(n) for n in (1, 2, 3)), champion=2))
    assert [row["candidate"] for row in rows] == [2, 3, 1]
    assert [row["role"] for row in rows] == ["champion", "", "baseline"]


def test_leaderboard_names_the_challenger_of_a_running_duel_and_the_retired() -> None:
    rows = leaderboard(
        status(candidate(1), candidate(2), candidate(3, status="retired"), duel=duel(2))
    )
    assert {row["candidate"]: row["role"] for row in rows} == {
        1: "champion",
        2: "challenger",
        3: "retired",
    }


def test_leaderboard_shows_fifty_of_sixty_candidates() -> None:
    rows = leaderboard(status(*(candidate(n) for n in range(1, 61)), champion=60))
    assert len(rows) == 50
    assert rows[0]["candidate"] == 60


@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_leaderboard_holds_finite_numbers_only(broken: float) -> None:
    rows = leaderboard(
        status(
            candidate(1, mean=broken, interval=(broken, broken), avg_reward=broken),
            candidate(2, avg_reward=None, latency_seconds=None),
        )
    )
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize(
    ("interval", "mean", "drawn"),
    [
        ((0.25, 0.75), 0.5, "────━━━━█━━━━───"),
        ((0.0, 0.05), 0.0, "█───────────────"),
        ((-2.0, 3.0), 1.0, "━━━━━━━━━━━━━━━█"),
    ],
)
def test_leaderboard_draws_mean_and_interval(
    interval: tuple[float, float], mean: float, drawn: str
) -> None:
    (row,) = leaderboard(status(candidate(1, mean=mean, interval=interval)))
    assert row["from 0 to 1"] == drawn


def test_leaderboard_says_which_candidate_another_came_from() -> None:
    rows = leaderboard(status(candidate(1), candidate(2), candidate(3, parent_id="cand_unknown")))
    assert {row["candidate"]: row["parent"] for row in rows} == {1: "", 2: 1, 3: ""}


def test_all_leaderboard_rows_have_the_same_columns() -> None:
    rows = leaderboard(status(candidate(1), candidate(2, avg_reward=None, latency_seconds=None)))
    assert len({tuple(row) for row in rows}) == 1


def test_leaderboard_shows_what_the_calls_of_a_candidate_took() -> None:
    (row,) = leaderboard(status(candidate(1, cost_usd=0.0125, first_byte_seconds=0.0404)))
    assert (row["tokens"], row["cost USD"]) == (960, 0.013)
    assert (row["latency s"], row["first byte s"]) == (0.1, 0.04)


def test_leaderboard_instruction_is_one_short_line() -> None:
    row = leaderboard(status(candidate(1, instruction="Say\nyes. " * 400)))[0]
    assert "\n" not in str(row["instruction"])
    assert len(str(row["instruction"])) <= 120


def test_sensor_frames_are_rows_of_plain_values() -> None:
    assert sensor_frames(status(candidate(1))) == [
        {
            "frame": "frame_1",
            "created": "2026-03-01T12:00:00+00:00",
            "sensors": 2,
            "kinds": "reward, timing",
            "lever versions": "mipro.prompt.support-bot = 2",
            "traces": "trace_1, rollout_1",
        }
    ]


def test_the_leaderboard_says_how_often_a_prompt_failed_and_why_it_is_retired() -> None:
    failing = candidate(
        2, failures=4, failure_rate=0.25, status="retired", retired_reason="its prompt fails"
    )
    sound, failed = leaderboard(status(candidate(1), failing))
    told = ("failures", "failure rate", "retired because")
    assert [sound[name] for name in told] == [0, "", ""]
    assert [failed[name] for name in told] == [4, 0.25, "its prompt fails"]


def test_the_page_shows_the_sets_that_wait_for_a_review() -> None:
    shown = Demonstration(input="my code is `x`", output="noted")
    review = DemonstrationReview(
        session_id="bot",
        version=3,
        state=ReviewState.WAITING,
        demonstrations=(shown,),
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    page = champion_page(status(candidate(1), reviews=(review,)))
    assert "Set 3, 1 demonstration" in page
    assert "1. user: my code is `x`\nassistant: noted" in page
    assert "Waiting for a review" not in champion_page(status(candidate(1)))


def test_champion_page_shows_prompt_demonstrations_and_difference() -> None:
    champion = candidate(
        2,
        instruction="Classify the request, in a word.",
        demonstrations=[{"input": "wake me at six", "output": "set_alarm"}],
    )
    page = champion_page(status(candidate(1), champion, champion=2))
    assert "```text\nClassify the request, in a word.\n```" in page
    assert "<details><summary>1 demonstration, " in page
    assert "user: wake me at six\nassistant: set_alarm" in page
    assert "Classify the request, ~~wording 1\\.~~ **in a word.**" in page
    assert "It has 1 demonstration, the baseline has none." in page


def test_champion_page_of_the_baseline_has_no_difference() -> None:
    assert "Changed against the baseline" not in champion_page(status(candidate(1)))


def test_champion_page_compares_the_champion_with_the_baseline() -> None:
    page = champion_page(
        status(
            candidate(1, cost_usd=0.004, latency_seconds=0.25),
            candidate(2, mean=0.5, interval=(0.4, 0.6), failed_calls=2, cost_usd=0.0468),
            champion=2,
        )
    )
    assert "|  | baseline (1) | champion (2) |" in page
    assert "| Reward while learning | **0.02** (0.01 to 0.03) | **0.50** (0.40 to 0.60) |" in page
    assert "| Seconds per call | 0.25 | 0.10 |" in page
    assert "| Tokens per rollout | 48 | 48 |" in page
    assert "| USD per 1,000 rollouts | 0.20 | 2.34 |" in page
    assert "| Calls that failed |  | 2 |" in page
    assert "Calls without its prompt" not in page


def test_champion_page_compares_with_the_one_in_the_lead_too() -> None:
    three = status(
        candidate(1), candidate(2), candidate(3), champion=2, best_candidate_id=candidate_id(3)
    )
    assert "|  | baseline (1) | champion (2) | in the lead (3) |" in champion_page(three)


def test_champion_page_puts_held_out_evaluations_first() -> None:
    evaluations = [Evaluation.of(candidate_id(2), [1.0] * 120 + [0.0] * 40, failures=3)]
    page = champion_page(status(candidate(1), candidate(2), champion=2), evaluations=evaluations)
    assert "| **Reward, 160 held-out examples** |  | **0.75** (0.68 to 0.81) |" in page
    assert "| Failures among them |  | 3 |" in page


def test_a_long_instruction_opens_on_a_click() -> None:
    page = champion_page(status(candidate(1, instruction="Say yes. " * 400)))
    assert "<details><summary>The instruction, 800 words</summary>" in page


@given(hostile_texts)
def test_a_cell_shows_the_text_and_nothing_else(text: str) -> None:
    line = one_line(text)
    parts = shown(cell(text)) if line else []
    assert "".join(part.content for part in parts) == line
    assert {part.type for part in parts} <= {"text", "text_special"}
    assert not active(table(["", "text"], [["a", cell(text)]]))


def test_a_cell_can_be_read_where_no_markdown_is_shown() -> None:
    """As in the tables of Prefect's second UI."""
    text = 'Reply with one label (e.g. "a-b"): {labels}. Don\'t guess, cand_1f! 3.5 > 2'
    assert cell(text) == text.replace(">", "\\>")


@settings(max_examples=50)
@given(hostile_texts)
def test_no_foreign_text_is_active_in_any_artifact(text: str) -> None:
    hostile = status(
        candidate(1, instruction=text[::-1]),
        candidate(
            2,
            instruction=text,
            origin=text,
            label=text,
            demonstrations=[{"input": text, "output": text}],
        ),
        candidate(3, candidate_id=f"c{text}"),
        session_id=text,
        champion=2,
        context_apply=ContextApply(calls=9, unapplied_calls=2, last_reason=text),
        proposer=ProposerReport(rounds=1, failures=1, error=text, waiting_for=text),
        sensor_frames=[
            SensorFrameSummary(
                frame_id=text, sensor_kinds=(text,), trace_ids=(text,), lever_versions={text: 1}
            )
        ],
        stop_reason=text,
        warnings=[text],
    )
    assert not active(champion_page(hostile))
    assert not active(headline(hostile))
    for row in (*leaderboard(hostile), *sensor_frames(hostile)):
        for value in row.values():
            assert not active(str(value))


def test_a_prompt_cannot_close_its_fence() -> None:
    page = champion_page(status(candidate(1, instruction="```\n</details><b>out</b>\n````")))
    assert "`````text\n```\n</details><b>out</b>\n````\n`````" in page


def test_a_demonstration_cannot_close_its_section() -> None:
    turn = {"input": "```</details>", "output": "````x"}
    page = champion_page(status(candidate(1, demonstrations=[turn])))
    shown = "user: ```</details>\nassistant: ````x\n(of unknown origin)"
    assert f"`````text\n{shown}\n`````" in page


def test_the_page_says_where_each_demonstration_came_from() -> None:
    turn = {"input": "a", "output": "b", "source": "marked", "rollout_id": "r7", "example_id": "3"}
    page = champion_page(status(candidate(1, demonstrations=[turn])))
    assert "(marked as shareable by the caller, example 3, rollout r7)" in page


def test_control_and_direction_characters_are_taken_out() -> None:
    page = champion_page(status(candidate(1, instruction="left\u202eright\x1b[31m")))
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_a_very_long_prompt_is_cut_and_says_how_much_is_missing() -> None:
    page = champion_page(status(candidate(1, instruction="x" * 50_000)))
    assert "… (30000 more characters)" in page
    assert len(page) < 40_000


def test_the_page_holds_no_proxy_secret() -> None:
    whole = status(candidate(1), candidate(2), champion=2)
    assert "0123456789abcdef" not in champion_page(whole)
    assert "0123456789abcdef" not in json.dumps(leaderboard(whole) + sensor_frames(whole))


def labels(chart: str) -> list[str]:
    """The names of a chart's rows, from top to bottom."""
    texts = re.findall(r'text-anchor="start"[^>]*>([^<]*)</text>', chart)
    return [html.unescape(text) for text in texts]


def test_candidates_stand_below_the_one_they_came_from() -> None:
    tree = status(
        candidate(1),
        candidate(2, parent_id=candidate_id(1)),
        candidate(3, parent_id=candidate_id(1)),
        candidate(4, parent_id=candidate_id(2)),
        champion=4,
    )
    chart = candidates_chart(tree)
    assert labels(chart) == ["1 baseline", "2 rewrite", "4 champion", "3 rewrite"]
    assert chart.count("<path ") == 3


def test_of_many_candidates_the_chart_shows_those_with_most_rewards_and_their_ancestors() -> None:
    many = [candidate(n, reward_count=n, parent_id=candidate_id(1)) for n in range(2, 41)]
    many[0] = candidate(2, reward_count=0, parent_id=candidate_id(1))
    many[-1] = candidate(40, reward_count=40, parent_id=candidate_id(2))
    whole = status(candidate(1), *many)
    numbers = {int(label.split()[0]) for label in labels(candidates_chart(whole))}
    assert {1, 2, 40, 39} <= numbers
    assert 3 not in numbers
    assert len(numbers) < 20
    assert f"{40 - len(numbers)} more candidates with fewer rewards" in champion_page(whole)


def test_a_parent_that_is_not_told_makes_no_branch() -> None:
    assert "<path " not in candidates_chart(status(candidate(1), candidate(2, parent_id="unknown")))


def test_the_chart_of_candidates_is_told_in_words_too() -> None:
    page = champion_page(status(candidate(1), candidate(2), champion=2))
    assert "![Mean rewards: 1 baseline 0.02, 2 champion 0.04](data:image/svg+xml" in page


def test_foreign_text_in_a_chart_is_escaped() -> None:
    two = status(candidate(1), candidate(2, origin="<script>&"), candidate(3), champion=3)
    assert "2 <script>&" in labels(candidates_chart(two))
    ElementTree.fromstring(candidates_chart(two))


def test_forty_candidates_with_long_prompts_fit_into_the_page() -> None:
    assert len(champion_page(large_status())) < 60_000


def test_reward_chart_puts_many_blocks_together() -> None:
    curve = [(5 * n, 0.5) for n in range(1, 61)]
    chart = reward_chart(status(candidate(1), reward_curve=curve))
    assert chart.count("<circle") == 12
    assert " 300</text>" not in chart
    assert ">300</text>" in chart


def test_reward_chart_has_no_last_block_of_a_few_rollouts() -> None:
    curve = [(25, 0.2), (50, 0.4), (53, 0.9)]
    chart = reward_chart(status(candidate(1), reward_curve=curve))
    assert chart.count("<circle") == 2
    assert "53</text>" not in chart


def test_names_of_levels_that_are_alike_do_not_cover_each_other() -> None:
    chart = reward_chart(status(candidate(1, mean=0.5), candidate(2, mean=0.51), champion=2))
    heights = re.findall(r'y="([0-9.]+)"[^>]*font-weight="600">(?:baseline|champion)', chart)
    baseline, champion = map(float, heights)
    assert baseline - champion >= 15


def test_reward_chart_is_well_formed_and_draws_every_block() -> None:
    svg = ElementTree.fromstring(reward_chart(status(candidate(1), candidate(2), champion=2)))
    names = [element.tag.rpartition("}")[2] for element in svg.iter()]
    assert names.count("circle") == 3
    assert names.count("polygon") == 1


def test_reward_chart_narrows_its_band_where_blocks_are_larger() -> None:
    def width(block: int) -> float:
        chart = reward_chart(status(candidate(1), reward_curve=[(block, 0.5)]))
        corners = re.search(r'<polygon points="([^"]+)"', chart)
        assert corners
        upper, lower = (float(corner.split(",")[1]) for corner in corners[1].split())
        return lower - upper

    assert width(400) < width(10) / 4


def test_reward_chart_travels_inside_the_page() -> None:
    page = champion_page(status(candidate(1)))
    found = re.search(r"!\[[^]]*\]\(data:image/svg\+xml;base64,([^)]+)\)", page)
    assert found
    assert base64.b64decode(found[1]).startswith(b"<svg ")


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (60.0, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        (400.0, [0.0, 100.0, 200.0, 300.0, 400.0]),
        (1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_ticks_are_round_numbers(largest: float, expected: list[float]) -> None:
    assert ticks(largest) == pytest.approx(expected)


def test_artifact_keys_use_the_letters_that_prefect_allows() -> None:
    key = artifact_key("Support_Bot:v2~x.1", "leaderboard")
    assert re.fullmatch(r"mipro-support-bot-v2-x-1-[0-9a-f]{8}-leaderboard", key)


def test_a_plain_session_id_stands_in_its_key_as_it_is() -> None:
    assert artifact_key("support-bot", "champion") == "mipro-support-bot-champion"


def test_sessions_that_look_alike_have_different_keys() -> None:
    ids = ["Bot", "bot", "b.ot", "b-ot", "b_ot", "x" * 200, "x" * 199]
    assert len({artifact_key(session_id, "champion") for session_id in ids}) == len(ids)
