"""`rollouts` and `traces`: what was asked, answered and rewarded."""

from __future__ import annotations

import httpx
import pytest

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import SessionStatus
from tests.cli.conftest import QUESTION, SYSTEM, Command


@pytest.fixture
def session(command: Command) -> SessionStatus:
    """Three rollouts, rewarded with 1, 0 and 0.5; the second with feedback, of two calls."""
    status = command.session()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for rollout_id, question in (
        ("right", QUESTION),
        ("wrong", "play \x1b[31mjazz"),
        ("wrong", [{"type": "text", "text": "and now?"}, image]),
        ("half", QUESTION),
    ):
        call = f"{status.online_url}/{rollout_id}/chat/completions"
        body = {"model": "m", "messages": [SYSTEM, {"role": "user", "content": question}]}
        assert httpx.post(call, json=body, trust_env=False).is_success
    for rollout_id, score in (("right", 1.0), ("wrong", 0.0), ("half", 0.5)):
        info = {"score": score, "feedback": "too loud" if score == 0.0 else None}
        command.client.reward(
            status.session_id, RewardRequest(reward_info=info, rollout_id=rollout_id)
        )
    return status


def test_rewarded_rollouts_are_listed_the_newest_or_the_worst_first(
    command: Command, session: SessionStatus
) -> None:
    newest = command("rollouts", "list", session.session_id, "--json").document["items"]
    assert [item["rollout_id"] for item in newest] == ["half", "wrong", "right"]
    assert (newest[0]["input"], newest[0]["reward"]) == (QUESTION, 0.5)
    worst = command("rollouts", "list", session.session_id, "--worst", "--limit", "2")
    header, first, second = worst.out.splitlines()
    assert header.split()[:2] == ["REWARD", "CANDIDATE"]
    assert first.split()[:2] == ["0.000", "#1"]
    assert "too loud" in first
    assert "half" in second
    assert f"prefect-mipro traces show {session.session_id} wrong" in worst.err


def test_a_session_without_rewards_lists_none_and_says_so(command: Command) -> None:
    empty = command.session().session_id
    listed = command("rollouts", "list", empty)
    assert (listed.code, listed.out) == (ExitCode.OK, "")
    assert listed.err == f"prefect-mipro: no rollout of {empty} has a reward yet\n"


def test_the_calls_of_a_rollout_are_shown_whole_and_steer_no_terminal(
    command: Command, session: SessionStatus
) -> None:
    shown = command("traces", "show", session.session_id, "wrong")
    for text in ("(1 of 2)", "(2 of 2)", SYSTEM["content"], "jazz", "and now?", "(image_url)"):
        assert text in shown.out
    assert "\x1b" not in shown.out
    first, second = command("traces", "show", session.session_id, "wrong", "--json").document[
        "items"
    ]
    assert first["messages"][1]["content"] == "play \x1b[31mjazz"
    one = command("traces", "show", session.session_id, second["trace_id"], "--json").document
    assert one["items"] == [second]


def test_what_was_not_recorded_is_said_so(command: Command, session: SessionStatus) -> None:
    refused = command("traces", "show", session.session_id, "never")
    assert refused.code == ExitCode.NOT_FOUND
    assert "recorded no call of a rollout 'never'" in refused.err
    unknown = command("rollouts", "list", "no-session")
    assert unknown.code == ExitCode.NOT_FOUND
