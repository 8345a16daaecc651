"""What every record shares: frozen, tolerant of unknown fields, JSON without NaN."""

from __future__ import annotations

from typing import Annotated, Any

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
