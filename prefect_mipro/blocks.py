"""The blocks: where the backend is and with which key, what a session optimizes, its champion."""

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


class PromptChampion(Block, ChampionVersion):
    """The promoted prompt of a session, for any flow: one line loads it, no backend is needed.

    It holds the present version and those before it, so that a bad one can be taken back. The flow
    `promote_champion` writes it.

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
        default=(), description="Candidates that a person did not want; they are not shown again."
    )

    @classmethod
    def first(cls, version: ChampionVersion) -> Self:
        """A block without history."""
        return cls.model_validate(dict(version))

    @property
    def version(self) -> ChampionVersion:
        """The present version, as a record."""
        return ChampionVersion.model_validate(
            {name: getattr(self, name) for name in ChampionVersion.model_fields}
        )

    def promote(self, version: ChampionVersion) -> Self:
        """The block with that version in front of the present one. Save it to make it so."""
        return self._with(version, (self.version, *self.previous)[:VERSIONS_KEPT])

    def roll_back(self, candidate_id: str | None = None) -> Self:
        """The block as it was: at the version before, or at that candidate's newest. Save it.

        Later versions are dropped; their artifacts stay. Raises Conflict where there is no such.
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
        """The block with a candidate noted as unwanted. Save it."""
        unwanted = dict.fromkeys((candidate_id, *self.declined))
        return self.model_copy(update={"declined": tuple(unwanted)[:DECLINED_KEPT]})

    def _with(self, version: ChampionVersion, previous: tuple[ChampionVersion, ...]) -> Self:
        return self.model_copy(update={**dict(version), "previous": previous})


def load(block: type[SavedBlock], name: str) -> SavedBlock:
    """The saved block of that name. Raises ValueError when there is none."""
    # Said aloud, because inside an event loop `load` would hand out a coroutine.
    return cast(SavedBlock, block.load(name, _sync=True))  # type: ignore[call-arg]


async def aload(block: type[SavedBlock], name: str) -> SavedBlock:
    """The same, without blocking the event loop."""
    return cast(SavedBlock, await block.aload(name))


_SOURCES = ("toml_text", "toml_path", "config")
