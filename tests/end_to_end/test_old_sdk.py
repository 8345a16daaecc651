"""The released SDK whose class we take over, unchanged, against our backend."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import CONFIG, KEY, Setting, messages_of


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Import it where its folder `traces` does no harm, and without its own deprecations."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("sdk"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("synth_ai.sdk.optimization.policy.mipro_online_session")
        importlib.import_module("synth_ai.sdk.optimization.models")
    yield
    os.chdir(here)


@pytest.fixture
def sdk() -> Any:
    from synth_ai.sdk.optimization.policy import mipro_online_session

    return mipro_online_session.MiproOnlineSession


def create(sdk: Any, setting: Setting, **more: Any) -> Any:
    options: dict[str, Any] = {"backend_url": setting.url, "api_key": KEY, "config_body": CONFIG}
    return sdk.create(**{**options, **more})


def call(session: Any, rollout_id: str, query: str) -> httpx.Response:
    return httpx.post(
        f"{session.online_url}/{rollout_id}/chat/completions",
        json={"model": "gpt-4.1-nano", "messages": messages_of(query)},
    )


def test_create_gives_id_and_urls(sdk: Any, setting: Setting) -> None:
    session = create(sdk, setting, session_id="sdk-create", correlation_id="run-7")
    assert session.session_id == "sdk-create"
    assert session.correlation_id == "run-7"
    assert session.online_url == session.proxy_url
    assert session.chat_completions_url == f"{session.online_url}/chat/completions"
    assert session.get_prompt_urls()["online_url"] == session.online_url
    found = sdk.get_online_url("sdk-create", backend_url=setting.url, api_key=KEY)
    assert found == session.online_url


def test_a_rollout_is_served_rewarded_and_credited(sdk: Any, setting: Setting) -> None:
    session = create(sdk, setting, session_id="sdk-loop")
    for i in range(30):
        answer = call(session, f"trace_rollout_{i}_abcdef", f"question {i} #label{i % 3}")
        assert answer.status_code == 200
        text = answer.json()["choices"][0]["message"]["content"]
        session.update_reward(
            reward_info={"score": float(text == f"label{i % 3}")},
            rollout_id=f"trace_rollout_{i}_abcdef",
            candidate_id=answer.headers["x-mipro-candidate-id"],
            metadata={"expected": f"label{i % 3}", "seed": i},
        )
    status = session.status()
    assert status["rollout_count"] == status["reward_count"] == 30
    evals = session.list_seed_evals(limit=100)
    assert len(evals["items"]) == 30


def test_status_is_understood_by_the_sdks_own_result_classes(sdk: Any, setting: Setting) -> None:
    from synth_ai.sdk.optimization.models import PolicyOptimizationResult, PromptLearningResult

    session = create(sdk, setting, session_id="sdk-results")
    call(session, "r1", "hello #a")
    session.update_reward(reward_info={"score": 1.0}, rollout_id="r1")
    status = session.status()
    results: list[Any] = [
        PolicyOptimizationResult.from_response("sdk-results", status, algorithm="mipro"),
        PromptLearningResult.from_response("sdk-results", status),
    ]
    for result in results:
        assert result.status.value == "running"
        assert result.error is None
        assert result.best_lever_version == 1
        assert result.lever_summary_typed.lever_count == 1
        assert result.lever_summary_typed.latest_version == 1
        assert result.lever_versions["mipro.prompt.sdk-results"] == 1
        frames = result.sensor_frame_summaries_typed
        assert {"reward", "timing", "context_apply"} <= {
            kind if isinstance(kind, str) else kind.value
            for frame in frames
            for kind in frame.sensor_kinds
        }
        assert result.best_candidate_content == "You classify banking queries."


def test_pause_resume_and_cancel(sdk: Any, setting: Setting) -> None:
    session = create(sdk, setting, session_id="sdk-states")
    session.pause()
    assert session.status()["status"] == "paused"
    session.resume()
    assert session.status()["status"] == "running"
    session.cancel()
    assert session.status()["status"] == "cancelled"
    with pytest.raises(httpx.HTTPStatusError) as refused:
        session.resume()
    assert refused.value.response.status_code == 409
    assert refused.value.response.json()["error"] == "SessionEnded"


def test_candidates_are_listed_and_found(sdk: Any, setting: Setting) -> None:
    session = create(sdk, setting, session_id="sdk-candidates")
    listed = session.list_candidates()
    (item,) = listed["items"]
    assert listed["next_cursor"] is None
    assert item["prompt_text"] == "You classify banking queries."
    assert session.get_candidate(item["candidate_id"])["system_id"] == "sdk-candidates"


def test_stop_ends_the_session(sdk: Any, setting: Setting) -> None:
    session = create(sdk, setting, session_id="sdk-stop")
    call(session, "r", "hello #a")
    session.update_reward(reward_info={"score": 1.0}, rollout_id="r", stop=True)
    assert session.status()["status"] == "succeeded"


def test_creating_again_resumes_the_session(sdk: Any, setting: Setting) -> None:
    first = create(sdk, setting, session_id="sdk-again")
    call(first, "r", "hello #a")
    again = create(sdk, setting, session_id="sdk-again")
    assert again.online_url == first.online_url
    assert again.status()["rollout_count"] == 1


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (lambda s: s.update_reward(reward_info={}), 422),
        (lambda s: s.update_reward(reward_info={"score": "much"}, rollout_id="r"), 422),
        (lambda s: s.update_reward(reward_info={"score": 1}, candidate_id="cand_no"), 404),
        (lambda s: s.get_candidate("cand_no"), 404),
    ],
)
def test_errors_reach_the_sdk_with_status_and_detail(
    sdk: Any, setting: Setting, act: Any, status: int
) -> None:
    from synth_ai.core.errors import HTTPError

    session = create(sdk, setting, session_id="sdk-errors")
    call(session, "r", "hello #a")
    with pytest.raises(HTTPError) as error:
        act(session)
    assert error.value.status == status
    assert error.value.detail["message"]


def test_a_wrong_key_and_an_unknown_session_are_told_apart(sdk: Any, setting: Setting) -> None:
    from synth_ai.core.errors import HTTPError

    with pytest.raises(HTTPError) as wrong:
        create(sdk, setting, api_key="not-the-key")
    assert wrong.value.status == 401
    session = create(sdk, setting, session_id="sdk-known")
    session.session_id = "sdk-unknown"
    with pytest.raises(HTTPError) as unknown:
        session.status()
    assert unknown.value.status == 404
