"""A real backend process on loopback, with a fake model's server behind it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.fake_upstream import FakeUpstream, better_with_demonstrations
from tests.forked_server import forked

KEY = "key-for-tests-0123456789"


class BackendProcess:
    """A server on a free port; its first line of stdout is its URL."""

    def __init__(self, *options: str, **environment: str) -> None:
        self._options = ("--port", "0", *options)
        self._environment = {**os.environ, **environment}
        self.url = ""

    def __enter__(self) -> Self:
        self._log = tempfile.NamedTemporaryFile("r")
        reader, writer = Pipe(duplex=False)
        with reader, writer:
            self._process = forked(
                self._options, self._environment, stdout=writer, stderr=self._log.name
            )
            writer.close()
            self._stdout = os.fdopen(os.dup(reader.fileno()))
        self.url = self._stdout.readline().strip()
        try:
            assert httpx.get(f"{self.url}/health", timeout=30).status_code == 200
        except httpx.HTTPError as error:
            error.add_note(self.log)
            self.__exit__(None, None, None)
            raise
        return self

    @property
    def log(self) -> str:
        """What it has logged so far."""
        self._log.seek(0)
        return self._log.read()

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.join()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.join(20)
        self._process.close()
        self._stdout.close()
        self._log.close()


@dataclass(frozen=True)
class Setting:
    """A backend process and the model's server behind it."""

    url: str
    upstream: FakeUpstream


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    database = tmp_path_factory.mktemp("backend") / "mipro.db"
    with (
        FakeUpstream(better_with_demonstrations) as upstream,
        BackendProcess(
            "--database-url",
            f"sqlite+aiosqlite:///{database}",
            "--upstream-url",
            upstream.url,
            MIPRO_SERVER_API_KEYS=KEY,
        ) as backend,
    ):
        yield Setting(backend.url, upstream)


CONFIG: dict[str, Any] = {
    "prompt_learning": {
        "algorithm": "mipro",
        "task_app_id": "banking77",
        "task_app_url": "http://unused",
        "initial_prompt": {
            "id": "pattern",
            "messages": [
                {"role": "system", "order": 0, "pattern": "You classify banking queries."},
                {"role": "user", "order": 1, "pattern": "Query: {query}"},
            ],
            "wildcards": {"query": "REQUIRED"},
        },
        "policy": {"model": "gpt-4.1-nano", "provider": "openai", "temperature": 0.0},
        "mipro": {
            "mode": "online",
            "bootstrap_train_seeds": [0, 1, 2],
            "online_pool": list(range(100)),
            "val_seeds": [300, 301],
            "online_proposer_mode": "inline",
            "online_proposer_min_rollouts": 20,
        },
    }
}


def messages_of(query: str) -> list[dict[str, str]]:
    """What the user's program sends: the baseline prompt with its own data."""
    return [
        {"role": "system", "content": "You classify banking queries."},
        {"role": "user", "content": f"Query: {query}"},
    ]


@pytest.fixture
def toml_file(tmp_path: Path) -> Path:
    """The same config as a file."""
    path = tmp_path / "session.toml"
    path.write_text(TOML, encoding="utf-8")
    return path


TOML = """
[prompt_learning]
algorithm = "mipro"
[prompt_learning.initial_prompt]
messages = [
  { role = "system", order = 0, pattern = "You classify banking queries." },
  { role = "user", order = 1, pattern = "Query: {query}" },
]
[prompt_learning.policy]
model = "gpt-4.1-nano"
provider = "openai"
[prompt_learning.mipro]
mode = "online"
"""
