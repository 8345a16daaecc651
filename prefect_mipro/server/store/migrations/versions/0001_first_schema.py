"""The first schema: that of `schema.py`, as long as no release has it.

Until then a change of the tables changes the revision, too, so that databases with the earlier
tables are refused. The first migration after a release writes the released tables out here.
"""

from __future__ import annotations

from alembic import op

from prefect_mipro.server.store.schema import metadata

revision = "v2"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind(), checkfirst=False)
