"""The blocks: where the backend is and with which key, and what a session optimizes."""

from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, SecretStr, model_validator

from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.config import MiproConfig, override, parse_toml, read_toml
from prefect_mipro.models.base import JsonObject, SessionId

SavedBlock = TypeVar("SavedBlock", bound=Block)

# Prefect demands a square picture behind an http(s) address; these are its own, pinned.
_LOGOS = (
    "https://raw.githubusercontent.com/PrefectHQ/prefect/"
    "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
)
_DOCUMENTATION = HttpUrl("https://pypi.org/project/prefect-mipro/")


class MiproCredentials(CredentialsBlock):
    """Where a MIPRO backend is reached, and the key it asks for.

    Example:
        Load the credentials and ask how a session stands:
        ```python
        from prefect_mipro import MiproCredentials

        credentials = MiproCredentials.load("BLOCK_NAME")
        with credentials.get_client() as client:
            print(client.session_status("support-bot").status)
        ```
    """

    _block_type_name: ClassVar[str | None] = "MIPRO Credentials"
    _block_type_slug: ClassVar[str | None] = "mipro-credentials"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl(f"{_LOGOS}/secret.png")
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    backend_url: str = Field(
        title="Backend URL",
        description="Address of the backend, for example https://mipro.example.com.",
    )
    api_key: SecretStr | None = Field(
        default=None,
        title="API key",
        description="Key that the backend accepts; none for a backend that asks for no key.",
    )
    timeout_seconds: float = Field(
        default=30.0, gt=0, description="Longest wait for an answer of the backend, in seconds."
    )

    # Clients are made per call and never kept: a block with an open client cannot be pickled.
    def get_client(self) -> Client:
        """A new client; close it, or use it in a `with` block."""
        return Client(self.backend_url, self.api_key, timeout_seconds=self.timeout_seconds)

    def get_async_client(self) -> AsyncClient:
        """A new asynchronous client; close it, or use it in an `async with` block."""
        return AsyncClient(self.backend_url, self.api_key, timeout_seconds=self.timeout_seconds)


class MiproSessionConfig(Block):
    """What a session optimizes and how: a config, overrides of it, and the session's stable id.

    Example:
        Run the optimization loop with a stored config:
        ```python
        from prefect_mipro import MiproSessionConfig, optimize_prompt

        config = MiproSessionConfig.load("BLOCK_NAME")
        summary = optimize_prompt(
            config=config, examples=rows, program=classify, reward=exact_match, rollouts=200
        )
        ```
    """

    _block_type_name: ClassVar[str | None] = "MIPRO Session Config"
    _block_type_slug: ClassVar[str | None] = "mipro-session-config"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl(f"{_LOGOS}/filesystem.png")
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    # Required: the API cannot tell a stored block from its reference when no field is.
    session_id: SessionId = Field(
        title="Session id",
        description="Id of the session; runs that use the same id continue the same session.",
    )
    toml_text: str | None = Field(
        default=None, title="TOML text", description="The config as TOML text."
    )
    toml_path: Path | None = Field(
        default=None,
        title="TOML path",
        description="Path of a TOML file with the config, on the machine where the flow runs.",
    )
    config: JsonObject | None = Field(default=None, description="The config as an object.")
    overrides: JsonObject = Field(
        default_factory=dict,
        description="Values that replace those of the config, by dotted path.",
    )
    metadata: JsonObject = Field(
        default_factory=dict, description="Free facts that are stored with the session."
    )
    agent_id: str | None = Field(
        default=None, description="Name of the agent whose prompt is optimized."
    )
    credentials: MiproCredentials | None = Field(
        default=None,
        description="Stored credentials of the backend; none for the embedded backend.",
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [name for name in _SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of {', '.join(_SOURCES)}; "
                f"given: {', '.join(given) or 'none of them'}"
            )
        return self

    def config_body(self) -> JsonObject:
        """The config after its overrides, checked. Raises ConfigInvalid or ConfigNotFound."""
        body = override(self._source(), self.overrides)
        MiproConfig.parse(body)
        return body

    def _source(self) -> dict[str, Any]:
        if self.toml_text:
            return parse_toml(self.toml_text, source="toml_text")
        if self.toml_path:
            return read_toml(self.toml_path)
        return self.config or {}


def load(block: type[SavedBlock], name: str) -> SavedBlock:
    """The saved block of that name. Raises ValueError when there is none."""
    # Said aloud, because inside an event loop `load` would hand out a coroutine.
    return cast(SavedBlock, block.load(name, _sync=True))  # type: ignore[call-arg]


async def aload(block: type[SavedBlock], name: str) -> SavedBlock:
    """The same, without blocking the event loop."""
    return cast(SavedBlock, await block.aload(name))


_SOURCES = ("toml_text", "toml_path", "config")
