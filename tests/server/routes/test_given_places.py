"""Paths and URLs that callers give: none is opened or called but what the operator has allowed."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.server.routes.conftest import CONFIG, SESSIONS, Caller
from tests.server.scripted_upstream import ScriptedUpstream


class Files:
    """Which of the watched files this process, and so the server, has opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self._watched: set[str] = set()

    def watch(self, path: Path) -> None:
        self._watched.add(str(path))

    def note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]) in self._watched:
            self.opened.append(str(arguments[0]))


@pytest.fixture(scope="module")
def files() -> Files:
    files = Files()
    # It cannot be taken away again, and does nothing else.
    sys.addaudithook(files.note)
    return files


@pytest.mark.parametrize("name", ["config_path", "config_name", "config"])
@pytest.mark.parametrize("beside_a_config", [False, True])
def test_no_file_of_a_callers_choice_is_opened(
    caller: Caller, files: Files, tmp_path: Path, name: str, beside_a_config: bool
) -> None:
    path = tmp_path / "session.toml"
    path.write_text('[prompt_learning]\nalgorithm = "mipro"\n', encoding="utf-8")
    files.watch(path)
    for told in (str(path), path.as_uri()):
        body = {"session_id": "never", name: told}
        answer = caller.http.post(
            SESSIONS, json={**body, **({"config_body": CONFIG} if beside_a_config else {})}
        )
        assert answer.status_code == 422
    assert str(path) not in files.opened
    path.read_text(encoding="utf-8")
    assert str(path) in files.opened
    assert caller.http.get(f"{SESSIONS}/never").status_code == 404


def test_no_url_of_a_config_is_called_but_that_of_its_model(caller: Caller) -> None:
    with ScriptedUpstream() as elsewhere:
        config = {"prompt_learning": {**CONFIG["prompt_learning"], "task_app_url": elsewhere.url}}
        session = caller.session(config_body=config, metadata={"url": elsewhere.url})
        assert caller.chat(session, "r1", metadata={"url": elsewhere.url}).status_code == 200
        reward = {"reward_info": {"score": 1.0}, "rollout_id": "r1", "trace_ref": elsewhere.url}
        path = f"{SESSIONS}/{session['session_id']}"
        assert caller.http.post(f"{path}/reward", json=reward).status_code == 200
        assert caller.http.get(path).status_code == 200
        assert elsewhere.received == []


def test_an_inference_url_that_nobody_has_allowed_is_not_called(caller: Caller) -> None:
    policy = {"model": "m", "inference_url": "http://169.254.169.254/latest/meta-data"}
    config = {"prompt_learning": {**CONFIG["prompt_learning"], "policy": policy}}
    with socket.create_server(("127.0.0.1", 0)) as inside:
        inside.settimeout(0)
        for url in (policy["inference_url"], f"http://127.0.0.1:{inside.getsockname()[1]}/v1"):
            policy["inference_url"] = url
            answer = caller.http.post(SESSIONS, json={"session_id": "never", "config_body": config})
            assert answer.status_code == 422
            assert "--allowed-inference-hosts" in answer.json()["message"]
        with pytest.raises(BlockingIOError):
            inside.accept()
