"""Prefect blocks: a backend's address and key, a session's config, and a session's champion."""

from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from pydantic import ConfigDict, Field, HttpUrl, SecretStr, model_validator

from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.config import MiproConfig, override, parse_toml, read_toml
from prefect_mipro.errors import Conflict
from prefect_mipro.models.base import JsonObject, SessionId
from prefect_mipro.models.champions import ChampionVersion

SavedBlock = TypeVar("SavedBlock", bound=Block)

VERSIONS_KEPT = 20
DECLINED_KEPT = 100

# Prefect demands a square picture behind an http(s) address; these are its own, pinned.
_LOGOS = (
    "https://raw.githubusercontent.com/PrefectHQ/prefect/"
    "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
)
_DOCUMENTATION = HttpUrl("https://pypi.org/project/prefect-mipro/")


class MiproCredentials(CredentialsBlock):
    """The address of a MIPRO backend, and the key it accepts.

    Example:
        Load the credentials and read the state of a session:
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
        """Open a client for the backend.

        Returns:
            A new client. Close it, or use it in a `with` block.

        Raises:
            InputInvalid: The URL, the key or the timeout cannot be used.
        """
        return Client(self.backend_url, self.api_key, timeout_seconds=self.timeout_seconds)

    def get_async_client(self) -> AsyncClient:
        """Open an asynchronous client for the backend.

        Returns:
            A new client. Close it, or use it in an `async with` block.

        Raises:
            InputInvalid: The URL, the key or the timeout cannot be used.
        """
        return AsyncClient(self.backend_url, self.api_key, timeout_seconds=self.timeout_seconds)


class MiproSessionConfig(Block):
    """A session's config: what to optimize and how, and the session's stable id.

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
        default_factory=dict, description="Facts to store with the session."
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
        """Read and check the config.

        Returns:
            The config with the overrides applied.

        Raises:
            ConfigInvalid: The config or an override cannot be used.
            ConfigNotFound: There is no file at `toml_path`.
        """
        body = override(self._source(), self.overrides)
        MiproConfig.parse(body)
        return body

    def _source(self) -> dict[str, Any]:
        if self.toml_text:
            return parse_toml(self.toml_text, source="toml_text")
        if self.toml_path:
            return read_toml(self.toml_path)
        return self.config or {}


class PromptChampion(Block, ChampionVersion):
    """The promoted prompt of a session. Loading it needs no backend.

    The block holds the current version and the versions before it, so that a bad one can be rolled
    back. The flow `promote_champion` writes it.

    Example:
        Load the champion and make the messages of a call:
        ```python
        from prefect_mipro import PromptChampion

        champion = PromptChampion.load("BLOCK_NAME")
        messages = champion.render(request="Wake me at seven.")
        ```
    """

    # A block's fields change when it is saved and loaded; the versions inside never do.
    model_config = ConfigDict(frozen=False, extra="ignore", protected_namespaces=())

    _block_type_name: ClassVar[str | None] = "Prompt Champion"
    _block_type_slug: ClassVar[str | None] = "prompt-champion"
    _logo_url: ClassVar[HttpUrl | None] = HttpUrl(f"{_LOGOS}/json.png")
    _documentation_url: ClassVar[HttpUrl | None] = _DOCUMENTATION

    previous: tuple[ChampionVersion, ...] = Field(
        default=(), description="The versions before this one, the newest first."
    )
    declined: tuple[str, ...] = Field(
        default=(), description="Candidates that a person declined; they are not proposed again."
    )

    @classmethod
    def first(cls, version: ChampionVersion) -> Self:
        """Make a block without history.

        Args:
            version: The prompt to put to use.

        Returns:
            The block, not yet saved.
        """
        return cls.model_validate(dict(version))

    @property
    def version(self) -> ChampionVersion:
        """The current version, as a record."""
        return ChampionVersion.model_validate(
            {name: getattr(self, name) for name in ChampionVersion.model_fields}
        )

    def promote(self, version: ChampionVersion) -> Self:
        """Put a version in front of the current one.

        Args:
            version: The prompt to put to use.

        Returns:
            The changed block. Save it to put the prompt to use.
        """
        return self._with(version, (self.version, *self.previous)[:VERSIONS_KEPT])

    def roll_back(self, candidate_id: str | None = None) -> Self:
        """Go back to an earlier version, and drop the later ones.

        Args:
            candidate_id: The candidate to go back to, at its newest version; by default the version
                before the current one.

        Returns:
            The changed block. Save it to put the earlier prompt to use. Artifacts of dropped
            versions stay.

        Raises:
            Conflict: There is no such earlier version.
        """
        for age, version in enumerate(self.previous):
            if candidate_id in (None, version.candidate_id):
                return self._with(version, self.previous[age + 1 :])
        known = ", ".join(version.candidate_id for version in self.previous) or "none"
        raise Conflict(
            f"the champion of {self.session_id} cannot go back to "
            f"{candidate_id or 'an earlier version'}; earlier versions: {known}"
        )

    def decline(self, candidate_id: str) -> Self:
        """Note that a candidate is not wanted.

        Args:
            candidate_id: The candidate, which is not proposed again.

        Returns:
            The changed block. Save it to keep the note.
        """
        unwanted = dict.fromkeys((candidate_id, *self.declined))
        return self.model_copy(update={"declined": tuple(unwanted)[:DECLINED_KEPT]})

    def _with(self, version: ChampionVersion, previous: tuple[ChampionVersion, ...]) -> Self:
        return self.model_copy(update={**dict(version), "previous": previous})


def load(block: type[SavedBlock], name: str) -> SavedBlock:
    """The saved block of that name. Raises ValueError if there is none."""
    # Explicitly synchronous: on an event loop `load` would return a coroutine.
    return cast(SavedBlock, block.load(name, _sync=True))  # type: ignore[call-arg]


async def aload(block: type[SavedBlock], name: str) -> SavedBlock:
    """The saved block of that name, loaded without blocking the event loop."""
    return cast(SavedBlock, await block.aload(name))


_SOURCES = ("toml_text", "toml_path", "config")
