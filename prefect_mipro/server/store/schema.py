"""The schema: facts, and the counters that are added to with them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    text,
)

# Prefixed, so that a PostgreSQL database may be shared with Prefect, which has `events` of its own.
VERSION_TABLE = "mipro_schema"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


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


def total(name: str) -> Column[float]:
    """A number that is added to."""
    return Column(name, Double, nullable=False, default=0.0)


def _session() -> Column[str]:
    return Column("session_id", Text, ForeignKey("mipro_sessions.session_id"), nullable=False)


sessions = Table(
    "mipro_sessions",
    metadata,
    Column("session_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("config", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("correlation_id", Words),
    Column("agent_id", Words),
    Column("kind", Words, nullable=False),
    Column("system_name", Words),
    Column("proxy_secret", Text, nullable=False),
    # Of the digests that stand in for texts which are not kept.
    Column("digest_key", Text, nullable=False),
    Column("baseline_id", Text, nullable=False),
    Column("champion_id", Text, nullable=False),
    counter("proposal_number"),
    counter("proposal_rewards"),
    counter("proposal_failures"),
    Column("proposal_error", Words),
    # What the last round could not learn from, and why.
    Column("proposal_warning", Words),
    Column("proposed_at", UtcTime),
    Column("serving_candidate_id", Text),
    counter("serving_rollouts"),
    Column("stop_reason", Words),
    counter("version", 1),
    counter("rollouts"),
    counter("rewards"),
    # Of the rollouts, those that were given up and have no reward still.
    counter("missing"),
    # Of the rollouts and the events, those whose rows were removed after their time.
    counter("removed_rollouts"),
    counter("removed_events"),
    counter("proposer_prompt_tokens"),
    counter("proposer_completion_tokens"),
    # The present epoch, and the position at which it begins.
    counter("epoch", 1),
    counter("epoch_first", 1),
    counter("promotions"),
    counter("promoted_at"),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    # Only keys of this one see it.
    Column("workspace", Text, nullable=False),
    Index(None, "workspace", "created_at", "session_id"),
)

# Those that are made while a server runs; of each only the digest is known.
keys = Table(
    "mipro_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("workspace", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
)

lever_versions = Table(
    "mipro_lever_versions",
    metadata,
    _session(),
    Column("lever", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("value", JSON, nullable=False),
    Column("parent_version", BigInteger),
    Column("provenance", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("session_id", "lever", "version"),
)

candidates = Table(
    "mipro_candidates",
    metadata,
    Column("candidate_id", Text, primary_key=True),
    _session(),
    Column("number", BigInteger, nullable=False),
    Column("instruction_version", BigInteger, nullable=False),
    Column("demonstrations_version", BigInteger, nullable=False),
    Column("parent_id", Text),
    Column("label", Words),
    Column("created_at", UtcTime, nullable=False),
    Column("retired_at", UtcTime),
    Column("retired_reason", Words),
    counter("rollouts"),
    counter("rewards"),
    total("reward_sum"),
    total("reward_square_sum"),
    counter("calls"),
    counter("failed_calls"),
    counter("unapplied_calls"),
    counter("prompt_tokens"),
    counter("completion_tokens"),
    total("latency_seconds_sum"),
    counter("missing"),
    total("first_byte_seconds_sum"),
    counter("first_byte_calls"),
    total("cost_usd_sum"),
    counter("untimed_calls"),
    # Of the rollouts, those that are no evidence.
    counter("unapplied_rollouts"),
    counter("failures"),
    Column("last_failure", Words),
    # How many characters of demonstrations would have fit, as far as its refusals tell.
    Column("demonstration_room", BigInteger),
    # Since when not even the rollouts that are pinned to it are served with it.
    Column("withdrawn_at", UtcTime),
    UniqueConstraint("session_id", "number"),
)

active = candidates.c.retired_at.is_(None)
retired = candidates.c.retired_at.is_not(None)
withdrawn = candidates.c.withdrawn_at.is_not(None)
Index(
    "ix_mipro_candidates_active",
    candidates.c.session_id,
    sqlite_where=active,
    postgresql_where=active,
)
Index(
    "ix_mipro_candidates_retired",
    candidates.c.session_id,
    candidates.c.retired_at,
    sqlite_where=retired,
    postgresql_where=retired,
)

Index(
    "ix_mipro_candidates_withdrawn",
    candidates.c.session_id,
    sqlite_where=withdrawn,
    postgresql_where=withdrawn,
)

# The server that proposes for a session, and until when it need not say so again.
proposers = Table(
    "mipro_proposers",
    metadata,
    Column("session_id", Text, ForeignKey("mipro_sessions.session_id"), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("held_until", UtcTime, nullable=False),
)

# Epochs that have ended, with the positions of their rollouts; `last` is before `first` if none.
past_epochs = Table(
    "mipro_past_epochs",
    metadata,
    _session(),
    Column("epoch", BigInteger, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("session_id", "epoch"),
)

rollouts = Table(
    "mipro_rollouts",
    metadata,
    _session(),
    Column("rollout_id", Text, nullable=False),
    # One of the session's own. A reference would have each deletion of a session read all rollouts.
    Column("candidate_id", Text, nullable=False),
    Column("correlation_id", Words),
    Column("example_id", Words),
    # The example's id as a number, where it is one.
    Column("seed", BigInteger),
    Column("propensity", Double, nullable=False),
    Column("duel_number", BigInteger),
    Column("predicted_reward", Double),
    Column("pinned_at", UtcTime, nullable=False),
    # Counts a session's rollouts in the order of their pins, from 1.
    Column("position", BigInteger, nullable=False),
    counter("answered_calls"),
    # The call to learn from: the only answered one, if it has text on both sides.
    Column("example_trace_id", Text),
    # Counts a session's rewards in the order in which they were attached, from 1.
    Column("reward_number", BigInteger),
    Column("reward", Double),
    counter("epoch", 1),
    # Since when its reward is not awaited any more; stays when the reward comes after all.
    Column("given_up_at", UtcTime),
    # Whether the candidate's prompt was in any of its calls; unknown before the first.
    Column("applied", Boolean),
    # What its reward added to the sums of its example and of its block, to be taken back.
    Column("deviation", Double),
    Column("expected_deviation", Double),
    # How a call failed because of the prompt, whose prompt it was, and the shares of the traffic.
    Column("failure", Text),
    Column("failed_candidate_id", Text),
    Column("failure_shares", JSON(none_as_null=True)),
    PrimaryKeyConstraint("session_id", "rollout_id"),
    CheckConstraint("duel_number IS NULL OR predicted_reward IS NOT NULL", name="prediction"),
)

# The conditions of the partial indexes: a query must state them in these very words.
rewarded = rollouts.c.reward_number.is_not(None)
unrewarded = rollouts.c.reward_number.is_(None)
example = and_(rewarded, rollouts.c.example_trace_id.is_not(None))
unsettled = and_(unrewarded, rollouts.c.given_up_at.is_(None))
dueled = rollouts.c.duel_number.is_not(None)
failed = rollouts.c.failure.is_not(None)
seeded = and_(rewarded, rollouts.c.seed.is_not(None))
# Of these rollouts the rewards count for their candidates.
is_evidence = rollouts.c.applied.is_not(False)

Index(
    "ix_mipro_rollouts_unrewarded",
    rollouts.c.session_id,
    rollouts.c.position,
    sqlite_where=unrewarded,
    postgresql_where=unrewarded,
)
Index(
    "ix_mipro_rollouts_unsettled",
    rollouts.c.session_id,
    rollouts.c.position,
    sqlite_where=unsettled,
    postgresql_where=unsettled,
)
Index(
    "ix_mipro_rollouts_unrewarded_correlation",
    rollouts.c.session_id,
    rollouts.c.correlation_id,
    rollouts.c.position,
    sqlite_where=unrewarded,
    postgresql_where=unrewarded,
)
Index(
    "ix_mipro_rollouts_rewarded",
    rollouts.c.session_id,
    rollouts.c.reward_number,
    unique=True,
    sqlite_where=rewarded,
    postgresql_where=rewarded,
)
Index(
    "ix_mipro_rollouts_rewarded_candidate",
    rollouts.c.session_id,
    rollouts.c.candidate_id,
    rollouts.c.reward_number,
    sqlite_where=rewarded,
    postgresql_where=rewarded,
)
Index(
    "ix_mipro_rollouts_rewarded_seed",
    rollouts.c.session_id,
    rollouts.c.seed,
    rollouts.c.reward_number,
    sqlite_where=seeded,
    postgresql_where=seeded,
)
Index(
    "ix_mipro_rollouts_examples",
    rollouts.c.session_id,
    rollouts.c.reward_number,
    sqlite_where=example,
    postgresql_where=example,
)
Index(
    "ix_mipro_rollouts_duel",
    rollouts.c.session_id,
    rollouts.c.duel_number,
    rollouts.c.position,
    sqlite_where=dueled,
    postgresql_where=dueled,
)

Index(
    "ix_mipro_rollouts_failed",
    rollouts.c.session_id,
    rollouts.c.position,
    sqlite_where=failed,
    postgresql_where=failed,
)

# The large columns come last: SQLite reads those before them without them.
traces = Table(
    "mipro_traces",
    metadata,
    Column("position", RowNumber, primary_key=True),
    Column("trace_id", Text, nullable=False, unique=True),
    _session(),
    Column("rollout_id", Text, nullable=False),
    Column("candidate_id", Text, nullable=False),
    Column("status", BigInteger, nullable=False),
    Column("latency_seconds", Double),
    Column("first_byte_seconds", Double),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    # Whether the tokens are guessed from the texts.
    Column("estimated", Boolean, nullable=False, default=False),
    Column("cost_usd", Double),
    Column("model", Words),
    Column("created_at", UtcTime, nullable=False),
    Column("unapplied_reason", Words, nullable=False),
    Column("error", Words, nullable=False),
    Column("input", Words, nullable=False),
    Column("output", Words, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("response", JSON(none_as_null=True)),
    Index(None, "session_id", "position"),
    Index(None, "session_id", "rollout_id"),
)
unapplied = traces.c.unapplied_reason != text("''")
Index(
    "ix_mipro_traces_unapplied",
    traces.c.session_id,
    traces.c.position,
    sqlite_where=unapplied,
    postgresql_where=unapplied,
)

rewards = Table(
    "mipro_rewards",
    metadata,
    Column("reward_id", Text, primary_key=True),
    _session(),
    # The rollout may be unknown still: then the candidate is too.
    Column("rollout_id", Text, nullable=False),
    Column("candidate_id", Text),
    Column("correlation_id", Words),
    Column("score", Double, nullable=False),
    Column("value", Double, nullable=False),
    Column("feedback", Words),
    Column("expected", Words),
    Column("example_id", Words),
    Column("trace_ref", Words),
    # Whether the rollout's texts may be shown to other users.
    Column("shareable", Boolean, nullable=False, default=False),
    Column("artifact", JSON(none_as_null=True)),
    Column("metadata", JSON(none_as_null=True)),
    Column("received_at", UtcTime, nullable=False),
    Column("request_key", Words),
    UniqueConstraint("session_id", "rollout_id"),
    UniqueConstraint("session_id", "request_key"),
)

waiting = rewards.c.candidate_id.is_(None)
Index(
    "ix_mipro_rewards_waiting",
    rewards.c.session_id,
    rewards.c.received_at,
    sqlite_where=waiting,
    postgresql_where=waiting,
)

# What is left of rollouts that were removed: a reward that comes for one is not counted again.
removed_rollouts = Table(
    "mipro_removed_rollouts",
    metadata,
    _session(),
    Column("rollout_id", Text, nullable=False),
    # None where no reward had come.
    Column("candidate_id", Text),
    PrimaryKeyConstraint("session_id", "rollout_id"),
    sqlite_with_rowid=False,
)

# Requests to forget that are under way, with what they have removed so far.
forget_requests = Table(
    "mipro_forget_requests",
    metadata,
    Column("request_id", Text, primary_key=True),
    _session(),
    Column("subject", Text, nullable=False),
    Column("value", Words, nullable=False),
    counter("rollouts"),
    counter("calls"),
    Column("requested_at", UtcTime, nullable=False),
    Index(None, "session_id"),
)

# What the rollouts of a block of consecutive positions earned (`blocks.py`).
reward_blocks = Table(
    "mipro_reward_blocks",
    metadata,
    _session(),
    Column("epoch", BigInteger, nullable=False),
    Column("block", BigInteger, nullable=False),
    Column("candidate_id", Text, nullable=False),
    counter("rewards"),
    total("reward_sum"),
    total("reward_square_sum"),
    total("deviation_sum"),
    PrimaryKeyConstraint("session_id", "epoch", "block", "candidate_id"),
)

example_rewards = Table(
    "mipro_example_rewards",
    metadata,
    _session(),
    # The example's id, or a digest of a long one.
    Column("example_key", Words, nullable=False),
    counter("rewards"),
    total("deviation_sum"),
    PrimaryKeyConstraint("session_id", "example_key"),
)

duels = Table(
    "mipro_duels",
    metadata,
    _session(),
    Column("number", BigInteger, nullable=False),
    Column("champion_id", Text, ForeignKey(candidates.c.candidate_id), nullable=False),
    Column("challenger_id", Text, ForeignKey(candidates.c.candidate_id), nullable=False),
    Column("predicted_lift", Double, nullable=False),
    Column("rollouts_before", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    counter("rollouts"),
    counter("rewards"),
    total("reward_sum"),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    PrimaryKeyConstraint("session_id", "number"),
)

events = Table(
    "mipro_events",
    metadata,
    _session(),
    Column("seq", BigInteger, nullable=False),
    Column("event_type", Text, nullable=False),
    Column("message", Words, nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    PrimaryKeyConstraint("session_id", "seq"),
)
