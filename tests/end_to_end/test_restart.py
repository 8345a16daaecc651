"""A restart forgets nothing, and a crash loses nothing that was acknowledged."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from prefect_mipro.client.clients import Client
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.fake_upstream import FakeUpstream, better_with_demonstrations


@pytest.mark.parametrize("crash", [False, True])
def test_a_restarted_backend_goes_on_where_it_was(tmp_path: Path, crash: bool) -> None:
    with FakeUpstream(better_with_demonstrations) as upstream:
        options = (
            "--database-url",
            f"sqlite+aiosqlite:///{tmp_path}/mipro.db",
            "--upstream-url",
            upstream.url,
        )
        pins: dict[str, str] = {}
        with BackendProcess(*options) as backend, Client(backend.url) as client:
            client.create_session(CreateSession(session_id="s", config_body=CONFIG))
            for i in range(30):
                pins[f"r{i}"] = call(backend.url, f"r{i}")
                client.reward("s", RewardRequest(reward_info={"score": i % 2}, rollout_id=f"r{i}"))
            before = client.session_status("s")
            if crash:
                backend.kill()
        with BackendProcess(*options) as backend, Client(backend.url) as client:
            after = client.session_status("s")
            again = {rollout_id: call(backend.url, rollout_id) for rollout_id in pins}
    assert again == pins
    assert after.reward_count == before.reward_count == 30
    assert after.version >= before.version
    known = {i: report.reward_count for i, report in after.candidates.items()}
    assert {i: r.reward_count for i, r in before.candidates.items()}.items() <= known.items()
    secret = before.online_url.rpartition("/")[2]
    assert after.online_url.endswith(secret)


def call(url: str, rollout_id: str) -> str:
    answer = httpx.post(
        f"{url}/api/mipro/v1/s/{rollout_id}/chat/completions",
        json={"model": "m", "messages": messages_of(f"{rollout_id} #a")},
    )
    assert answer.status_code == 200, answer.text
    return answer.headers["x-mipro-candidate-id"]
