"""The services on a real SQLite file, with a model at the network edge that answers as told."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_mipro.models.chat import ChatBody
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionStatus
from prefect_mipro.server.routes.dependencies import Backend as Services
from prefect_mipro.server.services.calls import Call
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store
from prefect_mipro.server.telemetry.watch import Telemetry
from prefect_mipro.server.upstream.interface import StreamedUsage
from prefect_mipro.server.upstream.registry import Upstreams
from prefect_mipro.server.wiring import running as running_services
from prefect_mipro.server.wiring import wire
from tests.fake_upstream import completion_of, say_ok, stream_of


@dataclass
class Answer:
    """A reply that is there already."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    retry_after_seconds: float | None = None
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    keys: Collection[bytes] = ()
    usage: StreamedUsage = field(default_factory=StreamedUsage)

    async def peek(self, enough: Callable[[bytes], bool]) -> bytes:
        return self.body

    async def read(self) -> bytes:
        return self.body

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self.body), 50):
            yield self.body[start : start + 50]


@dataclass(eq=False)
class Model:
    """An upstream without a network."""

    answer: Callable[[ChatBody], str | Answer | Exception] = say_ok
    bodies: list[ChatBody] = field(default_factory=list)
    keys: list[SecretStr | None] = field(default_factory=list)

    @asynccontextmanager
    async def chat(
        self, body: ChatBody, *, api_key: SecretStr | None = None
    ) -> AsyncIterator[Answer]:
        self.bodies.append(body)
        self.keys.append(api_key)
        told = self.answer(body)
        if isinstance(told, Exception):
            raise told
        if isinstance(told, Answer):
            yield told
        elif body.get("stream"):
            yield Answer(stream_of(told), content_type="text/event-stream")
        else:
            yield Answer(json.dumps(completion_of(told)).encode())

    async def close(self) -> None: ...


class Backend:
    """The services as a server wires them, a model, and a clock that moves when told."""

    def __init__(self, store: Store, model: Model, services: Services, now: list[datetime]) -> None:
        self.store = store
        self.model = model
        self.now = now
        self.services = services
        self.sessions = services.sessions
        self.urls = services.urls
        self.serving = services.serving
        self.rollouts = services.rollouts
        self.proposals = services.proposals
        self.journal = services.journal
        self.live = services.live
        self.checks = services.checks
        self.reviews = services.reviews
        self.forgetting = services.forgetting

    async def create(self, session_id: str = "s", **config: Any) -> SessionStatus:
        status, _ = await self.sessions.create(
            CreateSession(session_id=session_id, config_body=config_of(**config))
        )
        return status

    async def call(
        self, rollout_id: str | None = None, text: str = "Query: hi", **call: Any
    ) -> tuple[str, dict[str, Any]]:
        """One plain call; the candidate that answered, and the answer."""
        body = call.pop("body", None) or {
            "model": "m",
            "messages": [
                {"role": "system", "content": "You classify queries."},
                {"role": "user", "content": text},
            ],
        }
        session = await self.store.session(call.pop("session_id", "s"))
        asked = Call(body=body, rollout_id=rollout_id, **call)
        async with self.serving.serve(session, asked) as served:
            return served.candidate_id, json.loads(await served.read())

    async def reward(self, rollout_id: str | None, score: Any = 1.0, **more: Any) -> RewardReceipt:
        """Of a rollout whose texts may be shown, unless told otherwise."""
        more = {"shareable": True, **more}
        request = RewardRequest(reward_info={"score": score}, rollout_id=rollout_id, **more)
        return await self.rollouts.reward("s", request)

    def pass_time(self, seconds: float) -> None:
        self.now[0] += timedelta(seconds=seconds)


def config_of(**mipro: Any) -> dict[str, Any]:
    """A config with the given settings under `mipro`, but for `termination` and `policy`."""
    termination, policy = mipro.pop("termination", {}), mipro.pop("policy", {})
    return {
        "prompt_learning": {
            "algorithm": "mipro",
            "initial_prompt": {
                "messages": [
                    {"role": "system", "order": 0, "pattern": "You classify queries."},
                    {"role": "user", "order": 1, "pattern": "Query: {query}"},
                ]
            },
            "policy": {"model": "m", "provider": "default", **policy},
            "termination_config": termination,
            "mipro": {"mode": "online", **mipro},
        }
    }


@pytest.fixture
async def backend(template_file: Path, tmp_path: Path) -> AsyncIterator[Backend]:
    file = shutil.copyfile(template_file, tmp_path / "mipro.db")
    async with running(f"sqlite+aiosqlite:///{file}") as backend:
        yield backend


@asynccontextmanager
async def running(database_url: str, *, name: str = "") -> AsyncIterator[Backend]:
    """The services of one server. Each of those that share a database has a name in its ids."""
    store = await open_store(database_url)
    model = Model()
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    counter = itertools.count(1)
    secrets = (f"{number:032x}" for number in itertools.count(1))

    def clock() -> datetime:
        return now[0]

    def new_id(kind: str) -> str:
        return f"{kind}_{name}{next(counter):06x}"

    settings = ServerSettings(public_url="http://127.0.0.1:1")
    services = wire(
        *(settings, store, Upstreams({"default": model}), Telemetry()),
        clock=clock,
        new_id=new_id,
        new_secret=lambda: next(secrets),
    )
    async with running_services(services):
        yield Backend(store, model, services, now)
    await store.close()
