"""Kinds of columns: types that databases know in ways of their own or not at all, and counters."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import BigInteger, Column, Dialect, Double, Integer, Text, TypeDecorator

_YEAR_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(at: datetime) -> int:
    """Since 1970. A time without a zone is taken as UTC."""
    return ((at if at.tzinfo else at.replace(tzinfo=UTC)) - _YEAR_1970) // _MICROSECOND


def words(text: str) -> str:
    """The text as every database holds it."""
    if "\0" in text:
        text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


class UtcTime(TypeDecorator[datetime]):
    """An instant as microseconds since 1970: exact, sortable, the same in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _YEAR_1970 + value * _MICROSECOND


class Words(TypeDecorator[str]):
    """Text from outside. What no database encodes (lone surrogates, NUL) becomes a mark."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else words(value)


# SQLite numbers rows by itself only under the exact type name INTEGER.
RowNumber = BigInteger().with_variant(Integer, "sqlite")


def counter(name: str, first: int = 0) -> Column[int]:
    """A whole number that is added to."""
    return Column(name, BigInteger, nullable=False, default=first)


def late_counter(name: str, first: int = 0) -> Column[int]:
    """One that came with a later schema: the rows that were there have it too."""
    return Column(name, BigInteger, nullable=False, server_default=str(first))


def total(name: str) -> Column[float]:
    """A number that is added to."""
    return Column(name, Double, nullable=False, default=0.0)


def late_total(name: str) -> Column[float]:
    """One that came with a later schema: the rows that were there have it too."""
    return Column(name, Double, nullable=False, server_default="0")
