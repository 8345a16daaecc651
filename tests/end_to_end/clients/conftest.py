"""A backend process whose model's server does what a test scripts, and clients that call both."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest

from prefect_mipro.client.session import MiproOnlineSession
from tests.end_to_end.conftest import BackendProcess
from tests.server.scripted_upstream import Script, ScriptedUpstream

KEY = "key-for-tests-0123456789"
CONFIG: dict[str, Any] = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": "You classify banking queries."},
                {"role": "user", "order": 1, "pattern": "Query: {query}"},
            ],
            "wildcards": {"query": "REQUIRED"},
        },
        "policy": {"model": "the-policy-model", "provider": "openai"},
        "mipro": {"mode": "online"},
    }
}
MESSAGES: list[Any] = [
    {"role": "system", "content": "You classify banking queries."},
    {"role": "user", "content": "Query: where is my card?"},
]


@dataclass(frozen=True)
class Place:
    """A backend, the model's server behind it, and a session of the test's own."""

    upstream: ScriptedUpstream
    session: MiproOnlineSession

    @property
    def session_url(self) -> str:
        """The base URL of the session."""
        assert self.session.online_url
        return self.session.online_url

    @property
    def url(self) -> str:
        """The base URL of one rollout."""
        return f"{self.session_url}/r1"

    def answer(self, body: bytes, **more: Any) -> None:
        """Script this answer."""
        self.upstream.script.append(lambda connection: connection.answer(body, **more))

    def script(self, *scripts: Script) -> None:
        """Script these calls."""
        self.upstream.script.extend(scripts)

    def candidate(self) -> dict[str, Any]:
        """What the session's status says of its only candidate."""
        return only_candidate(self.session.status())

    def exported(self) -> str:
        """The session as it is exported, one JSON object a line."""
        url, _, _ = self.session_url.partition("/api/")
        path = f"/api/v1/online/sessions/{self.session.session_id}/export"
        answer = httpx.get(url + path, headers={"authorization": f"Bearer {KEY}"})
        return answer.raise_for_status().text

    def seed_evals(self) -> list[dict[str, Any]]:
        """The session's rewarded rollouts whose example is known."""
        items: list[dict[str, Any]] = self.session.list_seed_evals()["items"]
        return items


def only_candidate(status: dict[str, Any]) -> dict[str, Any]:
    """The entry of a status that has one candidate."""
    (found,) = status["candidates"].values()
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def upstream_of_clients() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def backend_url(
    tmp_path_factory: pytest.TempPathFactory, upstream_of_clients: ScriptedUpstream
) -> Iterator[str]:
    database = tmp_path_factory.mktemp("clients") / "mipro.db"
    with BackendProcess(
        *("--database-url", f"sqlite:///{database}"),
        *("--upstream-url", upstream_of_clients.url),
        MIPRO_SERVER_API_KEYS=KEY,
    ) as backend:
        yield backend.url


numbers = itertools.count()


@pytest.fixture
def place(backend_url: str, upstream_of_clients: ScriptedUpstream) -> Place:
    upstream_of_clients.reset()
    session = MiproOnlineSession.create(
        config_body=CONFIG,
        backend_url=backend_url,
        api_key=KEY,
        session_id=f"clients-{next(numbers)}",
    )
    return Place(upstream_of_clients, session)


@pytest.fixture
def direct(upstream_of_clients: ScriptedUpstream) -> Iterator[openai.OpenAI]:
    """The official client without us."""
    with openai.OpenAI(base_url=upstream_of_clients.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    """The official client against a rollout URL."""
    with openai.OpenAI(base_url=place.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def plain(place: Place) -> Iterator[httpx.Client]:
    """A client that shows bytes."""
    with httpx.Client(base_url=place.url, timeout=20) as client:
        yield client
