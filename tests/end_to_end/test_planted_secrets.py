"""A flow, its backend and its models' server know secrets, and nothing that they leave tells one.

Planted are a key of the settings and one of the database, the provider's key, a caller's own, the
database's password and the secrets of the proxy URLs. Calls succeed and fail, and the models'
server quotes each key that it refuses.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_LOCAL_STORAGE_PATH,
    PREFECT_RESULTS_DEFAULT_SERIALIZER,
    PREFECT_RESULTS_PERSIST_BY_DEFAULT,
    temporary_settings,
)
from pydantic import SecretStr
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import create_async_engine

from prefect_mipro import optimize_prompt
from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig
from prefect_mipro.errors import MiproError
from prefect_mipro.server.store.schema import metadata
from prefect_mipro.tasks import LiveRollout
from tests.end_to_end.conftest import CONFIG, BackendProcess, messages_of
from tests.fake_upstream import Body, FakeUpstream, Scripted, better_with_demonstrations
from tests.postgres import Postgres
from tests.prefect_contents import stored_by_prefect, told_by_prefect

pytestmark = pytest.mark.usefixtures("prefect_server")

SERVER_KEY = "planted-server-key"
PROVIDER_KEY = "planted-provider-key"
CALLERS_KEY = "planted-callers-key"
PASSWORD = "planted-database-password"
SESSION = "planted-session"
SESSIONS = "/api/v1/online/sessions"
# What must be kept so that it can be compared or shown to its owner.
BY_DESIGN = {"mipro_sessions": {"proxy_secret"}, "mipro_keys": {"digest"}}
ROWS = [{"id": str(n), "text": f"request {n} #label{n % 3}"} for n in range(8)]


class Quoting(FakeUpstream):
    """A models' server that quotes the key of a call in the next so many answers."""

    quotes = 0
    status = 401

    def _reply_to(self, body: Body) -> Scripted:
        if not self.quotes:
            return super()._reply_to(body)
        self.quotes -= 1
        said = {"error": {"message": f"unknown key: {self.headers[-1]['authorization']}"}}
        return Scripted(status=self.status, body=json.dumps(said).encode())


PLACES = (
    "log",
    "refused start",
    "database",
    "answers of errors",
    "metrics",
    "export",
    "output of the flow",
    "results",
    "Prefect's API",
    "Prefect's database",
)


def classify(rollout: LiveRollout, row: dict[str, str]) -> str:
    """A program that brings its own key for the model on some of its calls."""
    own = {"x-provider-key": CALLERS_KEY} if int(row["id"]) % 2 else {}
    answer = httpx.post(
        f"{rollout.base_url}/chat/completions",
        json={"model": "small", "messages": messages_of(row["text"])},
        headers={**rollout.headers, **own},
        trust_env=False,
    )
    if answer.is_error:
        raise RuntimeError(f"the model refuses: {answer.text}")
    return str(answer.json()["choices"][0]["message"]["content"])


def exact(row: dict[str, str], answer: str) -> float:
    return float(row["text"].endswith(answer))


def optimize(credentials: str, **changes: Any) -> None:
    optimize_prompt(
        "planted-config",
        ROWS,
        classify,
        exact,
        rollouts=4,
        credentials=credentials,
        max_workers=1,  # so that the models' server quotes the key of the very call
        **changes,
    )


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    """Those that are known before, and those that are made on the way."""
    return {
        "key of the settings": SERVER_KEY,
        "provider's key": PROVIDER_KEY,
        "caller's key": CALLERS_KEY,
        "password": PASSWORD,
    }


@pytest.fixture(scope="module")
def places(
    postgres: Postgres,
    prefect_server: None,
    secrets: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Mapping[str, str]:
    """All that was written anywhere, by place."""
    folder = tmp_path_factory.mktemp("planted")
    with postgres.new_database() as database_url, Quoting(better_with_demonstrations) as model:
        environment = {
            "MIPRO_SERVER_DATABASE_URL": database_url.replace("mipro@", f"mipro:{PASSWORD}@"),
            "MIPRO_SERVER_API_KEYS": SERVER_KEY,
            "MIPRO_SERVER_UPSTREAM_URL": model.url,
            "MIPRO_SERVER_UPSTREAM_API_KEY": PROVIDER_KEY,
            "MIPRO_SERVER_LOG_LEVEL": "debug",
        }
        with BackendProcess(**environment) as backend:
            made = command(environment, "keys", "create", "planted")
            secrets["key of the database"] = made.stdout.strip()
            run_flows(backend.url, secrets, model, folder)
            seen = told_by_callers(backend.url, secrets, model)
            seen["log"] = backend.log
        wrong = environment["MIPRO_SERVER_DATABASE_URL"].replace("/new_", "/none_")
        refused = command(
            environment | {"MIPRO_SERVER_DATABASE_URL": wrong}, "serve", "--port", "0"
        )
        seen["refused start"] = refused.stderr
        seen["database"] = asyncio.run(dump(database_url))
    seen["output of the flow"] = (folder / "flow.log").read_text()
    seen["results"] = "\n".join(
        file.read_text(errors="replace") for file in (folder / "results").iterdir()
    )
    with get_client(sync_client=True) as client:
        seen["Prefect's API"] = "\n".join(told_by_prefect(client).values())
    seen["Prefect's database"] = stored_by_prefect().decode(errors="replace")
    return seen


def run_flows(url: str, secrets: Mapping[str, str], model: Quoting, folder: Path) -> None:
    """Runs that succeed, that fail with the model, and that are refused."""
    for name, key in {
        "planted-credentials": secrets["key of the settings"],
        "planted-stored": secrets["key of the database"],
        "planted-unknown": f"{PROVIDER_KEY}-which-is-none-of-the-server",
    }.items():
        MiproCredentials(backend_url=url, api_key=SecretStr(key)).save(name, overwrite=True)
    MiproSessionConfig(config=CONFIG, session_id=SESSION).save("planted-config", overwrite=True)
    written = logging.FileHandler(folder / "flow.log")
    logging.getLogger("prefect").addHandler(written)
    try:
        with temporary_settings(
            {
                PREFECT_LOCAL_STORAGE_PATH: folder / "results",
                PREFECT_RESULTS_PERSIST_BY_DEFAULT: True,
                PREFECT_RESULTS_DEFAULT_SERIALIZER: "json",
            }
        ):
            model.quotes = 2
            optimize("planted-stored")
            model.quotes = 2
            with suppress(RuntimeError, MiproError):
                optimize("planted-credentials", on_error="raise")
            model.quotes = 0
            with suppress(MiproError):
                optimize("planted-unknown")
    finally:
        logging.getLogger("prefect").removeHandler(written)
        written.close()


def told_by_callers(url: str, secrets: dict[str, str], model: Quoting) -> dict[str, str]:
    """What the server answers to calls of all kinds; it learns the secrets of the proxy URLs."""
    bearer = {"Authorization": f"Bearer {SERVER_KEY}"}
    with httpx.Client(base_url=url, headers=bearer, trust_env=False, timeout=30) as http:
        session = f"{SESSIONS}/{SESSION}"
        before = urlsplit(http.get(session).json()["online_url"]).path
        after = urlsplit(http.post(f"{session}/proxy-token").json()["online_url"]).path
        secrets["earlier secret of the URL"] = before.rpartition(".")[2]
        secrets["secret of the URL"] = after.rpartition(".")[2]
        chat = {"model": "small", "messages": messages_of("a request #a")}
        own = {"x-provider-key": CALLERS_KEY}
        refused: list[httpx.Response] = []
        for number, model.status in enumerate((200, 400, 401, 403)):
            for brought in ({}, own):
                model.quotes = 1
                path = f"{after}/r{number}/chat/completions"
                refused.append(http.post(path, json=chat, headers=brought))
        refused += [
            http.post(f"{before}/r/chat/completions", json=chat),
            http.post(f"{after}/r/nowhere", json=chat),
            http.get(f"{after}/r/chat/completions"),
            http.post(
                f"{after}/r/chat/completions",
                content=b"{",
                headers={"Content-Type": "application/json"},
            ),
            http.post(
                f"{after}/r/chat/completions", json=chat, headers={"x-provider-key": "two words"}
            ),
            http.get(session, headers={"Authorization": f"Bearer {SERVER_KEY}x"}),
            http.get(session, headers={"Authorization": SERVER_KEY, "X-API-Key": PROVIDER_KEY}),
            http.post(f"{session}/reward", json={"reward_info": {}}),
            http.post(SESSIONS, json={"config_body": {}, "config_path": "/etc/passwd"}),
        ]
        assert all(answer.is_error for answer in refused)
        return {
            "answers of errors": "\n".join(f"{answer.headers}{answer.text}" for answer in refused),
            "metrics": http.get("/metrics").text,
            "export": http.get(f"{session}/export").text,
        }


def command(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`prefect-mipro` as an operator runs it."""
    return subprocess.run(
        [sys.executable, "-m", "prefect_mipro.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


async def dump(database_url: str) -> str:
    """All rows of all tables but for the columns that hold a secret by design."""
    engine = create_async_engine(database_url, poolclass=NullPool)
    rows: list[str] = []
    async with engine.connect() as connection:
        for table in metadata.tables:
            found = await connection.execute(text(f"SELECT * FROM {table}"))
            for row in found.mappings():
                kept = {k: v for k, v in row.items() if k not in BY_DESIGN.get(table, ())}
                rows.append(f"{table} {kept}")
    await engine.dispose()
    return "\n".join(rows)


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_told_by(
    places: Mapping[str, str], secrets: Mapping[str, str], place: str
) -> None:
    assert len(secrets) == 7
    assert not [name for name, secret in secrets.items() if secret in places[place]]


def test_there_was_something_to_be_told(places: Mapping[str, str]) -> None:
    assert set(places) == set(PLACES)
    for place in ("database", "export", "results", "Prefect's API", "Prefect's database"):
        assert SESSION in places[place], place
    assert "server started" in places["log"]
    assert "none_" in places["refused start"]
    for place in ("answers of errors", "database", "Prefect's API"):
        assert "unknown key: Bearer ***" in places[place], place
    assert "the model refuses" in places["output of the flow"]
    assert "KeyRejected" in places["output of the flow"]
    assert "mipro_proxy_calls_total" in places["metrics"]
