"""Runs the migrations on the connection, and in the transaction, of who asked for them."""

from __future__ import annotations

from alembic import context

from prefect_mipro.server.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
