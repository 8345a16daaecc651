"""The data of a session handle. It travels between tasks, and holds neither key nor connection."""

from __future__ import annotations

from functools import lru_cache

from prefect_mipro.client.clients import backend_root
from prefect_mipro.models.base import Record
from prefect_mipro.models.chat import InitialPrompt


class SessionAddress(Record):
    """A session's id and backend, as shown in Prefect and stored: no key, no secret URL.

    `credentials` is the name of a saved `MiproCredentials` block. Without one, the key comes from
    the embedded backend, else from `MIPRO_API_KEY` or `SYNTH_API_KEY` where the task runs.
    `prompt` is the prompt the session began with, if it has one.
    """

    session_id: str
    backend_url: str
    correlation_id: str | None = None
    credentials: str | None = None
    prompt: InitialPrompt | None = None

    def proxy_url(self, rollout_id: str) -> str:
        """The base URL of one rollout for any OpenAI client. Calls to it need the key."""
        return f"{_root(self.backend_url)}{self.proxy_path(rollout_id)}"

    def proxy_path(self, rollout_id: str) -> str:
        """The path of `proxy_url`, relative to the backend's root."""
        return f"/api/mipro/v1/{self.session_id}/{rollout_id}"


@lru_cache
def _root(backend_url: str) -> str:
    return backend_root(backend_url)
