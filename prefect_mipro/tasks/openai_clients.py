"""The official OpenAI clients of a connection, created on first use and closed with it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from pydantic import SecretStr

from prefect_mipro.client.environment import is_loopback
from prefect_mipro.transport import CLIENT_IDLE_SECONDS

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

OfficialT = TypeVar("OfficialT", "OpenAI", "AsyncOpenAI")

# OpenAI's clients need a key even if the backend does not.
NO_KEY: Final = "no-key"

_MISSING = (
    "rollout.openai() needs the package openai: pip install openai. rollout.complete(messages) and "
    "any other client at rollout.base_url do without it"
)


class Listener(Protocol):
    """A rollout that reads the headers of its answers."""

    base_url: str

    def heard(self, headers: Mapping[str, str]) -> None:
        """Read the headers of one answer."""
        ...


class _Clients(Generic[OfficialT]):
    """One client for all rollouts of a connection: each new one would open its own connections."""

    def __init__(
        self, backend_url: str, api_key: SecretStr | None, *, timeout_seconds: float
    ) -> None:
        self._backend_url = backend_url
        self._settings: dict[str, Any] = {
            "base_url": backend_url,
            "api_key": usable(api_key),
            "timeout": timeout_seconds,
        }
        self._lock = threading.Lock()
        self._client: OfficialT | None = None
        self._listeners: WeakValueDictionary[str, Listener] = WeakValueDictionary()

    def at(self, rollout: Listener, headers: dict[str, str]) -> OfficialT:
        """The client for one rollout. Raises ModuleNotFoundError if the package is missing."""
        with self._lock:
            if self._client is None:
                try:
                    self._client = self._new()
                except ModuleNotFoundError as error:
                    raise ModuleNotFoundError(_MISSING, name=error.name) from None
            self._listeners[rollout.base_url] = rollout
        return self._client.with_options(base_url=rollout.base_url, default_headers=headers)

    def _new(self) -> OfficialT:
        raise NotImplementedError

    def _hear(self, response: Any) -> None:
        with self._lock:
            listener = self._listeners.get(_base_url(response))
        if listener is not None:
            listener.heard(response.headers)


class OpenAIClient(_Clients["OpenAI"]):
    """The official client of a connection for threads."""

    def close(self) -> None:
        """Close its connections."""
        if self._client is not None:
            self._client.close()

    def _new(self) -> OpenAI:
        from openai import DefaultHttpxClient, OpenAI

        hooks = {"response": [self._hear]}
        http = DefaultHttpxClient(**_http_settings(self._backend_url), event_hooks=hooks)
        return OpenAI(**self._settings, http_client=http)


class AsyncOpenAIClient(_Clients["AsyncOpenAI"]):
    """The official client of a connection for one event loop."""

    async def aclose(self) -> None:
        """Close its connections."""
        if self._client is not None:
            await self._client.close()

    def _new(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        hooks = {"response": [self._ahear]}
        http = DefaultAsyncHttpxClient(**_http_settings(self._backend_url), event_hooks=hooks)
        return AsyncOpenAI(**self._settings, http_client=http)

    async def _ahear(self, response: Any) -> None:
        self._hear(response)


def _base_url(response: Any) -> str:
    return str(response.request.url).partition("?")[0].removesuffix("/chat/completions")


def usable(api_key: SecretStr | None) -> str:
    """The key as OpenAI's clients accept it; they refuse an empty one."""
    return (api_key.get_secret_value() if api_key else "") or NO_KEY


def _http_settings(backend_url: str) -> dict[str, Any]:
    from openai import DEFAULT_CONNECTION_LIMITS as LIMITS

    return {
        # A proxy of the environment cannot reach this machine's own loopback interface.
        "trust_env": not is_loopback(backend_url),
        # OpenAI's default would take the prompt to whatever host an answer names.
        "follow_redirects": False,
        # In the class of the HTTP library that the installed openai is built on.
        "limits": type(LIMITS)(
            max_connections=LIMITS.max_connections,
            max_keepalive_connections=LIMITS.max_keepalive_connections,
            keepalive_expiry=CLIENT_IDLE_SECONDS,
        ),
    }
