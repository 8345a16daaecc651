"""Results read from odd status objects as the released SDK reads them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_mipro.models import results
from prefect_mipro.models.levers import MiproLeverSummary
from prefect_mipro.models.sensors import SensorFrameSummary
from tests.client.released_sdk import released
from tests.plugin import examples

STATUS = examples.status(examples.candidate(1)).model_dump(mode="json")
SUMMARY = {
    "prompt_lever_id": "mipro.prompt.s",
    "candidate_lever_versions": {"baseline": 1, "cand_1": 2},
    "best_candidate_id": "cand_1",
    "selected_candidate_id": "cand_1",
}
CANDIDATE = {"candidate_id": "c", "mean_reward": "0.5", "stage_payloads": {"s": {"text": " T "}}}

SUMMARY_FIELDS = list(MiproLeverSummary.model_fields)
FRAME_FIELDS = list(SensorFrameSummary.model_fields)
CANDIDATE_FIELDS = [
    *("candidate_id", "candidate_type", "artifact_kind", "artifact_payload", "artifact_preview"),
    *("candidate_content", "status", "optimization_mode", "score", "reward", "objective"),
]
RESULT_FIELDS = [
    *("job_id", "best_reward", "best_candidate", "best_prompt", "best_candidate_content"),
    *("lever_summary", "sensor_frames", "lever_versions", "best_lever_version", "error"),
    *("is_terminal", "succeeded", "failed"),
]

odd: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, 2.7, "3", " 4 ", "x", "", "  ", [], {}, [1, "a", None, {}], {"a": 1}]
)
ids = st.sampled_from(["cand_1", "base", "unknown"])


def tables(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: odd | each for name, each in fields.items()})


def lists(items: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(odd | items, max_size=3)


versions = st.dictionaries(ids, odd, max_size=3)
numbers = st.sampled_from([0.2, "0.9", 1])
texts = st.sampled_from([" text ", "other"])
parts = tables(text=texts, instruction_text=texts, code=texts, content=texts, pattern=texts)
listed = tables(
    candidate_id=ids, candidate_type=texts, artifact_kind=texts, artifact_payload=parts,
    candidate_artifact=parts, artifact_preview=texts, candidate_content=texts,
    candidate_code=texts, prompt_text=texts, instruction=texts, status=texts,
    optimization_mode=texts, mode=texts, score=numbers, objective=tables(reward=numbers),
    mean_reward=numbers, reward=numbers, avg_reward=numbers,
    instance_objectives=lists(tables(reward=numbers)), stage_payloads=st.dictionaries(ids, parts),
    program_candidate=parts, messages=lists(parts), candidate=parts,
)  # fmt: skip
summaries = tables(
    prompt_lever_id=ids, candidate_lever_versions=versions, best_candidate_id=ids,
    selected_candidate_id=ids, baseline_candidate_id=ids, lever_count=numbers,
    mutation_count=numbers, latest_version=numbers,
)  # fmt: skip
frames = tables(
    frame_id=ids,
    created_at=st.sampled_from(["2026-02-11T12:00:00Z", " 2026-02-11 ", "2026-02-11T12:00+02:00"]),
    sensor_count=numbers, sensor_kinds=lists(texts), trace_ids=lists(ids), lever_versions=versions,
)  # fmt: skip
below: dict[str, st.SearchStrategy[Any]] = {
    "best_reward": numbers, "best_score": numbers, "best_train_reward": numbers,
    "candidates": lists(listed), "best_candidate": listed | texts, "best_prompt": listed | texts,
    "lever_summary": summaries, "lever_versions": versions, "best_lever_version": numbers,
    "sensor_frames": lists(frames), "attempted_candidates": lists(listed),
    "optimized_candidates": lists(listed),
}  # fmt: skip
statuses: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    tables(
        **below, frontier=lists(listed), archive=lists(listed), error=texts, error_message=texts,
        failure_reason=texts, message=texts, metadata=tables(**below), job_metadata=tables(**below),
    ),
    status=st.sampled_from(["success", " Completed", "in progress", "ERROR", "active", "queued"]),
)  # fmt: skip


def read(record: Any, fields: list[str]) -> dict[str, Any]:
    found = {name: getattr(record, name) for name in fields}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in found.items()}


def everything(result: Any) -> dict[str, Any]:
    summary = result.lever_summary_typed
    return {
        **read(result, RESULT_FIELDS),
        "status": result.status.value,
        "attempted": [read(each, CANDIDATE_FIELDS) for each in result.attempted_candidates],
        "optimized": [read(each, CANDIDATE_FIELDS) for each in result.optimized_candidates],
        "summary": summary and read(summary, SUMMARY_FIELDS),
        "frames": [read(each, FRAME_FIELDS) for each in result.sensor_frame_summaries_typed],
    }


def same_as_the_sdk(data: dict[str, Any]) -> bool:
    theirs = released("sdk.optimization.models")
    return all(
        everything(getattr(results, name).from_response("pl_1", data))
        == everything(getattr(theirs, name).from_response("pl_1", data))
        for name in ("PolicyOptimizationResult", "PromptLearningResult")
    )


@pytest.mark.parametrize(
    "data",
    [
        STATUS,
        {"metadata": STATUS},
        {"lever_summary": SUMMARY},
        {"lever_summary": {**SUMMARY, "selected_candidate_id": 5}},
        {"lever_summary": {"prompt_lever_id": "p", "candidate_lever_versions": {"a": "x"}}},
        {"best_lever_version": 0, "lever_versions": {"a": 3}},
        {"best_candidate": {}, "best_prompt": "p"},
        {"best_candidate": CANDIDATE, "candidates": [CANDIDATE, "x"]},
        {"attempted_candidates": [CANDIDATE, {"candidate_artifact": {"text": "a"}}]},
        {"sensor_frames": [{"frame_id": "f", "trace_ids": [True, 1, "t"]}]},
        {"error": 0, "message": "m"},
    ],
)
def test_known_odd_inputs_are_read_as_the_sdk_reads_them(data: dict[str, Any]) -> None:
    assert same_as_the_sdk(data)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(statuses)
def test_any_input_is_read_as_the_sdk_reads_it(data: dict[str, Any]) -> None:
    assert same_as_the_sdk(data)
