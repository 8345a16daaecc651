"""A pipeline as there are many, with a step that learns: messages get their intent from a model.

Messages arrive in a table. By night `label_messages` asks a model for the intent of each new one
and writes it back. By day people look at some of them and write the right intent to a CSV file. In
the evening `report_labels`, a deployment of its own, tells the optimizer how the labels did, so
that the next night's prompt is a better one. To try it, one step after the other:

    python flows/nightly_data_flow.py sample messages.db
    python flows/nightly_data_flow.py label messages.db
    python flows/nightly_data_flow.py check messages.db corrections.csv
    python flows/nightly_data_flow.py report messages.db corrections.csv
"""

import argparse
import csv
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, task, unmapped
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from prefect_mipro.errors import InputInvalid
from prefect_mipro.flows import some_session, temporary_server_settings
from prefect_mipro.models.summaries import RolloutResult
from prefect_mipro.tasks import Judgement, report_rewards, rollout_step
from prefect_mipro.tasks.logs import run_logger

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "everyday_intents.toml"
SAMPLE = HERE / "data" / "everyday_intents.jsonl"
SESSION_ID = "nightly-intents"
INTENTS = ("music", "weather", "restaurant", "movie", "alarm", "taxi", "language")
COLUMNS = ("message_id", "intent")
SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    text TEXT NOT NULL,
    intent TEXT,            -- what the model said
    rollout_id TEXT         -- in which rollout it said so
);
CREATE TABLE IF NOT EXISTS corrections (
    message_id INTEGER PRIMARY KEY REFERENCES messages,
    intent TEXT NOT NULL,   -- what a person said
    reported INTEGER NOT NULL DEFAULT 0
);
"""

Row = dict[str, Any]
FOUR_AT_A_TIME: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=4)


@flow(name="nightly-intents", task_runner=FOUR_AT_A_TIME)
def label_messages(
    database: Path,
    limit: int = 100,
    session: str | None = None,
    session_id: str | None = None,
    credentials: str | None = None,
) -> dict[str, int]:
    """Ask for the intent of new messages, and write it back. Returns how many have one now.

    Args:
        database: The SQLite file with the table `messages`.
        limit: The most messages to label in one night.
        session: The name of a saved `MiproSessionConfig` block; without one, the TOML file.
        session_id: The session to go on with; without one, the block's or `nightly-intents`.
        credentials: The name of a saved `MiproCredentials` block; without one, the block's, the
            backend of the environment, or an embedded one.
    """
    with some_session(
        session or CONFIG,
        session_id=session_id or (None if session else SESSION_ID),
        credentials=credentials,
    ) as intents:
        messages = new_messages(database, limit)
        answers: Sequence[RolloutResult | BaseException] = rollout_step.map(
            messages,
            session=unmapped(intents),
            # By message: a run that goes on where another was killed repeats no rollout.
            rollout_id=[f"message-{message['id']}" for message in messages],
        ).result(raise_on_failure=False)
    answered = [answer for answer in answers if isinstance(answer, RolloutResult)]
    failures = [answer for answer in answers if not isinstance(answer, RolloutResult)]
    write_labels(database, answered)
    if failures and not answered:
        raise failures[0]
    return {"labelled": len(answered), "failed": len(failures)}


@flow(name="report-labels")
def report_labels(
    database: Path,
    corrections: Path | None = None,
    session: str | None = None,
    session_id: str | None = None,
    credentials: str | None = None,
) -> dict[str, int]:
    """Report how labels did that people have looked at. Returns how many rewards counted.

    Args:
        database: The SQLite file with the labels.
        corrections: A CSV file with the columns `message_id` and `intent`; without one, or before
            it is there, only the table `corrections`. It may grow from day to day: what was
            reported stays so.
        session: As for `label_messages`.
        session_id: As for `label_messages`.
        credentials: As for `label_messages`.
    """
    if corrections is not None:
        load_corrections(database, corrections)
    checked = unreported(database)
    with some_session(
        session or CONFIG,
        session_id=session_id or (None if session else SESSION_ID),
        credentials=credentials,
    ) as intents:
        report = report_rewards(
            intents, {row["rollout_id"]: judged(row["label"], row["truth"]) for row in checked}
        )
    mark_reported(
        database, [row["message_id"] for row in checked if row["rollout_id"] in report.settled]
    )
    return report.counts


@task
def new_messages(database: Path, limit: int) -> list[Row]:
    """Messages without a label, the oldest first, with the prompt's placeholder as a column."""
    with opened(database) as connection:
        return rows(
            connection,
            "SELECT id, text AS request FROM messages WHERE intent IS NULL ORDER BY id LIMIT ?",
            limit,
        )


@task
def write_labels(database: Path, answers: Sequence[RolloutResult]) -> None:
    """Write back what the model said, and in which rollout. The example's id is the message's."""
    with opened(database) as connection:
        connection.executemany(
            "UPDATE messages SET intent = ?, rollout_id = ? WHERE id = ?",
            [(intent_in(each.answer), each.rollout_id, each.example_id) for each in answers],
        )


@task
def load_corrections(database: Path, path: Path) -> None:
    """Take over corrections of messages that have a label; the first of a message counts."""
    if not path.exists():
        log = run_logger()
        log.warning("Nobody has corrected anything yet: there is no file %s", path.absolute())
        return
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
            raise InputInvalid(
                f"{path} has the columns {', '.join(reader.fieldnames or ()) or 'none'}; "
                f"corrections have {' and '.join(COLUMNS)}"
            )
        corrections = [(row["intent"].strip().lower(), row["message_id"]) for row in reader]
    with opened(database) as connection:
        connection.executemany(
            "INSERT INTO corrections (message_id, intent) SELECT id, ? FROM messages "
            "WHERE id = ? AND rollout_id IS NOT NULL ON CONFLICT DO NOTHING",
            corrections,
        )


@task
def unreported(database: Path) -> list[Row]:
    """Labels that people have looked at, and the optimizer does not know of."""
    with opened(database) as connection:
        return rows(
            connection,
            "SELECT message_id, rollout_id, messages.intent AS label, corrections.intent AS truth "
            "FROM corrections JOIN messages ON id = message_id WHERE NOT reported",
        )


@task
def mark_reported(database: Path, message_ids: Sequence[int]) -> None:
    """Remember that the optimizer knows of them."""
    with opened(database) as connection:
        connection.executemany(
            "UPDATE corrections SET reported = 1 WHERE message_id = ?",
            [(message_id,) for message_id in message_ids],
        )


def intent_in(answer: str) -> str:
    """The intent that the answer names first."""
    words = re.findall(r"\w+", answer.lower())
    return next((word for word in words if word in INTENTS), "unclear")


def judged(label: str, truth: str) -> Judgement:
    """1 for the right intent. The right one may become a demonstration."""
    return Judgement(score=float(label == truth), expected=truth)


@contextmanager
def opened(database: Path) -> Iterator[sqlite3.Connection]:
    """The database with its tables; changes are kept when the block ends well."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.row_factory = sqlite3.Row
        yield connection


def rows(connection: sqlite3.Connection, query: str, *values: Any) -> list[Row]:
    """What the query finds."""
    return [dict(row) for row in connection.execute(query, values)]


def make_sample(database: Path) -> None:
    """Fill the table with requests of the bundled data, if it is empty."""
    with opened(database) as connection:
        if not rows(connection, "SELECT 1 FROM messages LIMIT 1"):
            connection.executemany(
                "INSERT INTO messages (text) VALUES (?)", [(text,) for text in truths()]
            )


def check_labels(database: Path, corrections: Path) -> None:
    """Do what people do by day: write down the right intent of each message that has a label."""
    with opened(database) as connection:
        labelled = rows(connection, "SELECT id, text FROM messages WHERE intent IS NOT NULL")
    truth = truths()
    with corrections.open("w", encoding="utf-8", newline="") as file:
        lines = [(row["id"], truth[row["text"]]) for row in labelled]
        csv.writer(file).writerows([COLUMNS, *lines])


def truths() -> dict[str, str]:
    """The bundled requests and their intents."""
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    return {row["text"]: row["label"] for row in map(json.loads, lines)}


def main(arguments: Sequence[str] | None = None) -> None:
    """One step, on a Prefect server of its own where none is configured."""
    parser = argparse.ArgumentParser(description="Label messages, and learn from corrections.")
    steps = parser.add_subparsers(dest="step", required=True)
    for name, text in (
        ("sample", "fill a file with messages to try it on"),
        ("label", "by night: label what is new"),
        ("check", "by day: write the right labels to a CSV file"),
        ("report", "in the evening: report how the labels did"),
    ):
        step = steps.add_parser(name, help=text)
        step.add_argument("database", type=Path, help="the SQLite file with the messages")
        if name == "label":
            step.add_argument("--limit", type=int, default=100, help="the most messages to label")
        if name in ("check", "report"):
            step.add_argument("corrections", type=Path, help="the CSV file with the corrections")
    options = parser.parse_args(arguments)
    if options.step == "sample":
        make_sample(options.database)
    elif options.step == "check":
        check_labels(options.database, options.corrections)
    else:
        with temporary_server_settings():
            if options.step == "label":
                print(label_messages(options.database, options.limit))
            else:
                print(report_labels(options.database, options.corrections))


if __name__ == "__main__":
    main()
