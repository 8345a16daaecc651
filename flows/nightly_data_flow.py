"""An existing kind of flow: a nightly job that labels new messages, and now gets better at it.

    python flows/nightly_data_flow.py messages.db --sample     # makes a database to try it on
    python flows/nightly_data_flow.py messages.db

Messages arrive in a table. The job asks a model for the intent of each new one and writes it back.
By day people correct some labels. The next night the job first tells the optimizer how last
night's labels did, so that tonight's prompt is a better one: rewards come a day after rollouts.
"""

import argparse
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task, unmapped
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_mipro.config import read_toml
from prefect_mipro.flows import some_backend, temporary_server_settings
from prefect_mipro.models.summaries import RolloutResult
from prefect_mipro.tasks import LiveRollout, create_session, report_reward, run_rollout

HERE = Path(__file__).resolve().parent
CONFIG = read_toml(HERE / "everyday_intents.toml")
BASELINE: str = CONFIG["prompt_learning"]["initial_prompt"]["messages"][0]["pattern"]
INTENTS = ("music", "weather", "restaurant", "movie", "alarm", "taxi", "language")
SAMPLE = HERE / "data" / "everyday_intents.jsonl"
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    intent TEXT,            -- what the model said
    rollout_id TEXT,        -- which rollout said it
    checked_intent TEXT,    -- what a person said, if one looked
    rewarded INTEGER NOT NULL DEFAULT 0
)
"""


Message = dict[str, str]
FOUR_AT_A_TIME: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=4)


def label(rollout: LiveRollout, message: Message) -> str:
    """The model's step of the job; only this line knows that there is an optimizer."""
    answer = rollout.complete(
        [
            {"role": "system", "content": BASELINE},
            {"role": "user", "content": message["text"]},
        ]
    )
    words = re.findall(r"\w+", answer.lower())
    return next((word for word in words if word in INTENTS), "unclear")


@dataclass(frozen=True)
class Checked:
    """A label that a person has looked at."""

    message_id: int
    intent: str
    checked_intent: str
    rollout_id: str


@flow(name="nightly-intents", task_runner=FOUR_AT_A_TIME)
def label_messages(
    database: Path,
    limit: int = 100,
    session_id: str = "nightly-intents",
    credentials: str | None = None,
) -> dict[str, int]:
    """Learn from the labels that people have checked, then label what is new.

    Args:
        database: The SQLite file with the table `messages`.
        limit: The most messages to label in one night.
        session_id: The session to start or to go on with.
        credentials: The name of a saved `MiproCredentials` block; without one, the backend of the
            environment or an embedded one.
    """
    with some_backend(credentials=credentials) as backend_url:
        session = create_session(
            CONFIG,
            session_id=session_id,
            backend_url=backend_url,
            credentials=credentials,
        )
        checked = checked_labels(database)
        report_reward.map(
            unmapped(session),
            [float(each.intent == each.checked_intent) for each in checked],
            rollout_id=[each.rollout_id for each in checked],
            expected=[each.checked_intent for each in checked],
        ).result()
        mark_rewarded(database, checked)
        messages = new_messages(database, limit)
        results: list[RolloutResult] = run_rollout.map(
            messages,
            session=unmapped(session),
            program=unmapped(label),
            reward=unmapped(None),
        ).result()
        labelled = write_labels(database, messages, results)
    return {"rewarded": len(checked), "labelled": labelled, "failed": len(messages) - labelled}


@task
def checked_labels(database: Path) -> list[Checked]:
    """Labels that people have checked since the last night."""
    with _opened(database) as connection:
        rows = connection.execute(
            "SELECT id, intent, checked_intent, rollout_id FROM messages "
            "WHERE checked_intent IS NOT NULL AND rollout_id IS NOT NULL AND NOT rewarded"
        )
        return [Checked(*row) for row in rows]


@task
def mark_rewarded(database: Path, checked: Sequence[Checked]) -> None:
    """Remember that the optimizer knows them."""
    with _opened(database) as connection:
        connection.executemany(
            "UPDATE messages SET rewarded = 1 WHERE id = ?",
            [(each.message_id,) for each in checked],
        )


@task
def new_messages(database: Path, limit: int) -> list[Message]:
    """Messages without a label, the oldest first."""
    with _opened(database) as connection:
        rows = connection.execute(
            "SELECT id, text FROM messages WHERE intent IS NULL ORDER BY id LIMIT ?", (limit,)
        )
        return [{"id": str(number), "text": text} for number, text in rows]


@task
def write_labels(
    database: Path, messages: Sequence[Message], results: Sequence[RolloutResult]
) -> int:
    """Write back what the model said, and in which rollout; how many messages have a label now."""
    labels = [
        (result.answer, result.rollout_id, int(message["id"]))
        for message, result in zip(messages, results, strict=True)
        if not result.error
    ]
    with _opened(database) as connection:
        connection.executemany(
            "UPDATE messages SET intent = ?, rollout_id = ? WHERE id = ?", labels
        )
    return len(labels)


def make_sample(database: Path) -> None:
    """Fill the table with requests of the bundled data; run again, check the labels there are."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    truth = {row["text"]: row["label"] for row in map(json.loads, lines)}
    with _opened(database) as connection:
        if not connection.execute("SELECT count(*) FROM messages").fetchone()[0]:
            connection.executemany(
                "INSERT INTO messages (text) VALUES (?)", [(text,) for text in truth]
            )
        connection.executemany(
            "UPDATE messages SET checked_intent = ? WHERE text = ? AND intent IS NOT NULL",
            [(intent, text) for text, intent in truth.items()],
        )


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(SCHEMA)
        yield connection


def main(arguments: Sequence[str] | None = None) -> None:
    """One night; or, with --sample, the day before it."""
    parser = argparse.ArgumentParser(description="Label new messages, and learn from corrections.")
    parser.add_argument("database", type=Path, help="the SQLite file with the messages")
    parser.add_argument("--limit", type=int, default=100, help="the most messages to label")
    parser.add_argument(
        "--sample", action="store_true", help="fill the file, or check the labels in it, and stop"
    )
    options = parser.parse_args(arguments)
    if options.sample:
        make_sample(options.database)
        return
    with temporary_server_settings():
        print(label_messages(options.database, options.limit))


if __name__ == "__main__":
    main()
