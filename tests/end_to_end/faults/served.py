"""A whole backend on a real socket, and what its counters say after something has failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from prefect_mipro.server.app import create_app
from prefect_mipro.server.ids import Clock, utc_now
from prefect_mipro.server.routes.dependencies import Backend
from prefect_mipro.server.services.session_cache import NOTHING
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.store import Store
from tests.end_to_end.conftest import CONFIG, messages_of
from tests.server.live import LiveServer

SESSIONS = "/api/v1/online/sessions"
# Larger than any test spends: each call reserves a part of it.
BUDGET = {"max_tokens": 1_000_000}


class Counted(NamedTuple):
    """What the status of a session counts."""

    rollouts: int = 0
    calls: int = 0
    failed_calls: int = 0
    rewards: int = 0


@dataclass(frozen=True)
class Served:
    """A backend behind its URL."""

    server: LiveServer
    backend: Backend
    http: httpx.Client
    _numbers: Iterator[int] = field(default_factory=count)

    def session(self, *, max_seconds: float | None = None, **mipro: Any) -> Session:
        """A new session with a budget."""
        learning = CONFIG["prompt_learning"]
        budget = {**BUDGET, "max_seconds": max_seconds}
        told = {"termination_config": budget, "mipro": {**learning["mipro"], **mipro}}
        config = {"prompt_learning": {**learning, **told}}
        body = {"session_id": f"s{next(self._numbers)}", "config_body": config}
        answer = self.http.post(SESSIONS, json=body)
        assert answer.status_code == 201, answer.text
        status = answer.json()
        return Session(self, status["session_id"], urlsplit(status["online_url"]).path)


@dataclass(frozen=True)
class Session:
    """One of its sessions, as a program and an operator see it."""

    served: Served
    session_id: str
    path: str

    def call(self, rollout_id: str, **more: Any) -> httpx.Response:
        """A model call of that rollout."""
        body = {"model": "m", "messages": messages_of(f"{rollout_id} #a"), **more}
        return self.served.http.post(f"{self.path}/{rollout_id}/chat/completions", json=body)

    def reward(self, rollout_id: str, **more: Any) -> httpx.Response:
        """Reward it; `more` stands beside the score."""
        body = {"rollout_id": rollout_id, "reward_info": {"score": 1.0, **more}}
        return self.served.http.post(f"{SESSIONS}/{self.session_id}/reward", json=body)

    def status(self) -> dict[str, Any]:
        """How it stands, with all that was recorded until now."""
        answer = self.served.http.get(f"{SESSIONS}/{self.session_id}")
        assert answer.status_code == 200, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def counted(self) -> Counted:
        """What is counted, once nothing is under way, and nothing of the budget is held."""
        self.require_idle()
        status = self.status()
        return Counted(
            status["rollout_count"],
            status["context_apply"]["calls"],
            sum(report["failed_calls"] for report in status["candidates"].values()),
            status["reward_count"],
        )

    def tokens(self) -> tuple[int, int]:
        """Those of the prompts, and those of the answers."""
        spent = self.status()["spending"]
        return spent["prompt_tokens"], spent["completion_tokens"]

    def goes_on(self, rollout_id: str = "next") -> None:
        """The next rollout is served and rewarded as if nothing had been."""
        before = self.counted()
        answer = self.call(rollout_id)
        assert answer.status_code == 200, answer.text
        receipt = self.reward(rollout_id)
        assert receipt.status_code == 200, receipt.text
        assert self.counted() == Counted(
            before.rollouts + 1, before.calls + 1, before.failed_calls, before.rewards + 1
        )

    def require_idle(self) -> None:
        """Nothing is under way, and no place or budget is held for what has failed."""
        serving = self.served.backend.serving
        self.status()  # an answer is out a moment before its call has left

        async def look() -> None:
            live = await serving.live.of(self.session_id)
            assert serving.journal.calls_in_flight == 0
            assert (live.reserved, live.unpinned) == (NOTHING, 0)
            assert [counts.calls for counts in serving.upstreams.counts().values()] == [0]

        self.served.server.run(look())


@contextmanager
def served(
    upstream_url: str,
    *,
    database_url: str = "",
    store: Store | None = None,
    clock: Clock = utc_now,
    **settings: Any,
) -> Iterator[Served]:
    """A backend on that store or database, in front of that model's server."""
    told = ServerSettings(upstream_url=upstream_url, database_url=database_url, **settings)
    app = create_app(told, store=store, clock=clock)
    with LiveServer(app) as server, httpx.Client(base_url=server.url, timeout=30) as http:
        yield Served(server, app.state.backend, http)
