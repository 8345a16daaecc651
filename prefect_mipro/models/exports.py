"""A session as a file: JSON lines, of which each is one row of one part of the session."""

from __future__ import annotations

from enum import StrEnum

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
    REWARD = "reward"
    REWARD_BLOCK = "reward_block"
    EXAMPLE_REWARD = "example_reward"
    TRACE = "trace"
    EVENT = "event"
    END = "end"
