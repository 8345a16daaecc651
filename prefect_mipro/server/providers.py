"""The settings of one provider of models: where it is, its keys, limits and fallback."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator


def _http_url(value: str) -> str:
    """An absolute http(s) URL without slashes at its end."""
    malformed = "not an http(s) URL; write it like http://127.0.0.1:11434/v1"
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError(malformed) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(malformed)
    if "@" in parts.netloc:
        raise ValueError("holds a user name, and URLs are shown; give the key on its own")
    return value.rstrip("/")


def _header_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a key may hold printable ASCII characters only, and no spaces")
    return key


HttpUrl = Annotated[str, AfterValidator(_http_url)]
HeaderKey = Annotated[SecretStr, AfterValidator(_header_key)]


class CallerKey(StrEnum):
    """Whether a call may or must bring a key of the caller's own."""

    OPTIONAL = "optional"
    REQUIRED = "required"


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ProviderTimeouts(_Told):
    """Those of one provider; unset ones are the server's."""

    connect_seconds: float | None = Field(default=None, gt=0)
    first_byte_seconds: float | None = Field(default=None, gt=0)
    silence_seconds: float | None = Field(default=None, gt=0)
    total_seconds: float | None = Field(default=None, gt=0)

    @property
    def told(self) -> Mapping[str, float]:
        """The ones that are set."""
        return self.model_dump(exclude_none=True)


class FallbackModel(_Told):
    """The model to ask when the provider's own one has failed; unset, of the same provider."""

    model: str
    provider: str | None = None


class Provider(_Told):
    """One entry of `providers`: where its models are and which key they ask for.

    `api_key_env` names an environment variable, whose value becomes the key.
    """

    base_url: HttpUrl
    api_key: HeaderKey | None = None
    api_key_env: str | None = None
    caller_key: CallerKey = CallerKey.OPTIONAL
    headers: dict[str, str] = Field(default_factory=dict, repr=False)  # some are keys
    timeouts: ProviderTimeouts = ProviderTimeouts()
    repeats: int = Field(default=2, ge=0, le=10)
    max_concurrent_calls: int | None = Field(default=None, ge=1)
    max_waiting_calls: int = Field(default=100, ge=0)
    calls_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    fallback: FallbackModel | None = None

    @model_validator(mode="before")
    @classmethod
    def _key_from_environment(cls, value: Any) -> Any:
        name = value.get("api_key_env") if isinstance(value, dict) else None
        if not name:
            return value
        if value.get("api_key"):
            raise ValueError("has both api_key and api_key_env; keep one of them")
        key = os.environ.get(str(name))
        if not key:
            raise ValueError(f"takes its key from the environment variable {name}, which is unset")
        return value | {"api_key": key}
