"""The words and options of the command, and the help that teaches them."""

from __future__ import annotations

import argparse
import shutil
from typing import Any, NoReturn

from prefect_mipro import __version__
from prefect_mipro.cli.exits import PROGRAM, ExitCode
from prefect_mipro.transport import DEFAULT_BACKEND_URL

# That of the keys in the server's settings.
DEFAULT_WORKSPACE = "default"
STATES = ("running", "paused", "cancelled", "succeeded")

# The extra that brings what a command needs besides the package itself.
NEEDS = {
    **dict.fromkeys(("serve", "db", "keys"), "server"),
    **dict.fromkeys(("demo", "model"), "embedded"),
}

_OVERVIEW = f"""\
start here
  {PROGRAM} demo                        a small model learns on this machine; no key
  {PROGRAM} doctor                      what is missing here, and what to do about it
  {PROGRAM} serve --upstream-url URL    a backend in front of your model

exit codes
  0 done   1 failed   2 not understood   3 no such session or candidate
  4 backend out of reach   5 key refused   130 interrupted
"""
_LIST = f"""\
examples
  {PROGRAM} sessions list
  {PROGRAM} sessions list --state running --limit 10
  {PROGRAM} sessions list --json | jq -r '.items[].session_id'
"""
_SHOW = f"""\
examples
  {PROGRAM} sessions show support-bot
  {PROGRAM} sessions show support-bot --json | jq .champion_candidate_id
"""
_PAUSE = f"""\
A paused session serves its champion and explores no more; rewards still count.

examples
  {PROGRAM} sessions pause support-bot
"""
_RESUME = f"""\
examples
  {PROGRAM} sessions resume support-bot
"""
_CANCEL = f"""\
A cancelled session serves its champion for good; it takes no more rewards and cannot be resumed.

examples
  {PROGRAM} sessions cancel support-bot
  {PROGRAM} sessions cancel support-bot --yes     without asking, for scripts
"""
_DELETE = f"""\
All of it goes: its prompts, candidates, rollouts, rewards, traces and events, in any state. Its id
is free again. Export it first if you may want it back.

examples
  {PROGRAM} sessions delete support-bot
  {PROGRAM} sessions delete support-bot --yes     without asking, for scripts
"""
_FORGET = f"""\
Removes the rollouts, calls, rewards and events of one user, rollout, example or correlation id.
Prompts that show one of these texts are emptied, and their candidates retired; counters stay.
--user is the "user" of the rewards' metadata. Exports and backups are not reached.

examples
  {PROGRAM} sessions forget support-bot --user u-203 --dry-run    only say what would go
  {PROGRAM} sessions forget support-bot --user u-203
  {PROGRAM} sessions forget support-bot --rollout r-17 --yes      without asking, for scripts
"""
_ROTATE_URL = f"""\
For a URL that has leaked. Programs that call through it are refused from now on: give them the new
one, which is printed. Whoever calls by the session's id and a key is not concerned.

examples
  {PROGRAM} sessions rotate-url support-bot
"""
_EXPORT = f"""\
JSON lines: the session, its lever versions, candidates, duels, rollouts, rewards, traces and
events, and last the counts of them all. The key "part" says what a line is. No secret is in it.

examples
  {PROGRAM} sessions export support-bot -o support-bot.jsonl.gz
  {PROGRAM} sessions export support-bot --no-traces | grep '"part":"reward"'
  {PROGRAM} sessions export support-bot | jq -r 'select(.part == "trace") | .output'
"""
_IMPORT = f"""\
Sends an export to another backend, where the session keeps its id, its candidates and all that it
has learned. It is paused there until you resume it; a session that is there already is left alone.
An import that was broken off begins again from the start.

examples
  {PROGRAM} sessions import support-bot.jsonl.gz --backend-url https://new.example.com
  {PROGRAM} sessions export support-bot | {PROGRAM} sessions import - --embedded
"""
_CANDIDATES = f"""\
With a candidate, by its number or its id: its whole prompt, and where it came from.

examples
  {PROGRAM} candidates support-bot
  {PROGRAM} candidates support-bot 7
  {PROGRAM} candidates support-bot --json | jq '.items[] | select(.role == "champion")'
"""
_PROMOTE = f"""\
The backend promotes by itself when a duel has proved a candidate better. This is for everything
else: a decision of your own, and the way back to an earlier champion.

examples
  {PROGRAM} promote support-bot 7
  {PROGRAM} promote support-bot cand_3f9a0c12 --reason "reviewed by Ada"
"""
_RETIRE = f"""\
The champion's prompt takes its place at once, also in rollouts that have begun. In the place of a
champion comes the candidate that won a duel last, else the baseline, which cannot be retired.
`promote` brings a retired candidate back.

examples
  {PROGRAM} retire support-bot 7
  {PROGRAM} retire support-bot cand_3f9a0c12 --reason "it is rude"
"""
_RETIRE_LEVER = f"""\
For a text that must not be shown any more: all candidates that hold it are retired, and no new one
is made with it. `candidates SESSION CANDIDATE` says which versions a candidate holds.

examples
  {PROGRAM} retire-lever support-bot demonstrations 3 --reason "it shows a real address"
  {PROGRAM} retire-lever support-bot instruction 5 --json | jq -r '.retired_candidates[]'
"""
_DOCTOR = f"""\
Checks Python, Prefect, its API and blocks, the backend, the key, the model behind it and the
embedded model; says what to do about each. Where no backend is named, it starts the embedded one
for a moment. Exit code 1 when something is broken.

examples
  {PROGRAM} doctor
  MIPRO_BACKEND_URL=https://mipro.example.com {PROGRAM} doctor --json
"""
_KEYS = f"""\
They live in the server's database, beside those of MIPRO_SERVER_API_KEYS. Each belongs to a
workspace and sees the sessions of that one only. Only a digest is kept: a key is shown once. A
server that runs notices within a second.

examples
  {PROGRAM} keys create nightly-flow
  {PROGRAM} keys create ada --workspace research
  {PROGRAM} keys list
  {PROGRAM} keys revoke ada
"""
_DB = f"""\
`check` looks at the schema, the pages, the references, and compares each counter with what it
counts; a server may run meanwhile. Exit code 1 when something is wrong.

examples
  {PROGRAM} db check --database-url sqlite:///mipro.db
  {PROGRAM} db backup mipro-2026-11-23.db     while a server runs, too
  {PROGRAM} db compact                        give free space back, while no server runs
  {PROGRAM} db upgrade                        before a new release starts; it would do so itself
"""
_MODEL = f"""\
examples
  {PROGRAM} model install    fetch it into the user's cache, once (93 MB)
  {PROGRAM} model path       where it is
"""


def parser() -> argparse.ArgumentParser:
    """The whole command."""
    root = _Parser(
        prog=PROGRAM,
        description="Online prompt optimization with MIPRO, on Prefect.",
        epilog=_OVERVIEW,
    )
    root.set_defaults(parser=root, passed_on=False)
    root.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = root.add_subparsers(dest="command", metavar="command [options]")
    # Their options belong to the server's settings and to the flow, which also write their help.
    for name, text in (
        ("serve", "run the backend server (serve --help)"),
        ("demo", "optimize a prompt with the embedded model: the whole loop, no key (demo --help)"),
    ):
        _command(commands, name, text, add_help=False).set_defaults(passed_on=True)
    _add_sessions(_command(commands, "sessions", "look after the sessions of a backend"))
    candidates = _command(
        commands, "candidates", "the leaderboard of a session, or one candidate", _CANDIDATES
    )
    _add_session(candidates)
    candidates.add_argument(
        "candidate", nargs="?", metavar="CANDIDATE", help="its number, or its id"
    )
    _add_backend(candidates)
    promote = _command(commands, "promote", "make a candidate the champion", _PROMOTE)
    retire = _command(commands, "retire", "take a candidate out of play", _RETIRE)
    for action, kept_with in ((promote, "promotion"), (retire, "candidate")):
        _add_session(action)
        action.add_argument("candidate", metavar="CANDIDATE", help="its number, or its id")
        action.add_argument("--reason", metavar="TEXT", help=f"kept with the {kept_with}")
        _add_backend(action)
    lever = _command(
        commands, "retire-lever", "retire all candidates that hold a lever version", _RETIRE_LEVER
    )
    _add_session(lever)
    lever.add_argument("lever", metavar="LEVER", help="instruction or demonstrations")
    lever.add_argument("version", type=_count, metavar="VERSION", help="the version's number")
    lever.add_argument("--reason", metavar="TEXT", help="kept with the candidates")
    _add_backend(lever)
    _add_db(_command(commands, "db", "look after the server's database", _DB))
    doctor = _command(commands, "doctor", "find out what is wrong, and what to do", _DOCTOR)
    _add_address(doctor)
    _add_json(doctor)
    _add_keys(_command(commands, "keys", "let callers in, and keep them out again", _KEYS))
    model = _command(commands, "model", "the embedded model: a small one that needs no key", _MODEL)
    actions = model.add_subparsers(dest="action", metavar="action [options]")
    _add_json(_command(actions, "install", "fetch the model's file, once"))
    _add_json(_command(actions, "path", "print where the file is"))
    return root


def _add_sessions(sessions: _Parser) -> None:
    actions = sessions.add_subparsers(dest="action", metavar="action [options]")
    listed = _command(actions, "list", "the sessions, newest first", _LIST)
    listed.add_argument("--state", choices=STATES, help="only those in this state")
    listed.add_argument(
        "--limit", type=_count, default=50, metavar="N", help="at most so many (default: 50)"
    )
    _add_backend(listed)
    for name, text, examples in (
        ("show", "how a session stands", _SHOW),
        ("pause", "stop exploring for now", _PAUSE),
        ("resume", "explore again", _RESUME),
        ("cancel", "stop for good", _CANCEL),
        ("delete", "remove it and all that is known of it", _DELETE),
        ("forget", "remove one user's data, or one rollout's", _FORGET),
        ("rotate-url", "give its proxy URL a new secret", _ROTATE_URL),
        ("export", "all that is known of a session, as JSON lines", _EXPORT),
    ):
        action = _command(actions, name, text, examples)
        _add_session(action)
        if name == "forget":
            _add_subject(action)
        if name in ("cancel", "delete", "forget"):
            action.add_argument("--yes", action="store_true", help="do not ask")
        if name == "export":
            action.add_argument(
                "-o",
                "--output",
                metavar="FILE",
                help="where to write them; compressed when it ends in .gz (default: stdout)",
            )
            action.add_argument(
                "--no-traces",
                action="store_true",
                help="leave out what was asked and answered",
            )
        _add_backend(action)

    imported = _command(actions, "import", "an export, into this backend", _IMPORT)
    imported.add_argument("file", metavar="FILE", help="an export, or - for standard input")
    _add_backend(imported)


def _add_subject(forget: argparse.ArgumentParser) -> None:
    """Whose data, as the keywords of `Client.forget`."""
    subjects = forget.add_mutually_exclusive_group(required=True)
    for option, name, metavar, text in (
        ("--user", "user", "NAME", "an end user, as the rewards' metadata names them"),
        ("--rollout", "rollout_id", "ID", "one rollout"),
        ("--example", "example_id", "ID", "one example of a data set"),
        ("--correlation-id", "correlation_id", "ID", "one conversation"),
    ):
        subjects.add_argument(option, dest=name, metavar=metavar, help=text)
    forget.add_argument("--dry-run", action="store_true", help="only say what would go")


def _add_keys(keys: _Parser) -> None:
    actions = keys.add_subparsers(dest="action", metavar="action [options]")
    created = _command(actions, "create", "make a key, and print it this once")
    created.add_argument("name", metavar="NAME", help="whose it is, or what it is for")
    created.add_argument(
        "--workspace",
        default=DEFAULT_WORKSPACE,
        metavar="NAME",
        help=f"whose sessions it sees (default: {DEFAULT_WORKSPACE})",
    )
    _add_database(created)
    _add_database(_command(actions, "list", "the keys, the revoked ones too"))
    revoked = _command(actions, "revoke", "take a key out of use for good")
    revoked.add_argument("name", metavar="NAME", help="the key's name")
    _add_database(revoked)


def _add_db(database: _Parser) -> None:
    actions = database.add_subparsers(dest="action", metavar="action [options]")
    _add_database(_command(actions, "upgrade", "make its schema that of this release"))
    _add_database(_command(actions, "compact", "give its free space back; no server may run"))
    backup = _command(actions, "backup", "copy it into a file, while a server runs or not")
    backup.add_argument("target", metavar="TARGET", help="the file to write; it must not be there")
    _add_database(backup)
    _add_database(_command(actions, "check", "find out whether it is whole"))


def _command(
    commands: argparse._SubParsersAction[_Parser],
    name: str,
    text: str,
    examples: str = "",
    *,
    add_help: bool = True,
) -> _Parser:
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=examples,
        add_help=add_help,
    )
    parser.set_defaults(parser=parser, passed_on=False)
    return parser


def _add_session(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("session", metavar="SESSION", help="the session's id")


def _add_backend(parser: argparse.ArgumentParser) -> None:
    _add_address(parser)
    parser.add_argument(
        "--embedded",
        action="store_true",
        help="the embedded backend, started for this command: sessions of flows without a backend",
    )
    _add_json(parser)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend-url",
        metavar="URL",
        help=f"environment: MIPRO_BACKEND_URL (default: {DEFAULT_BACKEND_URL})",
    )
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help="environment: MIPRO_API_KEY, which is safer: command lines are public on a machine",
    )


def _add_database(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database-url",
        metavar="URL",
        help="the server's database; environment: MIPRO_SERVER_DATABASE_URL, which is safer for a "
        "password (default: sqlite:///mipro.db)",
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


class _Parser(argparse.ArgumentParser):
    """Understands whole words only, and prints examples as they are."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": _Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        """Say what was not understood, without a usage of many lines above it."""
        self.exit(
            ExitCode.USAGE,
            f"{self.prog}: {message}\n{PROGRAM}: {self.prog} --help shows what there is\n",
        )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the words of commands and their texts on one line."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, 100)
        super().__init__(prog, max_help_position=26, width=width)
