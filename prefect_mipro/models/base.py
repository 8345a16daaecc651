"""What every record shares: frozen, tolerant of unknown fields, JSON without NaN."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from pydantic_core import PydanticCustomError

# Ids stand unescaped in paths, so nothing that a path or a query would read may be in them.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:~-]*$"
ID_CHARACTERS = 200

SessionId = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS)]

# Characters of a reason, or of a name, that a person gives for the record.
LONGEST_REASON = 500

# Many clients append it to any base URL, so it is ambiguous as a rollout id in a proxy's path.
VERSION_STEP = "v1"


def _no_version(rollout_id: str) -> str:
    if rollout_id == VERSION_STEP:
        raise PydanticCustomError("rollout_id", "a rollout cannot be called v1")
    return rollout_id


RolloutId = Annotated[
    str,
    StringConstraints(pattern=ID_PATTERN, max_length=ID_CHARACTERS),
    AfterValidator(_no_version),
]

JsonObject = dict[str, Any]


class Record(BaseModel):
    """An immutable record. Unknown fields are ignored: peers may be newer than we are."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", ser_json_inf_nan="null", protected_namespaces=()
    )
