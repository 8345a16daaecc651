"""Options that several commands share, and what they lead to: an output, a client, a database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from prefect_mipro.cli.output import Output
from prefect_mipro.transport import DEFAULT_BACKEND_URL

if TYPE_CHECKING:
    from prefect_mipro.client.clients import Client

Session = Annotated[str, Parameter(help="The session's id.")]
Candidate = Annotated[str, Parameter(help="The candidate's number or id.")]
# A text may begin with a dash.
Text = Annotated[str, Parameter(allow_leading_hyphen=True)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Sure = Annotated[Flag, Parameter(name="--yes", help="Do not ask, for scripts.")]

# Below the options of the command itself.
_COMMON = Group("Common options", sort_key=2)


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The form of the answer."""

    as_json: Annotated[Flag, Parameter(name="--json", help="Print one JSON document.")] = False

    @property
    def output(self) -> Output:
        """Standard output in this form."""
        return Output(as_json=self.as_json)


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class AddressOptions(AnswerOptions):
    """A backend and the key to it."""

    backend_url: Annotated[
        str | None,
        Parameter(help=f"Environment: MIPRO_BACKEND_URL (default: {DEFAULT_BACKEND_URL})."),
    ] = None
    api_key: Annotated[
        str | None,
        Parameter(
            help="Environment: MIPRO_API_KEY, which is safer: any user of this machine can read a "
            "command line."
        ),
    ] = field(default=None, repr=False)


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class BackendOptions(AddressOptions):
    """A backend, which may be the embedded one."""

    embedded: Annotated[
        Flag,
        Parameter(
            help="Start the embedded backend for this command; it has the sessions of flows that "
            "were given no backend."
        ),
    ] = False

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the backend. Raises KeyMissing, InputInvalid or BackendFailed."""
        from prefect_mipro.client import environment
        from prefect_mipro.client.clients import Client, backend_root

        if self.embedded:
            from prefect_mipro.embedded import EmbeddedBackend

            with EmbeddedBackend() as running, Client(running.url, running.api_key) as client:
                yield client
            return
        url = backend_root(self.backend_url or environment.backend_url())
        with Client(url, self.api_key or environment.api_key(url)) as client:
            yield client


@Parameter(name="*", group=_COMMON)
@dataclass(frozen=True, kw_only=True)
class DatabaseOptions(AnswerOptions):
    """The server's database, named as for `serve`."""

    database_url: Annotated[
        str | None,
        Parameter(
            help="The server's database. Environment: MIPRO_SERVER_DATABASE_URL, which is safer "
            "for a password (default: sqlite:///mipro.db)."
        ),
    ] = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """The URL with its driver; it may hold a password."""
        from prefect_mipro.server.settings import (
            DEFAULT_DATABASE_URL,
            environment_variable,
            with_driver,
        )

        of_environment = os.environ.get(environment_variable("database_url"), "").strip()
        return with_driver(self.database_url or of_environment or DEFAULT_DATABASE_URL)
