"""Whether a database is whole: its pages, its references, its counters and its numbers.

Each check is a query for what should not be. It reads one moment of the database, so that a server
may write meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Check:
    """What was looked at, and what is wrong with it, at most `MOST_PROBLEMS` of it."""

    name: str
    problems: tuple[str, ...]


def audit(connection: Connection) -> tuple[Check, ...]:
    """All checks. The schema must be that of this release."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        pages: tuple[Check, ...] = ()
    else:
        pages = (
            _check("pages", connection, "PRAGMA integrity_check", _unless_ok),
            _check("references", connection, "PRAGMA foreign_key_check", _reference),
        )
    return (*pages, *(_check(name, connection, query, _row) for name, query in _QUERIES))


def _check(
    name: str, connection: Connection, query: str, told: Callable[[tuple[object, ...]], str]
) -> Check:
    rows = connection.exec_driver_sql(query).fetchmany(MOST_PROBLEMS)
    return Check(name, tuple(filter(None, (told(tuple(row)) for row in rows))))


def _unless_ok(row: tuple[object, ...]) -> str:
    return "" if row[0] == "ok" else str(row[0])


def _reference(row: tuple[object, ...]) -> str:
    table, row_number, missing, _ = row
    return f"row {row_number} of {table} refers to a row of {missing} that is not there"


def _row(row: tuple[object, ...]) -> str:
    subject, *facts = row
    told = ", ".join(map(str, facts))
    return f"{subject}: {told}" if told else str(subject)


_WHOLE = "s.version > 0"  # neither under import nor under deletion
_COUNTED_ROLLOUTS = """
    SELECT session_id, candidate_id, count(*) AS rollouts, count(reward_number) AS rewards,
        max(position) AS last_position, max(reward_number) AS last_reward,
        sum(CASE WHEN given_up_at IS NOT NULL AND reward_number IS NULL THEN 1 ELSE 0 END)
            AS missing,
        sum(CASE WHEN given_up_at IS NULL AND reward_number IS NULL THEN 1 ELSE 0 END)
            AS awaited,
        sum(CASE WHEN applied IS FALSE THEN 1 ELSE 0 END) AS unapplied,
        sum(CASE WHEN applied IS NOT FALSE AND reward_number IS NOT NULL THEN 1 ELSE 0 END)
            AS counted_rewards,
        sum(CASE WHEN applied IS NOT FALSE AND given_up_at IS NOT NULL AND reward_number IS NULL
            THEN 1 ELSE 0 END) AS counted_missing,
        coalesce(sum(CASE WHEN applied IS NOT FALSE THEN reward END), 0) AS reward_sum
    FROM mipro_rollouts GROUP BY session_id, candidate_id
"""
_COUNTED_CALLS = """
    SELECT candidate_id, count(*) AS calls,
        sum(CASE WHEN status <> 200 OR error <> '' THEN 1 ELSE 0 END) AS failed_calls,
        sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens
    FROM mipro_traces GROUP BY candidate_id
"""

_COUNTED_FAILURES = """
    SELECT failed_candidate_id AS candidate_id, count(*) AS failures
    FROM mipro_rollouts WHERE failure IS NOT NULL GROUP BY failed_candidate_id
"""

_QUERIES = (
    (
        "calls have their rollouts",
        """
        SELECT t.trace_id, 'no rollout ' || t.rollout_id FROM mipro_traces t
        LEFT JOIN mipro_rollouts r ON r.session_id = t.session_id AND r.rollout_id = t.rollout_id
        LEFT JOIN mipro_removed_rollouts d
        ON d.session_id = t.session_id AND d.rollout_id = t.rollout_id
        WHERE r.rollout_id IS NULL AND d.rollout_id IS NULL
        """,
    ),
    (
        "rollouts have their candidates",
        """
        SELECT r.session_id || '/' || r.rollout_id, 'no candidate ' || r.candidate_id
        FROM mipro_rollouts r LEFT JOIN mipro_candidates c
        ON c.candidate_id = r.candidate_id AND c.session_id = r.session_id
        WHERE c.candidate_id IS NULL
        """,
    ),
    (
        "candidates have their levers",
        """
        SELECT c.candidate_id, 'lacks a lever version' FROM mipro_candidates c
        LEFT JOIN mipro_lever_versions i ON i.session_id = c.session_id
            AND i.lever = 'instruction' AND i.version = c.instruction_version
        LEFT JOIN mipro_lever_versions d ON d.session_id = c.session_id
            AND d.lever = 'demonstrations' AND d.version = c.demonstrations_version
        WHERE i.version IS NULL OR d.version IS NULL
        """,
    ),
    (
        "sessions have their champions",
        f"""
        SELECT s.session_id, 'no candidate ' || s.champion_id FROM mipro_sessions s
        LEFT JOIN mipro_candidates c
        ON c.candidate_id = s.champion_id AND c.session_id = s.session_id
        WHERE c.candidate_id IS NULL AND {_WHOLE}
        """,
    ),
    (
        "counters of sessions",
        f"""
        SELECT s.session_id, 'counts ' || s.rollouts || ' rollouts, ' || s.rewards || ' rewards, '
            || s.missing || ' missing, ' || s.removed_rollouts || ' removed',
            'has ' || coalesce(f.rollouts, 0) || ', ' || coalesce(f.rewards, 0) || ', '
            || coalesce(f.missing, 0)
        FROM mipro_sessions s LEFT JOIN (
            SELECT session_id, sum(rollouts) AS rollouts, sum(rewards) AS rewards,
                sum(missing) AS missing, sum(awaited) AS awaited,
                max(last_position) AS last_position, max(last_reward) AS last_reward
            FROM ({_COUNTED_ROLLOUTS}) AS counted GROUP BY session_id
        ) AS f ON f.session_id = s.session_id
        WHERE {_WHOLE} AND (
            s.rollouts <> coalesce(f.rollouts, 0) + s.removed_rollouts
            -- Of each rollout the reward is there, missing or awaited; removed ones are settled.
            OR s.rollouts <> s.rewards + s.missing + coalesce(f.awaited, 0)
            OR s.rewards < coalesce(f.rewards, 0) OR s.missing < coalesce(f.missing, 0)
            OR coalesce(f.last_position, 0) > s.rollouts
            OR coalesce(f.last_reward, 0) > s.rewards
            OR (s.removed_rollouts = 0 AND (
                s.rewards <> coalesce(f.rewards, 0)
                OR coalesce(f.last_position, 0) <> s.rollouts
                OR coalesce(f.last_reward, 0) <> s.rewards
            ))
        )
        """,
    ),
    (
        "counters of candidates",
        f"""
        SELECT c.candidate_id, 'counts ' || c.rollouts || ' rollouts, ' || c.rewards
            || ' rewards of ' || c.reward_sum, 'has ' || coalesce(f.rollouts, 0) || ', '
            || coalesce(f.counted_rewards, 0) || ' of ' || coalesce(f.reward_sum, 0)
        FROM mipro_candidates c
        JOIN mipro_sessions s ON s.session_id = c.session_id AND {_WHOLE}
        LEFT JOIN ({_COUNTED_ROLLOUTS}) AS f ON f.candidate_id = c.candidate_id
        WHERE c.rollouts < coalesce(f.rollouts, 0) OR c.rewards < coalesce(f.counted_rewards, 0)
            OR c.missing < coalesce(f.counted_missing, 0)
            OR c.unapplied_rollouts < coalesce(f.unapplied, 0)
            OR (s.removed_rollouts = 0 AND (
                c.rollouts <> coalesce(f.rollouts, 0)
                OR c.rewards <> coalesce(f.counted_rewards, 0)
                OR c.missing <> coalesce(f.counted_missing, 0)
                OR c.unapplied_rollouts <> coalesce(f.unapplied, 0)
                OR abs(c.reward_sum - coalesce(f.reward_sum, 0)) > 1e-6 * (1 + abs(c.reward_sum))
            ))
        """,
    ),
    (
        "sums over candidates",
        f"""
        SELECT s.session_id, 'counts ' || s.rollouts || ' rollouts, ' || s.rewards || ' rewards, '
            || s.missing || ' missing', 'its candidates ' || sum(c.rollouts) || ', '
            || sum(c.rewards) || ', ' || sum(c.missing)
        FROM mipro_sessions s JOIN mipro_candidates c ON c.session_id = s.session_id
        WHERE {_WHOLE} GROUP BY s.session_id, s.rollouts, s.rewards, s.missing
        HAVING s.rollouts <> sum(c.rollouts)
            -- What is no evidence does not count for its candidate.
            OR s.rewards < sum(c.rewards) OR s.missing < sum(c.missing)
        """,
    ),
    (
        "counters of failures",
        f"""
        SELECT c.candidate_id, 'counts ' || c.failures || ' failed rollouts',
            'has ' || coalesce(f.failures, 0)
        FROM mipro_candidates c
        JOIN mipro_sessions s ON s.session_id = c.session_id AND {_WHOLE}
        LEFT JOIN ({_COUNTED_FAILURES}) AS f ON f.candidate_id = c.candidate_id
        WHERE c.failures < coalesce(f.failures, 0)
            OR (s.removed_rollouts = 0 AND c.failures <> coalesce(f.failures, 0))
        """,
    ),
    (
        # An import may have left the calls behind: their counters stay.
        "counters of calls",
        f"""
        SELECT c.candidate_id, 'counts ' || c.calls || ' calls, ' || c.failed_calls || ' failed, '
            || c.prompt_tokens || ' and ' || c.completion_tokens || ' tokens',
            'has ' || f.calls || ', ' || f.failed_calls || ', ' || f.prompt_tokens || ' and '
            || f.completion_tokens
        FROM mipro_candidates c
        JOIN mipro_sessions s ON s.session_id = c.session_id AND {_WHOLE}
        JOIN ({_COUNTED_CALLS}) AS f ON f.candidate_id = c.candidate_id
        WHERE c.calls < f.calls OR (c.calls = f.calls AND (
            c.failed_calls <> f.failed_calls OR c.prompt_tokens <> f.prompt_tokens
            OR c.completion_tokens <> f.completion_tokens
        ))
        """,
    ),
    (
        "rewards of rollouts",
        f"""
        SELECT r.session_id || '/' || r.rollout_id, 'earned ' || coalesce(w.value, 0),
            'counts ' || coalesce(r.reward, 0)
        FROM mipro_rollouts r JOIN mipro_sessions s ON s.session_id = r.session_id AND {_WHOLE}
        LEFT JOIN mipro_rewards w ON w.session_id = r.session_id AND w.rollout_id = r.rollout_id
        WHERE (r.reward_number IS NULL) <> (w.candidate_id IS NULL)
            OR coalesce(r.reward, 0) <> coalesce(w.value, 0) AND r.reward_number IS NOT NULL
        """,
    ),
    (
        "numbers of lever versions",
        """
        SELECT session_id || '/' || lever, count(*) || ' up to ' || max(version)
        FROM mipro_lever_versions GROUP BY session_id, lever HAVING count(*) <> max(version)
        """,
    ),
    (
        "numbers of candidates",
        f"""
        SELECT c.session_id, count(*) || ' up to ' || max(c.number) FROM mipro_candidates c
        JOIN mipro_sessions s ON s.session_id = c.session_id AND {_WHOLE}
        GROUP BY c.session_id HAVING count(*) <> max(c.number)
        """,
    ),
    (
        "numbers of events",
        f"""
        SELECT s.session_id, count(e.seq) || ' events, ' || s.removed_events || ' removed, version '
            || s.version
        FROM mipro_sessions s LEFT JOIN mipro_events e ON e.session_id = s.session_id
        WHERE {_WHOLE} GROUP BY s.session_id, s.version, s.removed_events
        HAVING count(e.seq) + s.removed_events <> s.version
            OR coalesce(max(e.seq), 0) > s.version
            OR (s.removed_events = 0 AND coalesce(max(e.seq), 0) <> s.version)
        """,
    ),
)
