"""Rows of data flows: their fields, and the values that are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# pandas' NA and NumPy's masked value cannot be compared.
_MISSING_TYPES = frozenset({"NAType", "MaskedConstant"})


def fields_of(row: Any) -> Mapping[str, Any] | None:
    """The fields of a mapping, or of what can be made a dict, such as `sqlite3.Row`; else None."""
    if isinstance(row, Mapping):
        return row
    if hasattr(row, "keys") and hasattr(row, "__getitem__"):
        return dict(row)
    return None


def is_missing(value: object) -> bool:
    """Whether the value is None, NaN, NaT, pandas' NA or NumPy's masked value."""
    if value is None or type(value).__name__ in _MISSING_TYPES:
        return True
    try:
        return bool(value != value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        return False
