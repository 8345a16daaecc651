"""Answers on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from prefect_mipro.cli.output import Column, Output, moment, number

COLUMNS = (
    Column("#", right=True),
    Column("state"),
    Column("origin", gives=True),
    Column("text", gives=True),
)
ROWS = [
    ("7", "running", "bootstrap_random", "Name the topic."),
    ("12", "paused", "-", "Name [red]it[/]."),
]


def terminal(width: int, *, color: bool = False) -> tuple[Output, io.StringIO]:
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=True,
        width=width,
        color_system="standard" if color else None,
        highlight=False,
    )
    return Output(stream=stream, console=console), stream


def test_in_a_pipe_columns_are_bare_and_nothing_is_cut_off() -> None:
    stream = io.StringIO()
    Output(stream=stream).table(COLUMNS, ROWS)
    assert stream.getvalue() == (
        " #  STATE    ORIGIN            TEXT\n"
        " 7  running  bootstrap_random  Name the topic.\n"
        "12  paused   -                 Name [red]it[/].\n"
    )


def test_a_terminal_shows_every_column_that_has_room() -> None:
    output, stream = terminal(80)
    output.table(COLUMNS, ROWS)
    assert "bootstrap_random" in stream.getvalue()
    assert "Name the topic." in stream.getvalue()


def test_a_narrow_terminal_cuts_texts_and_keeps_numbers() -> None:
    output, stream = terminal(34)
    output.table(COLUMNS, ROWS)
    shown = stream.getvalue()
    assert "running" in shown
    assert " 12 " in shown
    assert "bootstrap_random" not in shown
    assert max(map(len, shown.splitlines())) <= 34


def test_what_looks_like_markup_in_a_prompt_is_text() -> None:
    output, stream = terminal(80)
    output.table(COLUMNS, ROWS)
    output.passage("prompt", "[bold]Name[/bold] it.")
    assert "Name [red]it[/]." in stream.getvalue()
    assert "[bold]Name[/bold] it." in stream.getvalue()


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_models_words_do_not_steer_the_terminal(on_terminal: bool) -> None:
    output, stream = terminal(80)
    if not on_terminal:
        output = Output(stream=stream)
    output.facts({"champion": "\x1b[2Jgone\x07"})
    output.passage("prompt", "\x1b]0;title\x07 two\nlines")
    output.line("\x1b[31mred")
    output.mark("ok", "\x9b31mred", "\x1b[0m")
    assert not any(character in stream.getvalue() for character in "\x1b\x07\x9b")


def test_words_of_state_have_colors_on_a_terminal() -> None:
    output, stream = terminal(80, color=True)
    output.table(COLUMNS, ROWS)
    assert "\x1b[32mrunning" in stream.getvalue()


def test_facts_that_are_empty_are_left_out() -> None:
    stream = io.StringIO()
    Output(stream=stream).facts({"state": "running", "duel": ""})
    assert stream.getvalue() == "state  running\n"


def test_numbers_and_times_that_are_missing_are_a_dash() -> None:
    assert (number(None), moment(None)) == ("-", "-")
    assert number(0.12345) == "0.123"
    assert moment("2026-11-23T03:04:05+01:00") == "2026-11-23 02:04"
