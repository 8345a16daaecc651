"""`reviews`: which texts of users other users are shown."""

from __future__ import annotations

import copy
import itertools

import httpx

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession
from tests.cli.conftest import CONFIG, SYSTEM, Command


def test_sets_that_wait_are_shown_and_then_approved_or_declined(command: Command) -> None:
    body = copy.deepcopy(CONFIG)
    shown = {"from_traffic": "reviewed", "sizes": [2]}
    body["prompt_learning"]["mipro"]["demonstrations"] = shown
    status = command.client.create_session(CreateSession(session_id="seen", config_body=body))
    for number in itertools.count():
        if len(status.reviews) > 1:
            break
        asked = {"role": "user", "content": f"where is parcel {number}?"}
        call = f"{status.online_url}/r{number}/chat/completions"
        body = {"model": "m", "messages": [SYSTEM, asked]}
        assert httpx.post(call, json=body, trust_env=False).is_success
        reward = RewardRequest(reward_info={"score": 1.0}, rollout_id=f"r{number}")
        command.client.reward("seen", reward)
        status = command.client.session_status("seen")
    one, two, *_ = status.reviews
    listed = command("reviews", "list", "seen")
    assert one.demonstrations[0].input in listed.out
    assert f"prefect-mipro reviews approve seen {one.version}" in listed.out
    refused = command("reviews", "approve", "seen", str(one.version), "--without", "x")
    assert (refused.code, "such as 2,5" in refused.err) == (ExitCode.USAGE, True)
    approved = command(
        "reviews", "approve", "seen", str(one.version), "--without", "2", "--by", "ada", "--json"
    ).document
    assert (approved["by"], len(approved["demonstrations"])) == ("ada", 1)
    declined = command("reviews", "decline", "seen", str(two.version))
    assert declined.out == f"set {two.version} is declined; its 2 texts are not shown\n"
    texts = command("reviews", "list", "seen", "--state", "declined", "--json").document
    assert len(texts["items"]) == 2
