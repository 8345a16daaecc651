"""Whether the server is up, and whether it would answer calls: asked without a key."""

from __future__ import annotations

import itertools
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from prefect_mipro.errors import NotReady
from prefect_mipro.server.app import create_app
from prefect_mipro.server.providers import Provider
from prefect_mipro.server.services.readiness import Readiness
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.upstream.openai import OpenAIUpstream
from prefect_mipro.server.upstream.registry import Upstreams
from tests.server.live import LiveServer
from tests.server.routes.conftest import Caller
from tests.server.scripted_upstream import ScriptedUpstream


@contextmanager
def server(folder: Path, **settings: Any) -> Iterator[httpx.Client]:
    """A server with a key, and a caller without."""
    told = ServerSettings(
        database_url=f"sqlite:///{folder}/mipro.db", api_keys=(SecretStr("key"),), **settings
    )
    with (
        LiveServer(create_app(told)) as live,
        httpx.Client(base_url=live.url, timeout=20) as http,
    ):
        yield http


def closed_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def test_both_are_answered_without_a_key(caller: Caller) -> None:
    assert caller.program.get("/health").json()["status"] == "ok"
    answer = caller.program.get("/ready")
    parts = {"database": "ok", "upstream default": "ok"}
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", "parts": parts})


def test_a_models_server_that_is_away_is_named_and_the_reason_is_told(tmp_path: Path) -> None:
    with (
        ScriptedUpstream() as upstream,
        server(
            tmp_path,
            upstream_url=upstream.url,
            providers={"away": Provider(base_url=f"http://127.0.0.1:{closed_port()}/hidden")},
        ) as http,
    ):
        answer = http.get("/ready")
        assert http.get("/health").status_code == 200
    told = answer.json()
    assert (answer.status_code, told["error"]) == (503, "NotReady")
    assert "upstream away: Connection refused" in told["message"]
    assert told["detail"]["parts"]["upstream default"] == "ok"
    assert answer.headers["retry-after"] == "5"
    assert "hidden" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_a_fallback_that_is_there_is_enough(tmp_path: Path) -> None:
    with (
        ScriptedUpstream() as upstream,
        server(
            tmp_path,
            providers={
                "there": Provider(base_url=upstream.url),
                "away": Provider.model_validate(
                    {
                        "base_url": f"http://127.0.0.1:{closed_port()}/v1",
                        "fallback": {"provider": "there", "model": "m"},
                    }
                ),
            },
        ) as http,
    ):
        assert http.get("/ready").status_code == 200


def test_without_a_provider_the_embedded_model_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIPRO_MODEL_PATH", str(tmp_path / "hidden.gguf"))
    with server(tmp_path) as http:
        answer = http.get("/ready")
    assert answer.status_code == 503
    assert "upstream embedded: the embedded model or its runtime is not installed" in answer.text
    assert "hidden" not in answer.text


async def test_what_was_found_serves_for_a_while_and_is_then_looked_for_again(
    tmp_path: Path,
) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path}/mipro.db")
    seconds = itertools.count(0, 3)
    now = [next(seconds)]
    with ScriptedUpstream() as upstream:
        upstreams = Upstreams({"default": OpenAIUpstream(upstream.url)})
        readiness = Readiness(store, upstreams, timer=lambda: now[0])
        assert (await readiness.check()).parts["upstream default"] == "ok"
    now[0] = next(seconds)
    assert (await readiness.check()).parts["upstream default"] == "ok"
    now[0] = next(seconds)
    await store.close()
    told = await failure_of(readiness)
    assert "database: it takes no writes" in told
    assert "upstream default: Connection refused" in told
    await upstreams.close()


async def failure_of(readiness: Readiness) -> str:
    with pytest.raises(NotReady) as failed:
        await readiness.check()
    return failed.value.message


async def test_a_database_that_only_answers_reads_is_not_ready_until_it_takes_writes(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mipro.db"
    store = await open_store(f"sqlite+aiosqlite:///{file}?timeout=0.01")
    readiness = Readiness(store, Upstreams({}), kept_seconds=0)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "database: it takes no writes" in await failure_of(readiness)
    other.execute("ROLLBACK")
    other.close()
    assert (await readiness.check()).parts["database"] == "ok"
    await store.close()


async def test_what_does_not_answer_in_time_is_not_waited_for(tmp_path: Path) -> None:
    store = await open_store(f"sqlite+aiosqlite:///{tmp_path}/mipro.db")
    # An address that is set aside for documentation: nothing answers there.
    upstreams = Upstreams({"default": OpenAIUpstream("http://192.0.2.1/v1")})
    told = await failure_of(Readiness(store, upstreams, longest_seconds=0.05))
    assert "upstream default: " in told
    await upstreams.close()
    await store.close()
