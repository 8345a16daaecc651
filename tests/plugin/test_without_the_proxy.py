"""The page on working without the proxy: its code runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.summaries import RolloutOutcome

PAGE = Path(__file__).parents[2] / "docs" / "without-the-proxy.md"


@pytest.fixture(scope="module")
def page(backend: EmbeddedBackend, prefect_server: None) -> dict[str, Any]:
    """What is there after all code of the page has run, one block after the other."""
    made: dict[str, Any] = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MIPRO_BACKEND_URL", backend.url)
        environment.setenv("MIPRO_API_KEY", backend.api_key.get_secret_value())
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S):
            exec(block, made)
    return made


def test_a_program_with_a_model_of_its_own_is_counted_and_rewarded(page: dict[str, Any]) -> None:
    status = page["session"].status()
    assert (status["rollout_count"], status["reward_count"]) == (2, 2)
    report = status["candidates"][status["baseline_candidate_id"]]
    assert (report["failed_calls"], report["avg_reward"]) == (0, 1.0)


def test_a_step_on_bedrock_is_rewarded(page: dict[str, Any]) -> None:
    (result,) = page["results"]
    assert (result.outcome, result.score) == (RolloutOutcome.REWARDED, 1.0)


def test_vertex_gets_the_turns_in_its_own_form(page: dict[str, Any]) -> None:
    asked: dict[str, Any] = {}

    def generate_content(**call: Any) -> SimpleNamespace:
        asked.update(call)
        usage = SimpleNamespace(model_dump=lambda: {"prompt_token_count": 3})
        return SimpleNamespace(text="delivery", usage_metadata=usage)

    vertex = SimpleNamespace(models=SimpleNamespace(generate_content=generate_content))
    lease = page["session"].lease("on-vertex", inputs={"ticket": "Where is it?"})
    assert page["generate"](vertex, lease) == ("delivery", {"prompt_token_count": 3})
    assert asked == {
        "model": "my-model",
        "contents": [{"role": "user", "parts": [{"text": "Ticket: Where is it?"}]}],
        "config": {"system_instruction": "Name the intent of the ticket."},
    }
