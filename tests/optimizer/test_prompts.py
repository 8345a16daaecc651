"""A candidate's prompt takes the baseline's place, and the caller's data stays."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_mipro.models.chat import ChatMessage, InitialPrompt, PromptMessage
from prefect_mipro.models.levers import Demonstration
from prefect_mipro.models.placeholders import fill, placeholders
from prefect_mipro.optimizer.prompts import (
    Applied,
    answer_text,
    apply,
    match,
    normalised,
    user_text,
)

NEW = "Name the intent in one word."


def system(content: Any, role: str = "system") -> ChatMessage:
    return {"role": role, "content": content}


def user(content: Any) -> ChatMessage:
    return {"role": "user", "content": content}


def assistant(content: Any) -> ChatMessage:
    return {"role": "assistant", "content": content}


def prompt(*patterns: tuple[str, str], wildcards: Mapping[str, str] | None = None) -> InitialPrompt:
    messages = [
        {"role": role, "pattern": pattern, "order": order}
        for order, (role, pattern) in enumerate(patterns)
    ]
    return InitialPrompt.model_validate({"messages": messages, "wildcards": wildcards or {}})


PLAIN = prompt(("system", "Classify the request."), ("user", "{query}"))


def applied(
    messages: Sequence[ChatMessage],
    *,
    to: InitialPrompt | None = PLAIN,
    instruction: str = NEW,
    demonstrations: Sequence[tuple[str, str]] = (),
) -> Applied:
    shown = [Demonstration(input=asked, output=answer) for asked, answer in demonstrations]
    return apply(messages, prompt=to, instruction=instruction, demonstrations=shown)


def sent(messages: Sequence[ChatMessage], **arguments: Any) -> list[ChatMessage]:
    result = applied(messages, **arguments)
    assert result.reason == ""
    return list(result.messages)


# The instruction


def test_the_instruction_takes_the_place_of_the_system_text() -> None:
    assert sent([system("Classify the request."), user("play jazz")]) == [
        system(NEW),
        user("play jazz"),
    ]


def test_white_space_at_the_ends_does_not_matter() -> None:
    assert sent([system("\n  Classify the request.\n\n"), user("x")])[0] == system(NEW)


def test_messages_that_do_not_change_are_the_same_objects() -> None:
    messages = [system("Classify the request."), user("play jazz")]
    before = [dict(message) for message in messages]
    result = sent(messages, demonstrations=[("wake me", "alarm")])
    assert result[-1] is messages[1]
    assert messages == before


def test_the_prompts_own_instruction_leaves_the_callers_text_as_it_is() -> None:
    messages = [system("Classify the request. \n"), user("play jazz")]
    result = sent(messages, instruction="Classify the request.")
    assert result[0] is messages[0]


@pytest.mark.parametrize(("expected", "came"), [("system", "developer"), ("developer", "system")])
def test_system_and_developer_are_one_role_and_the_callers_stays(expected: str, came: str) -> None:
    known = prompt((expected, "Classify."), ("user", "{query}"))
    result = sent([system("Classify.", role=came), user("x")], to=known)
    assert result[0] == system(NEW, role=came)


def test_other_fields_of_the_system_message_stay() -> None:
    message = {**system("Classify the request."), "name": "guide", "cache": {"ttl": 5}}
    assert sent([message, user("x")])[0] == {**message, "content": NEW}


def test_only_the_recognised_one_of_several_system_messages_changes() -> None:
    messages = [system("House rules."), system("Classify the request."), user("x")]
    result = sent(messages)
    assert result[0] is messages[0]
    assert result[1] == system(NEW)


def test_a_prompt_of_only_a_user_message_gets_a_system_message() -> None:
    known = prompt(("user", "Classify: {query}"))
    assert sent([user("Classify: play jazz")], to=known) == [
        system(NEW),
        user("Classify: play jazz"),
    ]


def test_the_second_system_pattern_of_a_prompt_is_the_callers_own() -> None:
    known = prompt(("system", "Classify."), ("system", "Today is {day}."), ("user", "{query}"))
    messages = [system("Classify."), system("Today is Monday."), user("x")]
    result = sent(messages, to=known)
    assert result == [system(NEW), messages[1], messages[2]]


def test_patterns_are_matched_by_order_not_by_position() -> None:
    known = InitialPrompt(
        messages=(
            PromptMessage(role="user", pattern="{query}", order=2),
            PromptMessage(role="system", pattern="Classify.", order=1),
        )
    )
    assert sent([system("Classify."), user("x")], to=known)[0] == system(NEW)


# Placeholders


def test_placeholders_of_the_system_text_are_filled_into_the_new_instruction() -> None:
    known = prompt(("system", "Sort the mail of {name}."), ("user", "{query}"))
    result = sent([system("Sort the mail of Zoë."), user("x")], to=known, instruction="For {name}:")
    assert result[0] == system("For Zoë:")


def test_a_filled_text_is_never_filled_again() -> None:
    known = prompt(("system", "Sort for {name}, {place}."), ("user", "{query}"))
    messages = [system("Sort for {place}, Oslo."), user("x")]
    assert sent(messages, to=known, instruction="{name} in {place}")[0] == system("{place} in Oslo")


def test_a_required_placeholder_must_hold_something_visible() -> None:
    known = prompt(
        ("system", "Classify."), ("user", "Query: {query}"), wildcards={"query": "REQUIRED"}
    )
    result = applied([system("Classify."), user("Query:  ")], to=known)
    assert result.messages == (system("Classify."), user("Query:  "))
    assert "expects a user message 'Query: {query}', and got 'Query:'" in result.reason


@pytest.mark.parametrize(
    "text", ["Query: a\nIntents: ", "Query: a\nIntents:", "Query: a\nIntents: b"]
)
def test_an_optional_placeholder_may_be_empty(text: str) -> None:
    known = prompt(
        ("user", "Query: {query}\nIntents: {intents}"), wildcards={"intents": "OPTIONAL"}
    )
    assert applied([user(text)], to=known).reason == ""


def test_json_braces_are_text() -> None:
    pattern = 'Answer as {"intent": "...", "sure": {}} for {query} {1} {a b}'
    assert placeholders(pattern) == ("query",)
    assert match(pattern, pattern.replace("{query}", "jazz")) == {"query": "jazz"}
    assert fill(pattern, {"query": "jazz", "1": "no"}) == pattern.replace("{query}", "jazz")


@pytest.mark.parametrize(
    ("pattern", "values"),
    [
        ("Hello {{name}}", {}),
        ('Answer as {{"label": "{label}", "sure": {{}}}}', {"label": "a"}),
        ("\\boxed{{{answer}}}", {"answer": "7"}),
        ("{{{{{a}}}}} {{ {b}", {"a": "1", "b": "2"}),
    ],
)
def test_a_pattern_matches_what_str_format_makes_of_it(
    pattern: str, values: dict[str, str]
) -> None:
    assert match(pattern, pattern.format(**values)) == values
    assert fill(pattern, values) == pattern.format(**values)


def test_without_a_prompt_an_instruction_is_no_pattern() -> None:
    text = "Answer as {{label}} for {you}."
    assert sent([user("x")], to=None, instruction=text)[0] == system(text)


@pytest.mark.parametrize(
    ("pattern", "text", "values"),
    [
        ("{a}", "line one\nline two", {"a": "line one\nline two"}),
        ("{a}-{b}", "1-2-3", {"a": "1", "b": "2-3"}),
        ("({a}) [{b}]", "(.*) [x+?]", {"a": ".*", "b": "x+?"}),
        ("{a} and {a}!", "you and you!", {"a": "you"}),
        ("{a} and {a}!", "you and me!", None),
        ("from {a} to {b}.", "from x to y", None),
        ("ab{a}b", "ab", None),
        ("{a}{b}", "xy", {"a": "", "b": "xy"}),
        ("{a} ist {b}", "日本 ist 🗾", {"a": "日本", "b": "🗾"}),
        ("{a}\nThe end", "The end", {"a": ""}),
        ("no placeholder", "no placeholder", {}),
        ("no placeholder", "no placeholders", None),
    ],
)
def test_matching(pattern: str, text: str, values: dict[str, str] | None) -> None:
    assert match(pattern, text) == values


def test_a_required_placeholder_takes_a_separator_rather_than_nothing() -> None:
    assert match("{a},{b}", ",,x", required=frozenset({"a"})) == {"a": ",", "b": "x"}


def test_hostile_text_takes_no_longer_than_its_length_deserves() -> None:
    pattern = "".join(f"{{w{number}}}a" for number in range(50)) + "b"
    assert match(pattern, "a" * 1_000_000) is None


# What does not match


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([user("x")], "expects a system message 'Classify the request.', and no system message"),
        ([system("You are a pirate."), user("x")], "and got 'You are a pirate.'"),
        (
            [system("Classify the request.")],
            "expects a user message '{query}', and no user message",
        ),
        ([user("x"), system("Classify the request.")], "no user message is left"),
        ([], "no system message is left"),
    ],
)
def test_what_does_not_match_passes_unchanged_and_says_why(
    messages: list[ChatMessage], words: str
) -> None:
    result = applied(messages, demonstrations=[("wake me", "alarm")])
    assert all(a is b for a, b in zip(result.messages, messages, strict=True))
    assert words in result.reason


def test_the_reason_quotes_only_the_start_of_long_texts() -> None:
    result = applied([system("secret " * 1_000), user("x")])
    assert len(result.reason) < 300


# Without a prompt


def test_without_a_prompt_the_first_system_message_is_replaced() -> None:
    messages = [system("Anything."), system("More."), user("x")]
    assert sent(messages, to=None) == [system(NEW), messages[1], messages[2]]


def test_without_a_prompt_and_a_system_message_one_is_put_in() -> None:
    assert sent([user("x")], to=None) == [system(NEW), user("x")]


def test_without_a_prompt_an_empty_instruction_keeps_the_callers_own() -> None:
    messages = [system("Anything."), user("x")]
    assert sent(messages, to=None, instruction="") == messages


# Demonstrations


def test_demonstrations_are_turns_before_the_conversation() -> None:
    messages = [system("Classify the request."), user("hi"), assistant("yes?"), user("play jazz")]
    assert sent(messages, demonstrations=[("wake me", "alarm"), ("rain?", "weather")]) == [
        system(NEW),
        user("wake me"),
        assistant("alarm"),
        user("rain?"),
        assistant("weather"),
        *messages[1:],
    ]


def test_tool_calls_and_their_results_stay_together() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    answer = {"role": "tool", "tool_call_id": "1", "content": "12"}
    messages = [system("Classify the request."), user("x"), call, answer]
    assert sent(messages, demonstrations=[("q", "a")])[-3:] == messages[1:]


def test_the_demonstration_of_what_is_asked_is_left_out() -> None:
    messages = [system("Classify the request."), user("Play  JAZZ\n")]
    result = sent(messages, demonstrations=[("play jazz", "music"), ("wake me", "alarm")])
    assert [m["content"] for m in result[1:3]] == ["wake me", "alarm"]
    assert len(result) == 4


def test_the_demonstration_of_an_earlier_turn_is_left_out_too() -> None:
    messages = [system("Classify the request."), user("play jazz"), assistant("?"), user("now!")]
    assert sent(messages, demonstrations=[("play jazz", "music")]) == [system(NEW), *messages[1:]]


def test_the_demonstration_of_the_rollouts_own_example_is_left_out_whatever_its_words() -> None:
    own = Demonstration(input="Monday: play jazz", output="music", example_id="7")
    other = Demonstration(input="wake me", output="alarm", example_id="8")
    unnamed = Demonstration(input="rain?", output="weather")
    messages = [system("Classify the request."), user("Tuesday: play jazz")]
    result = apply(
        messages,
        prompt=PLAIN,
        instruction=NEW,
        demonstrations=[own, other, unnamed],
        example_id="7",
    )
    assert [m["content"] for m in result.messages[1::2]] == [
        "wake me",
        "rain?",
        "Tuesday: play jazz",
    ]


def test_without_an_example_id_no_unnamed_demonstration_is_left_out() -> None:
    messages = [system("Classify the request."), user("play jazz")]
    assert len(sent(messages, demonstrations=[("wake me", "alarm")])) == 4


@pytest.mark.parametrize("content", ["hi", [{"type": "text", "text": "hi"}], "  hi\n\n", "{x}"])
def test_zero_shot_is_the_instruction_in_the_baselines_place_byte_for_byte(content: Any) -> None:
    before = [
        {"role": "system", "content": "Classify the request.", "name": "s"},
        {"role": "user", "content": content, "name": "u"},
    ]
    expected = json.dumps(before).replace("Classify the request.", NEW)
    assert json.dumps(list(applied(before).messages)) == expected


def test_demonstrations_follow_an_inserted_system_message() -> None:
    result = sent([user("x")], to=None, demonstrations=[("q", "a")])
    assert [m["role"] for m in result] == ["system", "user", "assistant", "user"]


# Messages of parts

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def test_a_user_message_with_an_image_is_matched_on_its_text_and_kept() -> None:
    message = user([{"type": "text", "text": "what is this"}, IMAGE])
    result = sent([system("Classify the request."), message])
    assert result[1] is message


def test_parts_of_the_system_message_that_are_not_text_stay_in_place() -> None:
    parts = [
        IMAGE,
        {"type": "text", "text": "Classify", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "it."},
    ]
    known = prompt(("system", "Classify\nit."))
    assert sent([system(parts)], to=known)[0]["content"] == [
        IMAGE,
        {"type": "text", "text": NEW, "cache_control": {"type": "ephemeral"}},
    ]


def test_a_system_message_without_text_gets_one() -> None:
    parts = [IMAGE]
    assert sent([system(parts)], to=None)[0]["content"] == [{"type": "text", "text": NEW}, IMAGE]


@pytest.mark.parametrize("content", [None, 7, [], [None], ["x"], [{"type": "text"}]])
def test_odd_contents_have_no_text(content: object) -> None:
    assert user_text([{"role": "user", "content": content}]) == ""


@pytest.mark.parametrize("role", [None, 7, ["system"], {}])
def test_odd_roles_are_nobodys(role: object) -> None:
    message = {"role": role, "content": "x"}
    assert sent([message], to=None) == [system(NEW), message]


# Texts


def test_the_user_text_is_that_of_the_last_user_message() -> None:
    assert user_text([user("a"), user("b"), assistant("c")]) == "b"
    assert user_text([assistant("c")]) == ""


@pytest.mark.parametrize(
    ("response", "text"),
    [
        ({"choices": [{"message": {"content": "yes"}}]}, "yes"),
        ({"choices": [{"message": {"content": [{"type": "text", "text": "yes"}]}}]}, "yes"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, ""),
        ({"choices": [{"message": None}]}, ""),
        ({"choices": [{}]}, ""),
        ({"choices": []}, ""),
        ({"choices": None}, ""),
        ({"error": {}}, ""),
        (None, ""),
    ],
)
def test_the_answer_text_of_any_response(response: dict[str, Any] | None, text: str) -> None:
    assert answer_text(response) == text


def test_normalised_texts_ignore_case_and_white_space_only() -> None:
    assert normalised(" Straße\n 1 ") == normalised("STRASSE 1")
    assert normalised("a-b") != normalised("a b")


# Properties

NAMES = st.lists(
    st.text(string.ascii_lowercase, min_size=1, max_size=6), min_size=1, max_size=4, unique=True
)
LITERAL = st.text('#"{}:[]', min_size=1, max_size=5)
VALUE = st.text(string.ascii_letters + "é\n ", max_size=20)


@st.composite
def filled(draw: st.DrawFn) -> tuple[str, dict[str, str]]:
    names = draw(NAMES)
    literals = draw(st.lists(LITERAL, min_size=len(names) + 1, max_size=len(names) + 1))
    pattern = literals[0] + "".join(
        f"{{{name}}}{literal}" for name, literal in zip(names, literals[1:], strict=True)
    )
    return pattern, {name: draw(VALUE) for name in names}


@settings(max_examples=200)
@given(filled())
def test_what_was_filled_in_is_found_again(case: tuple[str, dict[str, str]]) -> None:
    pattern, values = case
    named = {name: values[name] for name in placeholders(pattern)}
    assert match(pattern, fill(pattern, values)) == named


@settings(max_examples=200)
@given(st.text('ab {x}{y}"\n', max_size=30), st.text("ab xy{}\n", max_size=60))
def test_a_match_always_explains_the_text(pattern: str, text: str) -> None:
    values = match(pattern, text)
    if values is not None:
        assert fill(pattern.strip(), values).strip() == text.strip()


CONTENT = (
    st.none() | st.text(max_size=20) | st.lists(st.none() | st.dictionaries(st.text(), st.text()))
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer"])},
    optional={"content": CONTENT},
)


@settings(max_examples=200)
@given(st.lists(MESSAGE, max_size=6))
def test_messages_of_another_program_stay_untouched(messages: list[ChatMessage]) -> None:
    known = prompt(("system", "A prompt that no one sends."), ("user", "{query}"))
    result = applied(messages, to=known, demonstrations=[("q", "a")])
    assert result.reason
    assert all(a is b for a, b in zip(result.messages, messages, strict=True))


@settings(max_examples=200)
@given(st.lists(MESSAGE, max_size=6))
def test_without_a_prompt_every_message_but_the_instruction_survives(
    messages: list[ChatMessage],
) -> None:
    result = sent(messages, to=None, demonstrations=[("q", "a")])
    kept = [m for m in messages if any(m is other for other in result)]
    lost = len(messages) - len(kept)
    assert lost == (1 if any(m["role"] in {"system", "developer"} for m in messages) else 0)
