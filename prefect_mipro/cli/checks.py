"""What is checked of an installation: what was found, and what to do about it."""

from __future__ import annotations

import asyncio
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx

from prefect_mipro import __version__
from prefect_mipro.cli.options import DatabaseOptions
from prefect_mipro.client import environment
from prefect_mipro.client.clients import Client
from prefect_mipro.client.environment import URL_VARIABLE
from prefect_mipro.embedded import EmbeddedBackend, default_database_url
from prefect_mipro.errors import KeyRejected, MiproError, StoreFailed
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.chat import ChatMessage
from prefect_mipro.models.sessions import CreateSession, SessionState, SessionStatus
from prefect_mipro.server.store.files import exposed, sqlite_file

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

LOWEST_PYTHON = (3, 11)
LOWEST_PREFECT = (3, 8, 1)
FIRST_UNKNOWN_PREFECT = (4,)
FIRST_PREFECT_WITH_NEW_SQLALCHEMY = (3, 9, 1)
PREFECT = "prefect>=3.8.1,<4"
MODEL_TIMEOUT_SECONDS = 120.0
LONGEST_ANSWER_TOKENS = 8

_SERVER_PARTS = ("aiohttp", "alembic", "fastapi", "numpy", "sqlalchemy", "uvicorn")
_SERVER_EXTRA = "pip install 'prefect-mipro[server]'"
_EMBEDDED_EXTRA = "pip install 'prefect-mipro[embedded]'"
_QUESTION: list[ChatMessage] = [
    {"role": "system", "content": "Answer with one word."},
    {"role": "user", "content": "Are you there?"},
]


class Verdict(StrEnum):
    """What to make of a check. A note breaks nothing, or nothing that is used here."""

    OK = "ok"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True)
class Check:
    """What was found of one thing, and what to do if it is not well."""

    name: str
    verdict: Verdict
    found: str
    way_out: str = ""


def every_check(backend_url: str | None, api_key: str | None) -> Iterator[Check]:
    """All of them, in the order in which one thing needs another."""
    yield of_python(sys.version_info[:3])
    yield from of_prefect()
    yield from of_databases()
    url = backend_url or environment.named_backend_url()
    if url is None:
        yield from of_embedded(is_needed=True)
    else:
        yield from of_backend(url, api_key)
        yield from of_embedded(is_needed=False)


def of_python(found: Sequence[int]) -> Check:
    """Whether this Python is new enough."""
    shown = ".".join(map(str, found))
    if tuple(found) >= LOWEST_PYTHON:
        return Check("Python", Verdict.OK, f"{shown}, prefect-mipro {__version__}")
    lowest = ".".join(map(str, LOWEST_PYTHON))
    return Check(
        "Python", Verdict.BROKEN, shown, f"make an environment with Python {lowest} or newer"
    )


def of_prefect() -> Iterator[Check]:
    """Prefect, its API, and the blocks in it."""
    try:
        found = version("prefect")
    except PackageNotFoundError:
        yield Check(
            "Prefect", Verdict.NOTE, "not installed: no flows here", f"pip install '{PREFECT}'"
        )
        return
    if not LOWEST_PREFECT <= _release(found) < FIRST_UNKNOWN_PREFECT:
        yield Check("Prefect", Verdict.BROKEN, found, f"pip install '{PREFECT}'")
        return
    yield Check("Prefect", Verdict.OK, found)
    yield from of_schedules(found, version("sqlalchemy"))
    yield from _prefect_api()


def of_schedules(prefect: str, sqlalchemy: str) -> Iterator[Check]:
    """A server of Prefect's that plans no run, if this environment's is one: see its log."""
    if _release(prefect) < FIRST_PREFECT_WITH_NEW_SQLALCHEMY and _release(sqlalchemy) >= (2, 1):
        yield Check(
            "schedules",
            Verdict.NOTE,
            f"Prefect's server {prefect} plans no scheduled run with SQLAlchemy {sqlalchemy}",
            "where it runs: pip install 'prefect>=3.9.1', or 'sqlalchemy<2.1'",
        )


def _prefect_api() -> Iterator[Check]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        yield Check(
            "Prefect API",
            Verdict.NOTE,
            "none is set, so each run starts a temporary server",
            "prefect server start, then: "
            "prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
        return
    with get_client(sync_client=True, httpx_settings={"timeout": 10.0}) as client:
        failure = client.api_healthcheck()
        if failure is not None:
            yield Check(
                "Prefect API",
                Verdict.BROKEN,
                f"{url} does not answer: {str(failure) or type(failure).__name__}",
                "prefect server start, or set PREFECT_API_URL to the one that runs",
            )
            return
        try:
            yield _same_release(url, client.api_version(), client.client_version())
            yield of_blocks(client, block_slugs())
        except httpx.HTTPStatusError as refusal:
            yield Check(
                "Prefect API",
                Verdict.BROKEN,
                f"{url} refuses with {refusal.response.status_code}",
                "prefect cloud login, or set PREFECT_API_KEY or PREFECT_API_AUTH_STRING",
            )


def of_blocks(client: SyncPrefectClient, slugs: Sequence[str]) -> Check:
    """Whether the API knows the block types."""
    missing = [slug for slug in slugs if not _is_registered(client, slug)]
    if not missing:
        return Check("blocks", Verdict.OK, f"registered: {', '.join(slugs)}")
    return Check(
        "blocks",
        Verdict.NOTE,
        f"not registered: {', '.join(missing)}",
        "prefect block register -m prefect_mipro",
    )


def _same_release(url: str, served: str, ours: str) -> Check:
    if _release(served)[:2] == _release(ours)[:2]:
        return Check("Prefect API", Verdict.OK, f"{url}, {served}")
    return Check(
        "Prefect API",
        Verdict.NOTE,
        f"{url} is {served}, this client {ours}",
        "bring both to one minor release; an older server may refuse what a newer client sends",
    )


def block_slugs() -> list[str]:
    """The types of the package's blocks."""
    from prefect.blocks.core import Block

    from prefect_mipro import blocks

    found = (value for value in vars(blocks).values() if isinstance(value, type))
    return sorted(
        block.get_block_type_slug()
        for block in found
        if issubclass(block, Block) and block.__module__ == blocks.__name__
    )


def _is_registered(client: SyncPrefectClient, slug: str) -> bool:
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_block_type_by_slug(slug)
    except ObjectNotFound:
        return False
    return True


def of_databases() -> Iterator[Check]:
    """Whether this release can open the local databases, and other users may read them."""
    try:
        server_url = DatabaseOptions().url
    except ModuleNotFoundError:  # the server is not installed, which another check says
        return
    named = map(sqlite_file, (server_url, default_database_url()))
    for file in dict.fromkeys(file for file in named if file is not None and file.is_file()):
        # A server has only begun to make an empty one.
        problem = asyncio.run(_schema_problem(file)) if file.stat().st_size else None
        if problem:
            found, _, way_out = problem.partition("; ")
            yield Check("database", Verdict.BROKEN, found, way_out)
            continue
        readable = list(exposed(file))
        if not readable:
            yield Check("database", Verdict.OK, f"{file}, private")
            continue
        modes = ", ".join(f"{each.path} {each.mode:03o}" for each in readable)
        paths = shlex.join(str(each.path) for each in readable)
        yield Check(
            "database",
            Verdict.NOTE,
            f"other users of this machine may read it: {modes}",
            f"chmod 600 {paths}",
        )


async def _schema_problem(file: Path) -> str | None:
    """Why this release cannot open a database."""
    from prefect_mipro.server.store.engine import SQLITE, inspected, schema_of

    try:
        async with inspected(f"{SQLITE}:///{file}") as database:
            await database.read(schema_of)
    except StoreFailed as error:
        return error.message
    return None


def of_backend(url: str, api_key: str | None) -> Iterator[Check]:
    """The backend, its key, and the model behind it."""
    try:
        key = api_key or environment.api_key(url)
    except KeyRejected as error:
        yield Check("key", Verdict.BROKEN, error.message, "set MIPRO_API_KEY")
        return
    # At once: who asks what is wrong does not want to wait for it to pass.
    with Client(url, key, timeout_seconds=15.0, sleep=lambda _: None) as client:
        try:
            health = client.health()
        except MiproError as error:
            yield Check(
                "backend",
                Verdict.BROKEN,
                f"{url}: {error.message}",
                f"start it (prefect-mipro serve), or name another with {URL_VARIABLE}",
            )
            return
        yield Check("backend", Verdict.OK, f"{client.backend_url}, {_version_of(health)}")
        try:
            running = client.sessions(state=SessionState.RUNNING, limit=1)["items"]
        except KeyRejected as error:
            yield Check(
                "key", Verdict.BROKEN, error.message, "set MIPRO_API_KEY to one of its keys"
            )
            return
        except MiproError as error:
            yield Check("key", Verdict.BROKEN, error.message, "look into the backend's log")
            return
        yield Check("key", Verdict.OK, "accepted" if key else "none is asked for")
        if not running:
            yield Check(
                "model",
                Verdict.NOTE,
                "not asked: no session is running, and sessions say which model it is",
                "run a flow, then doctor again",
            )
            return
        yield of_model(client.session_status(running[0]["session_id"]))


def of_model(status: SessionStatus) -> Check:
    """Whether a session's model answers, reached as programs reach it. Nothing is learned of it."""
    try:
        answer = httpx.post(
            f"{status.online_url}/doctor-{uuid4().hex}/chat/completions",
            json={
                "model": "any",
                "messages": _QUESTION,
                "max_completion_tokens": LONGEST_ANSWER_TOKENS,
            },
            headers={"x-mipro-candidate-id": status.champion_candidate_id},
            timeout=MODEL_TIMEOUT_SECONDS,
            trust_env=not environment.is_loopback(status.online_url),
        )
    except httpx.HTTPError as failure:
        return Check(
            "model",
            Verdict.BROKEN,
            f"session {status.session_id}: its URL does not answer from here "
            f"({str(failure) or type(failure).__name__})",
            "start the server with --public-url, the address that programs reach it at",
        )
    if answer.is_success:
        seconds = answer.elapsed.total_seconds()
        model = _json(answer).get("model") or "the model"
        return Check(
            "model", Verdict.OK, f"{model} of session {status.session_id}: {seconds:.1f} s"
        )
    said = _json(answer).get("error")
    reason = said.get("message") if isinstance(said, Mapping) else None
    return Check(
        "model",
        Verdict.BROKEN,
        f"session {status.session_id}: {reason or f'answered with {answer.status_code}'}",
        "correct the server's --upstream-url, --providers or their keys",
    )


def of_embedded(*, is_needed: bool) -> Iterator[Check]:
    """The embedded backend and model; where they are needed, whether they really work."""
    lacking = Verdict.BROKEN if is_needed else Verdict.NOTE
    why = f"{URL_VARIABLE} is not set; " if is_needed else ""
    if missing := [part for part in _SERVER_PARTS if find_spec(part) is None]:
        yield Check(
            "embedded backend",
            lacking,
            f"{why}{', '.join(missing)} not installed",
            f"{_SERVER_EXTRA}, or set {URL_VARIABLE}" if is_needed else _SERVER_EXTRA,
        )
        return
    model = _embedded_model(lacking)
    if not is_needed or model.verdict is not Verdict.OK:
        yield Check("embedded backend", Verdict.OK, f"{why}installed")
        yield model
        return
    yield model
    yield _embedded_answer(why)


def _embedded_model(lacking: Verdict) -> Check:
    from prefect_mipro.server.upstream import model_file

    if find_spec("xllamacpp") is None:
        return Check("embedded model", lacking, "its runtime is not installed", _EMBEDDED_EXTRA)
    try:
        path = model_file.find()
        model_file.verify(path)
    except MiproError as error:
        found, _, way_out = error.message.partition("; run: ")
        return Check("embedded model", lacking, found, way_out or model_file.INSTALL)
    return Check("embedded model", Verdict.OK, str(path))


def _embedded_answer(why: str) -> Check:
    """Start it on a database of its own, and let its model say a word."""
    config: JsonObject = {
        "prompt_learning": {
            "algorithm": "mipro",
            "policy": {"provider": "embedded", "temperature": 0.0},
            "mipro": {"proposer": {"mode": "demonstrations_only"}},
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            with (
                EmbeddedBackend(
                    database_url=f"sqlite:///{Path(folder) / 'mipro.db'}",
                    log_path=Path(folder) / "server.log",
                ) as running,
                Client(running.url, running.api_key) as client,
            ):
                status = client.create_session(
                    CreateSession(session_id="doctor", config_body=config)
                )
                answered = of_model(status)
        except MiproError as error:
            found, _, log = error.message.partition("\n")
            return Check("embedded backend", Verdict.BROKEN, f"{why}{found}", log.strip())
    if answered.verdict is Verdict.OK:
        return Check(
            "embedded backend", Verdict.OK, f"{why}flows start this one, and its model answers"
        )
    return Check("embedded backend", answered.verdict, answered.found, answered.way_out)


def _release(text: str) -> tuple[int, ...]:
    """The numbers of a version, without what is said of pre-releases."""
    numbers: list[int] = []
    for part in text.split("+")[0].split(".")[:3]:
        digits = "".join(character for character in part if character.isdecimal())
        if not part[:1].isdecimal():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _version_of(health: Mapping[str, Any]) -> str:
    return f"version {health['version']}" if "version" in health else "healthy"


def _json(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
