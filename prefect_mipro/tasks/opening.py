"""Opening a session from a config block, a dict or a file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import ObjectNotFound

from prefect_mipro.blocks import MiproSessionConfig, load
from prefect_mipro.config import MiproConfig, override, read_toml
from prefect_mipro.errors import ConfigInvalid, ConfigNotFound, InputInvalid
from prefect_mipro.models.base import JsonObject
from prefect_mipro.tasks.session_handle import SessionHandle
from prefect_mipro.tasks.sessions import acreate_session, create_session
from prefect_mipro.tasks.twins import documented_like

ConfigSource = MiproSessionConfig | Mapping[str, Any] | str | Path


def open_session(
    config: ConfigSource,
    *,
    session_id: str | None = None,
    credentials: str | None = None,
    backend_url: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SessionHandle:
    """Create a session, or continue the one with the given id.

    In a flow or a task this is a run of the task `create_session`; elsewhere it needs no Prefect
    server.

    Args:
        config: The name of a saved `MiproSessionConfig` block, the block itself, a config as a
            dict, or the path of a TOML file.
        session_id: The session's id. By default the block's id, else the config's `system_id`,
            else a new id.
        credentials: The name of a saved `MiproCredentials` block; by default the one in the config
            block. Without any, the backend is `backend_url`, else `MIPRO_BACKEND_URL`.
        backend_url: The URL of a backend; its key, if it needs one, is in `MIPRO_API_KEY`.
        overrides: Values that replace those of the config, by dotted path.

    Returns:
        The session's handle, which the tasks take. It holds no key.

    Raises:
        ConfigInvalid: The config cannot be used.
        ConfigNotFound: There is no block or file of that name.
        InputInvalid: No backend is named, or the block's credentials are not saved.
        KeyMissing: The backend is on another machine, and no key for it is set.

    Example:
        ```python
        from prefect_mipro import open_session

        session = open_session("support-bot")
        ```
    """
    plan = session_plan(config, session_id=session_id, credentials=credentials, overrides=overrides)
    return plan.open(backend_url)


@documented_like(open_session)
async def aopen_session(
    config: ConfigSource,
    *,
    session_id: str | None = None,
    credentials: str | None = None,
    backend_url: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SessionHandle:
    plan = await asyncio.to_thread(
        session_plan,
        config,
        session_id=session_id,
        credentials=credentials,
        overrides=overrides,
    )
    create = acreate_session if _in_run() else acreate_session.fn
    return await create(plan.config, **plan.arguments(backend_url))


@dataclass(frozen=True)
class SessionPlan:
    """A session to be opened: the config with its overrides, and the arguments of its creation."""

    config: JsonObject
    settings: MiproConfig
    session_id: str | None = None
    credentials: str | None = None
    metadata: JsonObject | None = None
    agent_id: str | None = None

    def open(self, backend_url: str | None = None) -> SessionHandle:
        """Create the session, or continue it."""
        create = create_session if _in_run() else create_session.fn
        return create(self.config, **self.arguments(backend_url))

    def arguments(self, backend_url: str | None) -> dict[str, Any]:
        """The arguments of `create_session` besides the config."""
        return {
            "session_id": self.session_id,
            "credentials": self.credentials,
            "backend_url": backend_url,
            "metadata": self.metadata,
            "agent_id": self.agent_id,
        }


def session_plan(
    config: ConfigSource,
    *,
    session_id: str | None = None,
    credentials: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> SessionPlan:
    """Read and check the config. Raises ConfigInvalid or ConfigNotFound."""
    if isinstance(config, str) and not config.endswith(".toml"):
        config = _saved_config(config)
    block = config if isinstance(config, MiproSessionConfig) else None
    body = override(_body(config), overrides or {})
    return SessionPlan(
        config=body,
        settings=MiproConfig.parse(body),
        session_id=session_id or (block.session_id if block else None),
        credentials=credentials or (_credentials_name(block) if block else None),
        metadata=block.metadata if block else None,
        agent_id=block.agent_id if block else None,
    )


def _saved_config(name: str) -> MiproSessionConfig:
    try:
        return load(MiproSessionConfig, name)
    except ValueError as error:
        if not isinstance(error.__cause__, ObjectNotFound):
            raise
        raise ConfigNotFound(
            f"no MiproSessionConfig block is saved as {name!r:.80}; save one by that name, or give "
            "the path of a TOML file (it ends in .toml), or the config as a dict"
        ) from None


def _body(config: ConfigSource) -> JsonObject:
    match config:
        case MiproSessionConfig():
            return config.config_body()
        case Mapping():
            return dict(config)
        case str() | Path():
            return read_toml(config)
    raise ConfigInvalid(
        f"the config is of type {type(config).__name__}; give the name of a saved "
        "MiproSessionConfig block, the block, a dict, or the path of a TOML file"
    )


def _credentials_name(config: MiproSessionConfig) -> str | None:
    """The name under which the block's credentials are saved. Tasks carry it instead of the key."""
    if config.credentials is None:
        return None
    name = config.credentials._block_document_name
    if name is None:
        raise InputInvalid(
            "the credentials in the session config are not saved; save them as a block first, "
            'for example credentials.save("mipro"), because tasks carry the name and not the key'
        )
    return name


def _in_run() -> bool:
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None
