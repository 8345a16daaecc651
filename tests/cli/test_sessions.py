"""`sessions`: what it shows, what it changes, and how it ends when it cannot."""

from __future__ import annotations

import io
import os
import pty
import socket
import subprocess
import sys

import pytest

from prefect_mipro.cli.exits import ExitCode
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.models.sessions import SessionState
from tests.cli.conftest import Command


def test_a_list_has_a_line_for_each_session_newest_first(command: Command) -> None:
    first, second = command.session(), command.session(rollouts=2)
    header, *rows = command("sessions", "list").out.splitlines()
    assert header.split()[:4] == ["SESSION", "STATE", "ROLLOUTS", "REWARDS"]
    assert rows[0].split()[:4] == [second.session_id, "running", "2", "1"]
    assert rows[0].split()[-1] == second.champion_candidate_id
    assert rows[1].split()[0] == first.session_id


def test_a_list_is_one_document_with_the_cursor_of_what_follows(command: Command) -> None:
    for _ in range(3):
        command.session()
    found = command("sessions", "list", "--limit", "2", "--json").document
    assert len(found["items"]) == 2
    assert found["next_cursor"] is not None


def test_a_list_says_that_there_are_more_than_it_shows(command: Command) -> None:
    for _ in range(2):
        command.session()
    result = command("sessions", "list", "--limit", "1")
    assert len(result.out.splitlines()) == 2
    assert "--limit" in result.err


def test_a_list_of_one_state_has_no_others(command: Command) -> None:
    status = command.session()
    command("sessions", "cancel", status.session_id, "--yes")
    command.session()
    found = command("sessions", "list", "--state", "cancelled", "--json").document["items"]
    assert {session["state"] for session in found} == {"cancelled"}
    assert found[0]["session_id"] == status.session_id


def test_a_list_of_nothing_says_so_and_is_no_failure(command: Command) -> None:
    result = command("sessions", "list", "--state", "succeeded")
    assert (result.code, result.out) == (ExitCode.OK, "")
    assert "no succeeded session" in result.err


def test_a_session_is_shown_with_its_facts_and_the_prompt_it_serves(command: Command) -> None:
    status = command.session(rollouts=3)
    result = command("sessions", "show", status.session_id)
    assert result.facts["state"] == "running"
    assert result.facts["rollouts"].startswith("3, of which 2 rewarded, 1 awaited")
    assert status.champion_candidate_id in result.facts["champion"]
    assert "You name the topic of a query." in result.out


def test_what_lets_everybody_in_is_shown_only_in_the_document(command: Command) -> None:
    status = command.session()
    secret = status.online_url.rpartition(".")[2]
    shown = command("sessions", "show", status.session_id)
    assert secret not in shown.out + shown.err
    assert shown.facts["address"].endswith(f"{status.session_id}.***")
    document = command("sessions", "show", status.session_id, "--json").document
    assert document["online_url"] == status.online_url


@pytest.mark.parametrize(
    ("actions", "state"),
    [
        (["pause"], SessionState.PAUSED),
        (["pause", "resume"], SessionState.RUNNING),
        (["cancel"], SessionState.CANCELLED),
    ],
)
def test_a_session_is_paused_resumed_and_cancelled(
    command: Command, actions: list[str], state: SessionState
) -> None:
    session_id = command.session().session_id
    for action in actions:
        sure = ["--yes"] if action == "cancel" else []
        result = command("sessions", action, session_id, *sure)
        assert result.code == ExitCode.OK
        assert result.out.startswith(f"{session_id} is ")
    assert command.client.session_status(session_id).status is state


def test_what_cannot_be_undone_is_not_done_unasked(command: Command) -> None:
    session_id = command.session().session_id
    result = command("sessions", "cancel", session_id)
    assert result.code == ExitCode.USAGE
    assert "--yes" in result.err
    assert command.client.session_status(session_id).status is SessionState.RUNNING


@pytest.mark.parametrize(
    ("answer", "state"), [("y\n", SessionState.CANCELLED), ("\n", SessionState.RUNNING)]
)
def test_on_a_terminal_it_asks(
    command: Command, monkeypatch: pytest.MonkeyPatch, answer: str, state: SessionState
) -> None:
    class Keyboard(io.StringIO):
        def isatty(self) -> bool:
            return True

    session_id = command.session().session_id
    monkeypatch.setattr(sys, "stdin", Keyboard(answer))
    assert "for good?" in command("sessions", "cancel", session_id).err
    assert command.client.session_status(session_id).status is state


def test_a_state_that_cannot_follow_fails_with_the_backends_words(command: Command) -> None:
    session_id = command.session().session_id
    command("sessions", "cancel", session_id, "--yes")
    result = command("sessions", "resume", session_id)
    assert (result.code, result.out) == (ExitCode.FAILED, "")
    assert "cannot become running" in result.err


def test_data_is_forgotten_when_one_is_sure(command: Command) -> None:
    session_id = command.session(rollouts=3).session_id
    forget = ("sessions", "forget", session_id, "--rollout", "r1")
    would = command(*forget, "--dry-run")
    assert (would.facts["rollouts"], would.facts["calls"]) == ("1", "1")
    assert "nothing was removed" in would.err
    refused = command(*forget)
    assert (refused.code, "add --yes" in refused.err) == (ExitCode.USAGE, True)
    assert command(*forget, "--yes", "--json").document["rollouts"] == 1
    again = command(*forget, "--yes")
    assert (again.facts["rollouts"], "no rollout of this" in again.err) == ("0", True)
    for subject in ([], ["--user", "ada", "--example", "7"]):
        told = command("sessions", "forget", session_id, *subject)
        assert (told.code, "exactly one of --user" in told.err) == (ExitCode.USAGE, True)


def test_a_session_is_deleted_when_one_is_sure(command: Command) -> None:
    session_id = command.session(rollouts=2).session_id
    assert command("sessions", "delete", session_id).code == ExitCode.USAGE
    assert command.client.session_status(session_id).rollout_count == 2
    result = command("sessions", "delete", session_id, "--yes")
    assert (result.code, result.out) == (ExitCode.OK, f"{session_id} is deleted\n")
    assert command("sessions", "delete", session_id, "--yes").code == ExitCode.NOT_FOUND


def test_a_deletion_is_told_as_json_too(command: Command) -> None:
    session_id = command.session().session_id
    result = command("sessions", "delete", session_id, "--yes", "--json")
    assert result.document == {"session_id": session_id, "deleted": True}


def test_a_url_that_has_leaked_is_replaced(command: Command) -> None:
    status = command.session()
    result = command("sessions", "rotate-url", status.session_id)
    urls = command.client.session_urls(status.session_id)
    assert (result.code, result.out) == (ExitCode.OK, f"{urls.online_url}\n")
    assert urls.online_url != status.online_url
    told = command("sessions", "rotate-url", status.session_id, "--json").document
    assert told["chat_completions_url"] == f"{told['online_url']}/chat/completions"
    assert told["online_url"] != urls.online_url


@pytest.mark.parametrize("action", ["show", "pause", "rotate-url", "export"])
def test_an_unknown_session_has_an_exit_code_of_its_own(command: Command, action: str) -> None:
    result = command("sessions", action, "no-such")
    assert (result.code, result.out) == (ExitCode.NOT_FOUND, "")
    assert "'no-such'" in result.err
    assert "sessions list" in result.err


def test_a_refused_key_has_too_and_is_not_printed(command: Command) -> None:
    result = command("sessions", "list", "--api-key", "a-wrong-key")
    assert (result.code, result.out) == (ExitCode.KEY_REFUSED, "")
    assert "MIPRO_API_KEY" in result.err
    assert "a-wrong-key" not in result.err


def test_a_backend_on_another_machine_is_not_asked_without_a_key(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_API_KEY")
    result = command("sessions", "list", "--backend-url", "https://mipro.invalid")
    assert result.code == ExitCode.KEY_REFUSED
    assert "https://mipro.invalid" in result.err


def test_a_backend_out_of_reach_has_too(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = command("sessions", "list", "--backend-url", url)
    assert (result.code, result.out) == (ExitCode.UNREACHABLE, "")
    assert url in result.err
    assert "prefect-mipro serve" in result.err


def test_an_address_that_is_none_is_wrong_usage(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_API_KEY")
    result = command("sessions", "list", "--backend-url", "mipro.example.com")
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert "'mipro.example.com'" in result.err


def test_sessions_of_the_embedded_backend_are_shown_without_another(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_BACKEND_URL")
    result = command("sessions", "list", "--embedded", "--json")
    assert result.code == ExitCode.OK
    assert result.document == {"items": [], "next_cursor": None}


def test_it_does_without_prefect(command: Command) -> None:
    program = (
        "import sys\nfrom prefect_mipro.cli import main\nmain(['sessions', 'list', '--json'])\n"
        "print(sorted({'prefect', 'fastapi', 'sqlalchemy', 'numpy'} & set(sys.modules)),"
        " file=sys.stderr)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stderr == "[]\n"


def test_on_a_terminal_it_is_a_table(command: Command) -> None:
    session_id = command.session().session_id
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "prefect_mipro.cli", "sessions", "list"],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"},
        check=True,
        timeout=60,
    )
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    os.close(theirs)
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 20 in shown
    assert "\x1b[32mrunning" in shown
    assert session_id in shown


def test_a_reader_that_has_seen_enough_is_no_error(command: Command) -> None:
    command.session()
    with subprocess.Popen(
        [sys.executable, "-m", "prefect_mipro.cli", "sessions", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == ExitCode.OK


def test_the_former_sdks_variable_names_the_backend_too(
    command: Command, backend: EmbeddedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MIPRO_BACKEND_URL")
    monkeypatch.setenv("SYNTH_BACKEND_URL", backend.url)
    assert command("sessions", "list").code == ExitCode.OK
