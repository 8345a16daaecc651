"""The server's settings: command-line options and environment variables out of one class."""

from __future__ import annotations

import argparse
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from yarl import URL

from prefect_mipro.config import TraceContent
from prefect_mipro.server.providers import CallerKey, HeaderKey, HttpUrl, Provider
from prefect_mipro.server.upstream.addresses import AllowedHost, environment_proxy
from prefect_mipro.server.upstream.interface import DEFAULT
from prefect_mipro.transport import DEFAULT_HOST, DEFAULT_PORT

ENVIRONMENT_PREFIX = "MIPRO_SERVER_"
DEFAULT_DATABASE_URL = "sqlite:///mipro.db"
DESCRIPTION = """\
Serve online prompt optimization: the session API, and the chat-completions proxy through
which programs are optimized."""
EXAMPLES = """\
examples:
  prefect-mipro serve
      the embedded model only, open to programs on this machine, state in ./mipro.db
  prefect-mipro serve --upstream-url http://127.0.0.1:11434/v1
      a model server of your own (Ollama, vLLM, llama.cpp) behind the proxy
  MIPRO_SERVER_UPSTREAM_API_KEY=… prefect-mipro serve --upstream-url https://api.openai.com/v1
      a hosted model; a key belongs into the environment, where no process list shows it
  MIPRO_SERVER_API_KEYS=… prefect-mipro serve --host 0.0.0.0 --public-url http://mipro.lan:8765
      open to other machines, which must send one of the keys
"""


def _comma_list(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [word for word in (part.strip() for part in value.split(",")) if word]


def _json_object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def _allowed_hosts(value: Any) -> Any:
    words = _comma_list(value)
    if not isinstance(words, list):
        return value
    return [AllowedHost.parse(word) if isinstance(word, str) else word for word in words]


AllowedHosts = Annotated[tuple[AllowedHost, ...], NoDecode, BeforeValidator(_allowed_hosts)]


def with_driver(value: str) -> str:
    """The database URL with the driver that is used here, where it names none."""
    scheme, separator, rest = value.partition("://")
    return f"{_DRIVERS.get(scheme, scheme)}{separator}{rest}"


HIDDEN: Mapping[str, Any] = {"hidden": True}
_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgresql": "postgresql+asyncpg",
    "postgres": "postgresql+asyncpg",
}
_METAVARS = {"max_calls_in_flight": "CALLS", "providers": "JSON"}
# The others may hold a key or a password, which no message repeats.
_SHOWN = frozenset(
    {
        "host",
        "port",
        "allowed_hosts",
        "allowed_inference_hosts",
        "max_body_bytes",
        "max_calls_in_flight",
        "upstream_connect_timeout_seconds",
        "upstream_first_byte_timeout_seconds",
        "upstream_silence_timeout_seconds",
        "upstream_total_timeout_seconds",
        "log_format",
        "log_level",
        "public_metrics",
        "longest_stop_seconds",
        "trace_content",
        "trace_retention_days",
        "rollout_retention_days",
    }
)


class ServerSettings(BaseSettings):
    """All that the server can be told. Fields stand in the order in which `--help` shows them."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        validate_default=True,
    )

    host: str = Field(
        default=DEFAULT_HOST,
        description="Address to listen on. Other than this machine's own it needs keys: "
        "--api-keys, or those of prefect-mipro keys create.",
    )
    port: int = Field(
        default=DEFAULT_PORT,
        ge=0,
        le=65_535,
        description="Port to listen on; 0 takes a free one. "
        "The first line on standard output is the URL.",
    )
    public_url: HttpUrl | None = Field(
        default=None,
        description="URL under which callers reach this server; session URLs begin with it.",
    )
    allowed_hosts: AllowedHosts = Field(
        default=(),
        description="More host names that callers may use for this server, separated by commas: "
        "mipro.lan, *.example.com, mipro.lan:8765. Names of this machine and of --public-url "
        "always work. A server that other machines reach takes any name unless this is set.",
    )
    database_url: Annotated[str, AfterValidator(with_driver)] = Field(
        default=DEFAULT_DATABASE_URL,
        repr=False,  # it may hold a password
        description="Where all state is kept: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
        " It is created and upgraded as needed.",
    )
    api_keys: Annotated[tuple[HeaderKey, ...], NoDecode, BeforeValidator(_comma_list)] = Field(
        default=(),
        description="Keys that callers may use, separated by commas, of the workspace 'default'. "
        "Without any, and none of prefect-mipro keys create, every program on this machine "
        "may call.",
    )
    upstream_url: HttpUrl | None = Field(
        default=None,
        description="OpenAI-compatible base URL of the provider 'default', "
        "which also answers for names that are not among --providers.",
    )
    upstream_api_key: HeaderKey | None = Field(default=None, description="Key for --upstream-url.")
    providers: Annotated[dict[str, Provider], NoDecode, BeforeValidator(_json_object)] = Field(
        default={},
        description="More providers as JSON, by the name that session configs use: "
        '{"groq": {"base_url": "https://api.groq.com/openai/v1", "api_key_env": "GROQ_API_KEY"}}. '
        "Each may also have caller_key (optional, required), headers, timeouts, repeats, "
        "max_concurrent_calls, max_waiting_calls, calls_per_minute and fallback: see "
        "docs/upstreams.md.",
    )
    allowed_inference_hosts: AllowedHosts = Field(
        default=(),
        description="Hosts that the inference_url of a session config may lead to, separated by "
        "commas: api.example.com, *.example.com (public addresses only), localhost:8000. "
        "They get no key of this server, only the caller's own.",
    )
    upstream_use_environment_proxy: bool = Field(
        default=False,
        description="Reach upstreams through the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY "
        "name. This machine's own addresses are always reached without.",
    )
    upstream_connect_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Longest wait for an upstream connection."
    )
    upstream_first_byte_timeout_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Longest wait for the first byte of an upstream's answer, connecting included.",
    )
    upstream_silence_timeout_seconds: float = Field(
        default=120.0, gt=0, description="Longest wait between two bytes of an upstream's answer."
    )
    upstream_total_timeout_seconds: float = Field(
        default=600.0, gt=0, description="Longest time for one whole upstream answer."
    )
    trace_content: TraceContent = Field(
        default=TraceContent.FULL,
        description="What is kept of the texts of calls and rewards: full or off. Sessions may ask "
        "for less, never for more. Numbers are kept in any case.",
    )
    trace_retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Empty the texts of calls and rewards after this many days; numbers stay.",
    )
    rollout_retention_days: float | None = Field(
        default=None,
        gt=0,
        description="Remove rollouts, their calls and rewards, and events after this many days; "
        "all that was counted and learned stays.",
    )
    max_calls_in_flight: int = Field(
        default=1_000,
        ge=1,
        description="Model calls that may be under way at once; one more is refused with 429.",
    )
    max_body_bytes: int = Field(
        default=10_000_000, ge=1_000, description="Largest request that is read."
    )
    longest_stop_seconds: int = Field(
        default=8,
        ge=1,
        description="How long calls under way may go on after a signal to stop; "
        "new ones are not taken.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="What is logged to standard error: debug, info, warning, error."
    )
    log_format: Literal["text", "json"] = Field(
        default="text",
        description="How log lines look: text (one line of words and key=value) or json "
        "(one object per line).",
    )
    public_metrics: bool = Field(
        default=False,
        description="Show /metrics to callers without a key, too; "
        "what it shows are counts, never prompts or ids.",
    )
    stop_with_stdin: bool = Field(
        default=False,
        json_schema_extra=dict(HIDDEN),
        description="Stop at the end of standard input, so that a child ends with its parent.",
    )

    @property
    def own_url(self) -> str:
        """Where this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def every_provider(self) -> Mapping[str, Provider]:
        """Those of `providers`, and the default one that `upstream_url` makes."""
        if self.upstream_url is None:
            return self.providers
        default = Provider(base_url=self.upstream_url, api_key=self.upstream_api_key)
        return {**self.providers, DEFAULT: default}

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _providers_fit_together(self) -> Self:
        if self.upstream_url is not None and DEFAULT in self.providers:
            raise ValueError(
                "--upstream-url and --providers both define the provider 'default'; keep one"
            )
        known = self.every_provider
        for name, provider in self.providers.items():
            target = provider.fallback.provider if provider.fallback else None
            if target is None or target == name:
                continue
            if target not in known:
                raise ValueError(
                    f"--providers, {name}: its fallback names the provider {target!r}, which is "
                    f"not among them ({', '.join(sorted(known))})"
                )
            if known[target].caller_key is CallerKey.REQUIRED:
                raise ValueError(
                    f"--providers, {name}: it cannot fall back to {target!r}, which takes callers' "
                    "own keys only; those go to no second provider"
                )
        return self

    @model_validator(mode="after")
    def _proxies_are_understood(self) -> Self:
        if self.upstream_use_environment_proxy:
            for provider in self.every_provider.values():
                environment_proxy(URL(provider.base_url))
        return self

    @classmethod
    def read(cls, arguments: Sequence[str] | None = None, *, program: str | None = None) -> Self:
        """Settings from options, else the environment, else defaults.

        Exits with code 2 and one line per problem on standard error, or with 0 after `--help`.
        """
        parser = cls.parser(program)
        given = vars(parser.parse_args(arguments))
        if misspelt := _misspelt_variables(cls.model_fields):
            parser.refuse(misspelt)
        try:
            return cls(**given)
        except ValidationError as error:
            parser.refuse([_sentence(problem) for problem in error.errors()])

    @classmethod
    def parser(cls, program: str | None = None) -> SettingsParser:
        """An option for each field, named like it; an option that is absent sets nothing."""
        parser = SettingsParser(
            prog=program,
            description=DESCRIPTION,
            epilog=EXAMPLES,
            formatter_class=_HelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
        )
        for name, field in cls.model_fields.items():
            _add_option(parser, name, field)
        return parser


class SettingsParser(argparse.ArgumentParser):
    """An argument parser that also refuses what it did not find by itself."""

    def refuse(self, problems: Sequence[str]) -> NoReturn:
        """Exit with code 2, one line per problem."""
        self.exit(2, "".join(f"{self.prog}: {problem}\n" for problem in problems))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Each option on a line of its own, its text below."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=6, width=96)


def _add_option(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    hidden = bool(field.json_schema_extra)
    text = argparse.SUPPRESS if hidden else _help_text(name, field)
    if field.annotation is bool:
        parser.add_argument(flag, dest=name, nargs="?", const="true", metavar="true", help=text)
    else:
        metavar = _METAVARS.get(name) or name.rsplit("_", 1)[-1].upper()
        parser.add_argument(flag, dest=name, metavar=metavar, help=text)


def _help_text(name: str, field: FieldInfo) -> str:
    default = field.get_default()
    shown = "none" if default in (None, (), {}) else default
    text = f"{field.description} [default: {shown}; environment: {environment_variable(name)}]"
    return text.replace("%", "%%")


def environment_variable(name: str) -> str:
    """The variable that sets the field."""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def _misspelt_variables(names: Iterable[str]) -> list[str]:
    """Set variables that are no setting and look like one: they would silently do nothing."""
    known = {environment_variable(name) for name in names}
    return [
        f"{variable} is no setting; did you mean {ENVIRONMENT_PREFIX}{meant}? (see --help)"
        for variable in sorted(os.environ)
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in known
        for meant in difflib.get_close_matches(_own_part(variable), map(_own_part, known), 1, 0.8)
    ]


def _own_part(variable: str) -> str:
    return variable.removeprefix(ENVIRONMENT_PREFIX)


def _sentence(problem: Mapping[str, Any]) -> str:
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name, *inner = (str(step) for step in problem["loc"])
    value = f" is {problem['input']!r}" if name in _SHOWN and not inner else ""
    place = "".join(f", {step}" for step in inner)
    return f"--{name.replace('_', '-')} ({environment_variable(name)}){place}{value}: {message}"
