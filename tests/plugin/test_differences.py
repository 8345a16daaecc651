"""What changed between two prompts: exact, short, and harmless as markdown."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_mipro.artifacts.differences import difference
from tests.plugin.markdown import active


def test_new_words_are_bold_and_old_ones_struck_out() -> None:
    assert difference("Name the intent", "Name one intent") == "Name ~~the~~ **one** intent"


def test_neighbours_share_their_marks() -> None:
    shown = difference("Say a b c d e f", "Say a b c d x y")
    assert shown == "Say a b c d ~~e f~~ **x y**"


def test_the_same_text_is_not_shown_again() -> None:
    assert difference("Same.", "Same.") == "The instruction is the same."


def test_a_text_written_anew_shows_what_was_there_before() -> None:
    shown = difference("Name the intent of it.", "Antworte mit genau einem Wort!")
    assert shown.endswith("```text\nName the intent of it.\n```")


def test_long_stretches_without_a_change_are_left_out() -> None:
    words = [f"w{n}" for n in range(200)]
    shown = difference(" ".join(words), " ".join([*words[:100], "new", *words[100:]]))
    assert "*… 85 words …* w85" in shown
    assert "w99 **new** w100" in shown
    assert shown.endswith("w114 *… 85 words …*")


def test_marks_end_with_their_line() -> None:
    shown = difference("keep this and that\nold one", "keep this and that\nnew one\n\nnewer text")
    assert shown.split("  \n") == [
        "keep this and that",
        "~~old~~ **new** one",
        "",
        "**newer text**",
    ]


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "[a](javascript:b)", "![x](http://evil)", "**bold**", "# Head"],
)
def test_foreign_text_can_only_be_read(hostile: str) -> None:
    shown = difference(
        "Name the intent of this request.", f"Name the intent of this request. {hostile}"
    )
    assert read(shown).endswith(f"**{hostile}**")
    assert not active(shown)


@given(st.text(st.sampled_from("ab c\n*_~.#`<>&[]()|-"), max_size=60))
def test_the_new_text_can_be_read_off(text: str) -> None:
    before = f"one two three four {text[:20]}"
    after = f"one two three four {text}"
    shown = difference(before, after)
    if before != after and not shown.startswith("The instruction was written anew"):
        kept = re.sub(r"~~(?:\\.|[^~\\])*~~", "", shown)
        assert read(kept.replace("**", "")).split() == after.split()


def read(markdown: str) -> str:
    """The text that a reader sees."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", markdown)
