"""The database schema of TensorZero, out of the installed wheel.

Its gateway refuses a database that its migrations have not prepared, and the command that runs
them is not part of the wheel. The wheel's library holds them all the same, each as its description,
the SHA-384 of its SQL (as sqlx, which runs them, records it) and the SQL, one after the other. So a
text whose digest stands before it is a migration, whole and as its authors wrote it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

# Each list of migrations is found by a table that an early one of it creates.
LANDMARKS = {
    "tensorzero-auth": b"CREATE TABLE tensorzero_auth_api_key",
    "tensorzero-core": b"CREATE TABLE resource_bucket",
    "tensorzero-stored-config": b"CREATE TABLE IF NOT EXISTS tensorzero.function_configs",
}
BOOKKEEPING = {
    "tensorzero-auth": "tensorzero_auth__sqlx_migrations",
    "tensorzero-core": "_sqlx_migrations",
    "tensorzero-stored-config": "tensorzero_stored_config__sqlx_migrations",
}
# Queues of background jobs: no call uses them, and the wheel does not hold what makes them.
QUEUES = """
CREATE SCHEMA durable;
CREATE FUNCTION durable.create_queue(name text) RETURNS void LANGUAGE sql AS '';
"""
DIGEST_BYTES = 48
LONGEST_DESCRIPTION = 120
LONGEST_PREAMBLE = 400
LONGEST_MIGRATION = 50_000
_MISSING = re.compile(r"Applied `([\w-]+)` migrations do not match[^\[{]*[\[{]([\d, ]+)")


class SchemaNotFound(Exception):
    """The library is not built as expected."""


def schema(library: Path) -> str:
    """All migrations, in an order in which they can be applied, and empty books of them."""
    content = library.read_bytes()
    parts = [QUEUES]
    for name, landmark in LANDMARKS.items():
        migrations = list(_migrations(content, landmark))
        if not migrations:
            raise SchemaNotFound(f"no migrations of {name} in {library}")
        parts += migrations
        parts.append(f"CREATE TABLE {BOOKKEEPING[name]} (version bigint, success boolean);")
    return "\n".join(parts)


def bookkeeping(complaint: str) -> str | None:
    """SQL that books the migrations that the gateway misses; `None` if that is not its complaint.

    Their numbers are known to the gateway alone.
    """
    found = _MISSING.search(complaint)
    if found is None:
        return None
    rows = ", ".join(f"({version}, true)" for version in found[2].split(", "))
    return f"INSERT INTO {BOOKKEEPING[found[1]]} VALUES {rows};"


def _migrations(content: bytes, landmark: bytes) -> Iterator[str]:
    at = content.find(landmark)
    starts = range(at, at - LONGEST_PREAMBLE, -1)
    while (span := _first_whole(content, starts)) is not None:
        begin, end = span
        yield content[begin:end].decode()
        starts = range(end + DIGEST_BYTES, end + DIGEST_BYTES + LONGEST_DESCRIPTION)


def _first_whole(content: bytes, starts: range) -> tuple[int, int] | None:
    """The first of these places where a text begins whose digest stands before it, and its end."""
    for begin in starts:
        if begin < DIGEST_BYTES:
            continue
        expected = content[begin - DIGEST_BYTES : begin]
        digest, done = hashlib.sha384(), begin
        for end in _ends(content, begin):
            digest.update(content[done:end])
            done = end
            if digest.copy().digest() == expected:
                return begin, end
    return None


def _ends(content: bytes, begin: int) -> Iterator[int]:
    """Where an SQL text that begins there may end: after a semicolon or a line."""
    for end in range(begin + 1, min(begin + LONGEST_MIGRATION, len(content)) + 1):
        if content[end - 1] in b";\n":
            yield end
