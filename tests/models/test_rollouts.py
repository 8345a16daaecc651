"""What a reward's metadata names."""

from __future__ import annotations

import pytest

from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.rollouts import user_of


@pytest.mark.parametrize(
    ("metadata", "user"),
    [
        ({"user": "ada"}, "ada"),
        ({"user": " ada "}, "ada"),
        ({"user": 7}, "7"),
        ({"user": 0}, "0"),
        ({"user": ""}, None),
        ({"user": True}, None),
        ({"user": {"id": 7}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_user_is_text_or_a_whole_number(metadata: JsonObject | None, user: str | None) -> None:
    assert user_of(metadata) == user
