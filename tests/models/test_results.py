"""Results read from status objects: the rules of section 7, one by one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from prefect_mipro.errors import AnswerInvalid
from prefect_mipro.models.results import (
    PolicyCandidate,
    PolicyOptimizationResult,
    PromptLearningResult,
    ResultStatus,
)
from tests.plugin import examples

STATUS: dict[str, Any] = {
    "status": "running",
    "best_reward": 0.8,
    "best_candidate": {"candidate_id": "cand_1", "prompt_text": "Answer with one label."},
    "lever_summary": {
        "prompt_lever_id": "mipro.prompt.s",
        "candidate_lever_versions": {"baseline": 1, "cand_1": 2},
        "best_candidate_id": "cand_1",
        "selected_candidate_id": "cand_1",
        "baseline_candidate_id": "baseline",
        "lever_count": 2,
        "mutation_count": 1,
        "latest_version": 2,
    },
    "lever_versions": {"mipro.prompt.s": 2},
    "best_lever_version": 2,
    "sensor_frames": [
        {
            "frame_id": "frame_9",
            "created_at": "2026-02-11T12:00:00Z",
            "sensor_count": 2,
            "sensor_kinds": ["reward", "timing"],
            "trace_ids": ["trace_1"],
            "lever_versions": {"mipro.prompt.s": 2},
        }
    ],
}
SUMMARY: dict[str, Any] = STATUS["lever_summary"]


def policy(data: dict[str, Any], algorithm: str | None = None) -> PolicyOptimizationResult:
    return PolicyOptimizationResult.from_response("pl_1", data, algorithm=algorithm)


def learning(data: dict[str, Any]) -> PromptLearningResult:
    return PromptLearningResult.from_response("pl_1", data)


def test_a_full_status_is_read() -> None:
    result = policy(STATUS, "mipro")
    assert (result.job_id, result.algorithm, result.raw) == ("pl_1", "mipro", STATUS)
    assert result.status is ResultStatus.RUNNING
    assert (result.is_terminal, result.succeeded, result.failed) == (False, False, False)
    assert result.best_reward == 0.8
    assert result.best_prompt == result.best_candidate == STATUS["best_candidate"]
    assert result.best_candidate_content == "Answer with one label."
    assert result.lever_versions == {"mipro.prompt.s": 2}
    assert result.best_lever_version == 2
    assert result.error is None


def test_our_own_status_is_read() -> None:
    status = examples.status(examples.candidate(1), examples.candidate(2), champion=2)
    result = policy(status.model_dump(mode="json"), "mipro")
    assert result.status is ResultStatus.RUNNING
    assert result.best_reward == 0.6
    assert result.lever_versions == {"mipro.prompt.support-bot": 2}
    assert result.best_lever_version == 2
    assert result.sensor_frame_summaries_typed == status.sensor_frames


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("success", "succeeded"),
        (" Succeeded ", "succeeded"),
        ("complete", "succeeded"),
        ("COMPLETED", "succeeded"),
        ("cancel", "cancelled"),
        ("canceled", "cancelled"),
        ("cancelled", "cancelled"),
        ("failed", "failed"),
        ("failure", "failed"),
        ("error", "failed"),
        ("running", "running"),
        ("in progress", "running"),
        ("in_progress", "running"),
        ("paused", "paused"),
        ("queued", "queued"),
        ("pending", "pending"),
        ("active", "pending"),
        ("", "pending"),
    ],
)
def test_status_words_have_one_meaning_each(word: str, status: str) -> None:
    result = policy({"status": word})
    assert result.status == status
    assert result.succeeded is (status == "succeeded")
    assert result.failed is (status == "failed")
    assert result.is_terminal is (status in ("succeeded", "failed", "cancelled"))


def test_no_status_means_pending() -> None:
    assert learning({}).status is ResultStatus.PENDING


@pytest.mark.parametrize("status", [None, 3, {}])
def test_a_status_that_is_no_text_is_an_error(status: Any) -> None:
    with pytest.raises(AnswerInvalid, match="status is"):
        policy({"status": status})
    with pytest.raises(AnswerInvalid, match="status is"):
        learning({"status": status})


@pytest.mark.parametrize("place", ["metadata", "job_metadata"])
def test_what_the_top_level_lacks_is_found_in_metadata(place: str) -> None:
    hidden = {key: value for key, value in STATUS.items() if key != "status"}
    result = policy({"status": "running", place: hidden})
    expected = policy(STATUS)
    assert result.model_dump(exclude={"raw"}) == expected.model_dump(exclude={"raw"})


def test_the_top_level_goes_before_metadata() -> None:
    result = policy({"best_reward": 0.1, "metadata": {"best_reward": 0.9, "best_prompt": "p"}})
    assert (result.best_reward, result.best_candidate) == (0.1, "p")


@pytest.mark.parametrize(
    ("data", "best"),
    [
        ({"best_reward": "0.5"}, 0.5),
        ({"best_score": 1}, 1.0),
        ({"best_train_score": 0.2, "best_train_reward": 0.3}, 0.3),
        ({"best_reward": "high", "best_score": 0.4}, None),
        ({"best_reward": "high", "metadata": {"best_score": 0.4}}, 0.4),
        ({"candidates": [{"avg_reward": 0.1}, {"reward": "0.7"}, 5]}, 0.7),
        ({"frontier": [{"instance_objectives": [{"reward": 1}, {"reward": 0}]}]}, 0.5),
        ({"archive": [{"objective": {"reward": 0.3}}]}, 0.3),
        ({"metadata": {"candidates": [{"mean_reward": 0.2}]}}, 0.2),
        ({"candidates": {"cand_1": {"avg_reward": 0.9}}}, None),
        ({}, None),
    ],
)
def test_the_best_reward_is_the_first_that_is_known(data: dict[str, Any], best: float) -> None:
    assert policy(data).best_reward == best


@pytest.mark.parametrize(
    ("summary", "versions", "best"),
    [
        (SUMMARY, {"mipro.prompt.s": 2}, 2),
        ({**SUMMARY, "selected_candidate_id": "baseline"}, {"mipro.prompt.s": 1}, 1),
        ({**SUMMARY, "selected_candidate_id": None}, {"mipro.prompt.s": 2}, 2),
        (
            {"prompt_lever_id": "p", "candidate_lever_versions": {"only": "3"}},
            {"p": 3},
            3,
        ),
        ({"prompt_lever_id": "p", "candidate_lever_versions": {"a": 1, "b": 2}}, {}, None),
        ({"candidate_lever_versions": {"only": 3}}, {}, 3),
        ({**SUMMARY, "selected_candidate_id": "unknown"}, {}, None),
        ([], {}, None),
    ],
)
def test_versions_are_inferred_from_the_chosen_candidate(
    summary: Any, versions: dict[str, int], best: int | None
) -> None:
    result = policy({"lever_summary": summary})
    assert (result.lever_versions, result.best_lever_version) == (versions, best)
    assert learning({"lever_summary": summary}).lever_versions == {}
    assert learning({"lever_summary": summary}).best_lever_version is None


@pytest.mark.parametrize("read", [policy, learning])
@pytest.mark.parametrize(
    ("best", "found"), [(None, 4), ("2", 2), ("two", 4), (0, 4), (2.9, 2), (float("inf"), 4)]
)
def test_the_best_version_falls_back_to_the_newest(read: Any, best: Any, found: int) -> None:
    data = {"lever_versions": {"a": "4", "b": 1, "c": "x", "d": None}, "best_lever_version": best}
    assert read(data).lever_versions == {"a": 4, "b": 1}
    assert read(data).best_lever_version == found


@pytest.mark.parametrize(
    ("best", "text"),
    [
        (" plain text ", "plain text"),
        ({"instruction": "I", "prompt_text": "P"}, "I"),
        ({"prompt_text": "  ", "program_candidate": {"code": "C"}}, "C"),
        ({"stage_payloads": {"a": 1, "b": {"instruction_text": "S"}}}, "S"),
        ({"messages": [{"content": "M1"}, {"pattern": "M2"}, 3, {"text": "M3"}]}, "M1\n\nM2\n\nM3"),
        ({"candidate": {"system_prompt": "N"}}, "N"),
        ({"candidate_id": "c"}, None),
    ],
)
def test_the_best_candidates_text_is_found_where_backends_put_it(
    best: Any, text: str | None
) -> None:
    assert policy({"best_candidate": best}).best_candidate_content == text


def test_without_a_best_candidate_the_first_listed_text_is_taken() -> None:
    data = {"optimized_candidates": [{}, {"text": "first"}], "candidates": [{"text": "second"}]}
    assert learning(data).best_candidate_content == "first"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"message": " m ", "failure_reason": "f"}, "f"),
        ({"error": {"code": 1}}, "{'code': 1}"),
        ({"error": "", "message": "m"}, None),
        ({}, None),
    ],
)
def test_the_error_is_the_first_text_that_tells_of_one(
    data: dict[str, Any], error: str | None
) -> None:
    assert policy(data).error == error


def test_a_lever_summary_is_typed_leniently() -> None:
    summary = policy(STATUS).lever_summary_typed
    assert summary is not None
    assert summary.candidate_lever_versions == {"baseline": 1, "cand_1": 2}
    assert summary.latest_version == 2
    odd = policy(
        {
            "lever_summary": {
                "prompt_lever_id": 5,
                "lever_count": "x",
                "latest_version": "3",
                "best_candidate_id": " ",
                "candidate_lever_versions": {"a": None, "b": 1},
            }
        }
    )
    typed = odd.lever_summary_typed
    assert typed is not None
    assert (typed.prompt_lever_id, typed.lever_count, typed.latest_version) == (None, None, 3)
    assert (typed.best_candidate_id, typed.candidate_lever_versions) == (None, {"b": 1})


@pytest.mark.parametrize("summary", [None, {}, "text", 3])
def test_an_empty_lever_summary_has_no_type(summary: Any) -> None:
    assert policy({"lever_summary": summary}).lever_summary_typed is None


def test_sensor_frames_are_typed_leniently() -> None:
    good, odd = (
        {"frame_id": "f1", "created_at": "2026-02-11T12:00:00Z", "sensor_count": "2"},
        {
            "frame_id": "f2",
            "created_at": "yesterday",
            "sensor_count": "many",
            "sensor_kinds": ["reward", 3, None, 2.5],
            "trace_ids": "trace_1",
            "lever_versions": {"a": "1", "b": []},
        },
    )
    result = policy({"sensor_frames": [good, odd, {"frame_id": " "}, {"frame_id": 4}, "text"]})
    assert len(result.sensor_frames) == 4
    first, second = result.sensor_frame_summaries_typed
    assert first.created_at == datetime(2026, 2, 11, 12, tzinfo=UTC)
    assert first.sensor_count == 2
    assert (second.created_at, second.sensor_count) == (None, None)
    assert (second.sensor_kinds, second.trace_ids) == (("reward", "3"), ())
    assert second.lever_versions == {"a": 1}


@pytest.mark.parametrize("frames", [None, {}, "text"])
def test_frames_that_are_no_list_are_none(frames: Any) -> None:
    assert policy({"sensor_frames": frames}).sensor_frames == []


def test_listed_candidates_are_typed() -> None:
    item = {
        "candidate_id": "c",
        "score": 0,
        "objective": {"reward": 0.4},
        "mode": "online",
        "prompt_text": " P ",
        "status": "evaluated",
        "mean_reward": 0.3,
    }
    (candidate,) = policy({"attempted_candidates": [item, 5]}).attempted_candidates
    assert isinstance(candidate, PolicyCandidate)
    assert (candidate.candidate_id, candidate.status) == ("c", "evaluated")
    assert (candidate.score, candidate.objective, candidate.reward) == (0.4, 0.4, 0.3)
    assert (candidate.optimization_mode, candidate.candidate_content) == ("online", "P")
    assert candidate.raw == item


@pytest.mark.parametrize(("given_", "found"), [("mipro", "mipro"), (None, "gepa")])
def test_the_algorithm_is_the_argument_else_the_answers(given_: str | None, found: str) -> None:
    assert policy({"algorithm": "gepa"}, given_).algorithm == found
