"""What callers of a session give, checked before anything is sent: records, and the config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Required, TypedDict, TypeVar

from pydantic import ValidationError

from prefect_mipro.config import MiproConfig, override, parse_toml, read_toml
from prefect_mipro.errors import ConfigInvalid, InputInvalid
from prefect_mipro.models.base import JsonObject, Record
from prefect_mipro.models.chat import ChatMessage

RecordT = TypeVar("RecordT", bound=Record)


class TraceArguments(TypedDict, total=False):
    """What is told of a call that a leased rollout made itself.

    `messages` are those that the model got, in the form of OpenAI's API. The answer is `output`,
    its text, or `response`, a chat completion; a call that failed has an `error`. `usage` has the
    counts of tokens, under OpenAI's names or those of Bedrock, Vertex or Anthropic. The same
    `trace_id` again is the same trace. `unapplied_reason` says why the candidate's prompt was not
    used, if it was not.
    """

    messages: Required[Sequence[ChatMessage]]
    output: str | None
    response: JsonObject | None
    error: str | None
    usage: Mapping[str, Any] | None
    latency_seconds: float | None
    first_byte_seconds: float | None
    model: str | None
    trace_id: str | None
    unapplied_reason: str


def record_of(kind: type[RecordT], **values: Any) -> RecordT:
    """The record of these values. Raises InputInvalid."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InputInvalid("; ".join(problems)) from None


def config_source(
    config: JsonObject | str | Path | None,
    config_name: str | None,
    config_path: str | Path | None,
    config_body: JsonObject | None,
    overrides: JsonObject,
) -> JsonObject:
    """The fields of the create call that say which config, checked as far as it is known here."""
    explicit = {"config_name": config_name, "config_path": config_path, "config_body": config_body}
    if config is not None and any(explicit.values()):
        raise ConfigInvalid("Provide config or config_name/config_path/config_body, not both")
    given = [name for name, value in explicit.items() if value is not None]
    if config is None and len(given) != 1:
        raise ConfigInvalid(
            "Provide exactly one config source: config, config_name, config_path, or config_body "
            f"(given: {', '.join(given) or 'none'})"
        )
    if config is None and config_name is not None:
        override({}, overrides)
        return {"config_name": config_name}
    if config is None and config_path is not None:
        config = Path(config_path)
    body = _config_table(config if config is not None else config_body)
    MiproConfig.parse(body, overrides)
    return {"config_body": body}


def _config_table(source: JsonObject | str | Path | None) -> JsonObject:
    if isinstance(source, Mapping):
        return dict(source)
    if isinstance(source, str) and "\n" in source:
        return parse_toml(source)
    if isinstance(source, str | Path):
        return read_toml(source)
    raise ConfigInvalid(
        f"the config is of type {type(source).__name__}; give a dict, TOML text or a path"
    )
