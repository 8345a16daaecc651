"""JSON as databases and exports hold it."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson


def json_text(value: Any) -> str:
    """JSON for a column; numbers that JSON lacks are null.

    What no database encodes is escaped, and so is all that is not ASCII along with it.
    """
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # lone surrogates, numbers beyond 64 bits
        pass
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
