"""`candidates`, `promote`, `retire` and `retire-lever`."""

from __future__ import annotations

import itertools

import httpx
import pytest

from prefect_mipro.cli.exits import ExitCode
from tests.cli.conftest import QUESTION, Command
from tests.fake_upstream import FakeUpstream

BETTER = "You name the topic of a query. Use one word."


def test_the_leaderboard_has_a_line_for_each_candidate(command: Command) -> None:
    status = command.session(rollouts=2)
    added = command.candidate(status, BETTER)
    header, *rows = command("candidates", status.session_id).out.splitlines()
    assert header.split()[:3] == ["#", "ROLE", "REWARD"]
    roles = {row.split()[0]: row.split()[1] for row in rows}
    assert roles == {"1": "champion", "2": "proposed"}
    (of_added,) = (row for row in rows if added in row)
    assert of_added.endswith("… Use one word.")


def test_the_leaderboard_as_a_document_has_everything(command: Command) -> None:
    status = command.session(rollouts=2)
    command.candidate(status, BETTER)
    found = command("candidates", status.session_id, "--json").document
    assert found["session_id"] == status.session_id
    assert {item["instruction"] for item in found["items"]} >= {BETTER}
    assert {item["role"] for item in found["items"]} == {"champion", "proposed"}


def test_a_candidate_whose_prompt_fails_says_how_often_and_why_it_is_retired(
    command: Command, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    monkeypatch.setattr(
        upstream, "answer", lambda body: "" if BETTER in str(body["messages"]) else "card"
    )
    messages = [
        {"role": "system", "content": "You name the topic of a query."},
        {"role": "user", "content": QUESTION},
    ]
    report, calls = status.candidates.get(added), itertools.count()
    while report is None or report.status != "retired":
        call = f"{status.online_url}/f{next(calls)}/chat/completions"
        httpx.post(call, json={"model": "m", "messages": messages}, trust_env=False)
        report = command.client.session_status(status.session_id).candidates[added]
    facts = command("candidates", status.session_id, added).facts
    assert "of its calls; the last: the answer was empty" in facts["failures"]
    assert facts["retired because"].startswith("its prompt fails more often than the baseline")
    (row,) = (
        line for line in command("candidates", status.session_id).out.splitlines() if added in line
    )
    assert f" {report.failures} " in row


@pytest.mark.parametrize("how", ["number", "#number", "id"])
def test_a_candidate_is_shown_whole_with_where_it_came_from(command: Command, how: str) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    told = {"number": "2", "#number": "#2", "id": added}[how]
    result = command("candidates", status.session_id, told)
    assert result.facts["candidate"] == f"#2 {added}"
    assert result.facts["instruction"].startswith("version 2, from version 1: human")
    assert result.facts["parent"] == status.baseline_candidate_id
    assert BETTER in result.out


def test_a_candidate_as_a_document_has_its_lineage(command: Command) -> None:
    status = command.session()
    command.candidate(status, BETTER)
    found = command("candidates", status.session_id, "2", "--json").document
    assert found["instruction"] == BETTER
    assert found["lineage"]["instruction"]["actor"] == "human"


@pytest.mark.parametrize(
    "words",
    [["candidates", "{id}", "9"], ["promote", "{id}", "9"], ["promote", "{id}", "cand_x"]],
)
def test_an_unknown_candidate_is_not_found(command: Command, words: list[str]) -> None:
    status = command.session()
    result = command(*(word.format(id=status.session_id) for word in words))
    assert (result.code, result.out) == (ExitCode.NOT_FOUND, "")
    assert repr(words[-1]) in result.err
    assert "prefect-mipro candidates" in result.err


def test_a_promotion_tells_the_way_back_and_the_way_back_works(command: Command) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    first = command("promote", status.session_id, "2", "--reason", "reviewed by Ada")
    assert first.code == ExitCode.OK
    promoted, back = first.out.splitlines()
    assert promoted == f"#2 {added} is the champion of {status.session_id}"
    assert command.client.session_status(status.session_id).champion_candidate_id == added
    events = command.client.events(status.session_id)["events"]
    assert "reviewed by Ada" in str(events[-1])
    command(*back.partition("prefect-mipro ")[2].split())
    now = command.client.session_status(status.session_id)
    assert now.champion_candidate_id == status.baseline_candidate_id


def test_promoting_the_champion_changes_nothing(command: Command) -> None:
    status = command.session()
    result = command("promote", status.session_id, "1")
    assert result.code == ExitCode.OK
    assert "already" in result.out


def test_a_promotion_as_a_document_is_the_new_status(command: Command) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    found = command("promote", status.session_id, added, "--json").document
    assert found["champion_candidate_id"] == added


def test_a_candidate_is_retired_and_its_place_is_named(command: Command) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    command("promote", status.session_id, added)
    result = command("retire", status.session_id, "2", "--reason", "it is rude")
    assert (result.code, result.out.splitlines()) == (
        ExitCode.OK,
        [f"{added} is retired", f"{status.baseline_candidate_id} is the champion now"],
    )
    shown = command("candidates", status.session_id, added).facts
    assert shown["retired because"] == "it is rude"
    again = command("retire", status.session_id, added)
    assert again.out.startswith("nothing to retire")
    assert command("retire", status.session_id, "1").code == ExitCode.FAILED


def test_a_lever_version_is_retired_with_its_candidates(command: Command) -> None:
    status = command.session()
    added = command.candidate(status, BETTER)
    found = command("retire-lever", status.session_id, "instruction", "2", "--json").document
    assert found["retired_candidates"] == [added]
    unknown = command("retire-lever", status.session_id, "instruction", "9")
    assert unknown.code == ExitCode.NOT_FOUND
    assert "no version 9" in unknown.err
