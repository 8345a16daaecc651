"""Rows of data flows: their fields, and the values that are missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# pandas' NA and NumPy's masked value cannot be compared.
_MISSING_TYPES = frozenset({"NAType", "MaskedConstant"})

EXAMPLE_ID_KEYS = ("example_id", "id", "seed")


def fields_of(row: Any) -> Mapping[str, Any] | None:
    """The fields of a mapping, or of what can be made a dict, such as `sqlite3.Row`; else None."""
    if isinstance(row, Mapping):
        return row
    if hasattr(row, "keys") and hasattr(row, "__getitem__"):
        return dict(row)
    return None


def example_id_of(fields: Mapping[str, Any]) -> str | None:
    """The id that a row has for itself, if it has one."""
    named = (fields.get(key) for key in EXAMPLE_ID_KEYS)
    return next((str(value) for value in named if not is_missing(value)), None)


def row_name(fields: Mapping[str, Any]) -> str:
    """The row in the words of an error: its id, else what is in it."""
    try:
        example_id = example_id_of(fields)
        return f"the row {dict(fields)!r:.80}" if example_id is None else f"row {example_id:.80}"
    except ValueError:
        return "the row"  # Python does not write integers of thousands of digits.


def is_missing(value: object) -> bool:
    """Whether the value is None, NaN, NaT, pandas' NA or NumPy's masked value."""
    if value is None or type(value).__name__ in _MISSING_TYPES:
        return True
    try:
        return bool(value != value)
    except (ArithmeticError, RuntimeError, TypeError, ValueError):
        return False
