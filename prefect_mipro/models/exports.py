"""A session as a file: JSON lines, of which each is one row of one part of the session."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field

from prefect_mipro.models.base import JsonObject, Record, SessionId
from prefect_mipro.models.sessions import SessionState

EXPORT_FORMAT = "prefect-mipro-session"
EXPORT_VERSION = 1


class Part(StrEnum):
    """What a line is, under its key `part`. A file has its parts in this order.

    The first line is the session and says the format; the last one is the end and counts the lines
    of each part, so that a file that was cut off shows.
    """

    SESSION = "session"
    LEVER_VERSION = "lever_version"
    CANDIDATE = "candidate"
    DUEL = "duel"
    PAST_EPOCH = "past_epoch"
    ROLLOUT = "rollout"
    REMOVED_ROLLOUT = "removed_rollout"
    REWARD = "reward"
    REWARD_BLOCK = "reward_block"
    EXAMPLE_REWARD = "example_reward"
    TRACE = "trace"
    EVENT = "event"
    END = "end"


class FirstLine(Record):
    """The line that a file begins with, as far as it says what the file is."""

    part: Literal[Part.SESSION]
    format: Literal["prefect-mipro-session"]
    format_version: int
    session_id: SessionId
    state: SessionState
    config: JsonObject


class LastLine(Record):
    """The line that a file ends with: how many lines of each part came before."""

    part: Literal[Part.END]
    lines: dict[str, int]


class ImportRequest(Record):
    """Body of an import call: consecutive lines of a file."""

    lines: list[JsonObject] = Field(min_length=1, max_length=10_000)


class ImportReceipt(Record):
    """Answer to an import call: how many lines it took, and whether the last one was among them."""

    session_id: str
    lines: int
    complete: bool
