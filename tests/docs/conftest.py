"""Where the code of the pages runs: a real backend, a fake model behind it, a folder of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefect_mipro.embedded import EmbeddedBackend
from tests.embedded_backend import backend_in
from tests.fake_upstream import FakeUpstream

SESSION = """
[prompt_learning]
algorithm = "mipro"
[prompt_learning.initial_prompt]
messages = [
  { role = "system", order = 0, pattern = "Name the team that answers this ticket." },
  { role = "user", order = 1, pattern = "{text}" },
]
[prompt_learning.policy]
model = "gpt-4.1-nano"
temperature = 0.0
"""


@dataclass(frozen=True)
class Place:
    """The folder in which a page's code runs, and the backend it reaches."""

    folder: Path
    backend_url: str


def say_a_team(body: dict[str, Any]) -> str:
    """A model that knows two teams by a word, and answers with more words than it was asked for."""
    text = str(body["messages"][-1]["content"]).lower()
    team = "billing" if "money" in text or "invoice" in text else "delivery"
    return f"This is for {team}."


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBackend]:
    folder = tmp_path_factory.mktemp("backend")
    with (
        FakeUpstream(say_a_team) as upstream,
        backend_in(
            folder,
            upstream,
            MIPRO_SERVER_PROVIDERS=json.dumps({"embedded": {"base_url": upstream.url}}),
        ) as running,
    ):
        yield running


@pytest.fixture
def place(
    backend: EmbeddedBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """What the pages take for granted: `session.toml`, and where the backend is."""
    (tmp_path / "session.toml").write_text(SESSION, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MIPRO_BACKEND_URL", backend.url)
    monkeypatch.setenv("MIPRO_API_KEY", backend.api_key.get_secret_value())
    yield Place(tmp_path, backend.url)
    # Another page may have a file of the same name.
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
