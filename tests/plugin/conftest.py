"""The real parts: one embedded backend, one fake model server behind it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.tasks import SessionHandle, create_session
from tests.embedded_backend import backend_in
from tests.fake_upstream import FakeUpstream, better_with_demonstrations

SYSTEM = "Classify the request."

_numbers = count(1)


def config(**mipro: Any) -> dict[str, Any]:
    """A session config for `classify`."""
    return {
        "prompt_learning": {
            "algorithm": "mipro",
            "initial_prompt": {
                "messages": [
                    {"role": "system", "order": 0, "pattern": SYSTEM},
                    {"role": "user", "order": 1, "pattern": "{request}"},
                ]
            },
            "policy": {"model": "small", "temperature": 0.0},
            "mipro": mipro,
        }
    }


def new_id(name: str = "bot") -> str:
    """A session id that no other test has."""
    return f"{name}-{next(_numbers)}"


def artifacts(keys: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The newest artifact of each key. `Artifact.get` sends nulls that newer FastAPIs refuse."""
    with get_client(sync_client=True) as client:
        answer = client.request(
            "POST", "/artifacts/latest/filter", json={"artifacts": {"key": {"any_": list(keys)}}}
        )
    return {found["key"]: found for found in answer.json()}


@pytest.fixture(scope="session")
def model() -> Iterator[FakeUpstream]:
    """A model's server whose answers get better with demonstrations."""
    with FakeUpstream(better_with_demonstrations) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def backend(
    model: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedBackend]:
    """A backend process in front of the model."""
    folder = tmp_path_factory.mktemp("backend")
    with backend_in(folder, model) as running:
        yield running


@pytest.fixture
def session(backend: EmbeddedBackend) -> SessionHandle:
    """A new session."""
    return create_session.fn(config(), session_id=new_id(), backend_url=backend.url)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set on the machine decides no test."""
    for name in ("MIPRO_API_KEY", "SYNTH_API_KEY", "MIPRO_BACKEND_URL", "MIPRO_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
