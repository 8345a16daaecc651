"""Ids and other names that callers give: what paths can carry, and what databases can index."""

from __future__ import annotations

import re

from prefect_mipro.errors import InputInvalid
from prefect_mipro.models.base import ID_CHARACTERS, ID_PATTERN, VERSION_STEP

_ID = re.compile(ID_PATTERN.rstrip("$"))
_SHOWN_CHARACTERS = 80


def is_identifier(value: str) -> bool:
    """Whether paths can carry it."""
    return len(value) <= ID_CHARACTERS and bool(_ID.fullmatch(value))


def identifier(name: str, value: str) -> str:
    """The id, if paths can carry it. Raises InputInvalid."""
    if not is_identifier(value):
        raise InputInvalid(
            f"{name} is {_shown(value)}; an id has at most {ID_CHARACTERS} characters out of "
            "A-Z a-z 0-9 _ . : ~ - and begins with a letter or digit"
        )
    return value


def is_rollout_id(value: str) -> bool:
    """Whether the path of a proxy can carry it as a rollout's id."""
    return is_identifier(value) and value != VERSION_STEP


def rollout_identifier(value: str) -> str:
    """The rollout id, if the path of a proxy can carry it. Raises InputInvalid."""
    if value == VERSION_STEP:
        raise InputInvalid(
            f"the rollout id is {value!r}, which clients append to base URLs; choose another"
        )
    return identifier("the rollout id", value)


def short_text(name: str, value: str) -> str:
    """A word of the caller's own, if it is printable and not too long. Raises InputInvalid."""
    if len(value) > ID_CHARACTERS or not value.isprintable():
        raise InputInvalid(
            f"{name} is {_shown(value)}; it may have {ID_CHARACTERS} printable characters"
        )
    return value


def _shown(value: str) -> str:
    text = repr(value[:_SHOWN_CHARACTERS])
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 1]}…"
