"""What every record shares: frozen, tolerant of unknown fields, JSON without NaN."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints

# Ids stand unescaped in paths, so nothing that a path or a query would read may be in them.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:~-]*$"
ID_CHARACTERS = 200

SessionId = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]
RolloutId = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]

JsonObject = dict[str, Any]


class Record(BaseModel):
    """An immutable record. Unknown fields are ignored: peers may be newer than we are."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", ser_json_inf_nan="null", protected_namespaces=()
    )


class OpenEnum(StrEnum):
    """A closed set on our side of the wire; each set says what an unknown word becomes."""

    @classmethod
    def parse(cls, value: object, default: Self) -> Self:
        """The member for `value`, or `default` when it is absent or not one of the set."""
        known = cls._value2member_map_
        return cls(value) if isinstance(value, str) and value in known else default
