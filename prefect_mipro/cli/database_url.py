"""The database that a command works on: named by option or environment as for `serve`."""

from __future__ import annotations

import os

from prefect_mipro.server.settings import DEFAULT_DATABASE_URL, environment_variable, with_driver


def database_url(option: str | None = None) -> str:
    """The URL with its driver; it may hold a password."""
    of_environment = os.environ.get(environment_variable("database_url"), "").strip()
    return with_driver(option or of_environment or DEFAULT_DATABASE_URL)
