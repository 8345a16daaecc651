"""The embedded backend, with a model's server of ours behind it."""

from __future__ import annotations

from pathlib import Path

from prefect_mipro.embedded import EmbeddedBackend
from tests.fake_upstream import FakeUpstream


def backend_in(folder: Path, model: FakeUpstream, **environment: str) -> EmbeddedBackend:
    """One that has its database and its log in that folder, not started yet."""
    return EmbeddedBackend(
        database_url=f"sqlite:///{folder / 'mipro.db'}",
        log_path=folder / "server.log",
        environment={"MIPRO_SERVER_UPSTREAM_URL": model.url, **environment},
    )
