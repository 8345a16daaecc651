"""Tool calls that come in pieces, as servers of models cut them."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.server.upstream.tool_calls import LONGEST_TEXT, MOST_CALLS, ToolCalls


def whole(*deltas: Any) -> list[Any]:
    """What the `tool_calls` of these deltas come to."""
    calls = ToolCalls()
    for pieces in deltas:
        calls.feed(pieces)
    return calls.whole


def piece(index: Any, arguments: str = "", **more: Any) -> dict[str, Any]:
    """A piece of a call of a function; `name` is that of the function."""
    function = {"arguments": arguments}
    if "name" in more:
        function["name"] = more.pop("name")
    return {"index": index, "function": function, **more}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def test_pieces_are_joined_by_their_index() -> None:
    assert whole(
        [piece(0, id="a", type="function", name="weather")],
        [piece(0, '{"place":')],
        [piece(1, id="b", type="function", name="time")],
        [piece(0, ' "Basel"}'), piece(1, "{}")],
    ) == [call("a", "weather", '{"place": "Basel"}'), call("b", "time", "{}")]


def test_what_servers_say_again_in_each_piece_is_said_once() -> None:
    again = {"id": "a", "type": "function", "name": "weather"}
    assert whole([piece(0, "{", **again)], [piece(0, "}", **again)]) == [call("a", "weather", "{}")]


def test_what_is_empty_later_takes_nothing_away() -> None:
    first = piece(0, "{", id="a", type="function", name="weather")
    later = piece(0, "}", id="", type=None, name="")
    assert whole([first], [later]) == [call("a", "weather", "{}")]


@pytest.mark.parametrize("index", [0, None, "x", []])
def test_another_id_begins_another_call_where_all_have_one_index(index: Any) -> None:
    assert whole(
        [piece(index, "{}", id="a", type="function", name="weather")],
        [piece(index, "{}", id="b", type="function", name="time")],
        [piece(index, " ")],
    ) == [call("a", "weather", "{}"), call("b", "time", "{} ")]


def test_other_kinds_of_tools_and_unknown_fields_are_kept() -> None:
    begin = {"index": 0, "id": "a", "type": "custom", "x_seen": True, "custom": {"name": "sql"}}
    assert whole(
        [begin], [{"index": 0, "custom": {"input": "SELECT"}}], [{"custom": {"input": " 1"}}]
    ) == [
        {"id": "a", "type": "custom", "x_seen": True, "custom": {"name": "sql", "input": "SELECT"}},
        {"custom": {"input": " 1"}},
    ]


@pytest.mark.parametrize("nonsense", [None, 5, "x", {}, [None, 5, "x"], [{"function": 5}]])
def test_what_is_no_piece_is_no_call_with_arguments(nonsense: Any) -> None:
    assert all("arguments" not in str(found) for found in whole(nonsense))


def test_a_tool_that_is_none_at_first_does_no_harm() -> None:
    broken = {"index": 0, "id": "a", "type": "function", "function": "weather"}
    assert whole([broken], [piece(0, "{}", name="weather")]) == [call("a", "weather", "{}")]


def test_what_is_kept_of_an_endless_answer_is_bounded() -> None:
    many = whole([piece(index) for index in range(2 * MOST_CALLS)])
    assert len(many) == MOST_CALLS
    long = whole(*([piece(0, "x" * 1_000)] for _ in range(2 * LONGEST_TEXT // 1_000)))
    assert len(long[0]["function"]["arguments"]) == LONGEST_TEXT
