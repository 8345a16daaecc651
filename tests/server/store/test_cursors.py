"""Cursors: what was encoded comes back, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_mipro.errors import InputInvalid
from prefect_mipro.server.store.records import decode_cursor, encode_cursor


@given(number=st.integers(), text=st.text(st.characters(exclude_categories=["Cs"])))
def test_a_key_comes_back_as_it_was(number: int, text: str) -> None:
    cursor = encode_cursor(number, text)
    assert decode_cursor(cursor, int, str) == (number, text)


@given(cursor=st.text())
def test_any_other_text_is_invalid_input(cursor: str) -> None:
    with pytest.raises(InputInvalid, match="next_cursor"):
        decode_cursor(cursor, int, str)


def test_a_cursor_of_another_list_is_invalid_input() -> None:
    with pytest.raises(InputInvalid):
        decode_cursor(encode_cursor("s1", 5), int, str)
