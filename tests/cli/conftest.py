"""A backend process with a key, a model's server behind it, and the command beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_mipro.cli import main
from prefect_mipro.client.clients import Client
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionStatus
from tests.embedded_backend import backend_in
from tests.fake_upstream import FakeUpstream

SYSTEM = {"role": "system", "content": "You name the topic of a query."}
QUESTION = "where is my card?"
CONFIG: dict[str, Any] = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": SYSTEM["content"]},
                {"role": "user", "order": 1, "pattern": "{query}"},
            ],
            "wildcards": {"query": "REQUIRED"},
        },
        "policy": {"model": "the-policy-model"},
        "mipro": {"proposer": {"mode": "demonstrations_only"}},
    }
}

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed, as the one JSON document that it is."""
        return json.loads(self.out)

    @property
    def facts(self) -> dict[str, str]:
        """The first word or words of each line, before two spaces, and what follows them."""
        pairs = (line.partition("  ") for line in self.out.splitlines())
        return {name: fact.strip() for name, _, fact in pairs}


@dataclass(frozen=True)
class Command:
    """Runs the command in this process, as a user of one backend would."""

    capsys: pytest.CaptureFixture[str]
    client: Client
    key: str

    def __call__(self, *arguments: str) -> Result:
        code = main(arguments)
        captured = self.capsys.readouterr()
        return Result(code, captured.out, captured.err)

    def session(self, *, rollouts: int = 0) -> SessionStatus:
        """A new session; all but its last rollout are rewarded."""
        request = CreateSession(session_id=f"bot-{next(_numbers)}", config_body=CONFIG)
        status = self.client.create_session(request)
        for number in range(1, rollouts + 1):
            asked = {"model": "m", "messages": [SYSTEM, {"role": "user", "content": QUESTION}]}
            call = f"{status.online_url}/r{number}/chat/completions"
            assert httpx.post(call, json=asked, trust_env=False).is_success
            if number < rollouts:
                reward = RewardRequest(reward_info={"score": 1.0}, rollout_id=f"r{number}")
                self.client.reward(status.session_id, reward)
        return status

    def candidate(self, status: SessionStatus, instruction: str) -> str:
        """A further candidate's id."""
        added = self.client.add_candidate(status.session_id, instruction)
        return str(added["candidate_id"])


@pytest.fixture(scope="session")
def upstream() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def backend(
    upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedBackend]:
    folder = tmp_path_factory.mktemp("backend")
    with backend_in(folder, upstream) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is set on the machine decides no test."""
    for name in ("MIPRO_API_KEY", "SYNTH_API_KEY", "MIPRO_BACKEND_URL", "MIPRO_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def command(
    backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """The command, with backend and key in the environment."""
    key = backend.api_key.get_secret_value()
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    monkeypatch.setenv("MIPRO_API_KEY", key)
    with Client(backend.url, backend.api_key) as client:
        yield Command(capsys, client, key)
