"""What was answered is there after the process was killed in the middle of its work."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from prefect_mipro.client.clients import Client
from prefect_mipro.models.sessions import CreateSession
from prefect_mipro.server.store.engine import open_store
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.fake_upstream import FakeUpstream

PROGRAMS = 8
ANSWERS_BEFORE = 120


async def test_every_pin_that_was_answered_survives_a_kill(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/mipro.db"
    answered: dict[str, str] = {}
    enough = threading.Event()

    def program(number: int, path: str, http: httpx.Client) -> None:
        for count in range(10_000):
            rollout_id = f"p{number}-{count}"
            body = {"model": "m", "messages": messages_of(f"{rollout_id} #a")}
            try:
                answer = http.post(f"{path}/{rollout_id}/chat/completions", json=body)
            except httpx.HTTPError:
                return
            if answer.status_code == 200:
                answered[rollout_id] = answer.headers["x-mipro-candidate-id"]
            if len(answered) >= ANSWERS_BEFORE:
                enough.set()

    with FakeUpstream() as upstream:
        options = ("--database-url", url, "--upstream-url", upstream.url)
        with (
            BackendProcess(*options) as backend,
            Client(backend.url) as client,
            httpx.Client(base_url=backend.url, timeout=20) as http,
            ThreadPoolExecutor(PROGRAMS) as programs,
        ):
            status = client.create_session(CreateSession(session_id="s", config_body=CONFIG))
            path = urlsplit(status.online_url).path
            for number in range(PROGRAMS):
                programs.submit(program, number, path, http)
            assert enough.wait(60)
            backend.kill()
    store = await open_store(url)
    found = {rollout_id: await store.rollout("s", rollout_id) for rollout_id in answered}
    session = await store.session("s")
    await store.close()
    pinned = {rollout_id: r.candidate_id for rollout_id, r in found.items() if r}
    assert pinned == answered
    # Counters and facts were committed together.
    assert session.rollouts >= len(answered)
