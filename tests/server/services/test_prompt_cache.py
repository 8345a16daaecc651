"""Caches of the services: bounded by memory, the value used last stays."""

from __future__ import annotations

from prefect_mipro.server.services.session_cache import Recent, session_bytes
from tests.server.store.records import session


def test_what_was_used_last_stays_and_the_rest_makes_room() -> None:
    recent: Recent[str] = Recent(100)
    for key in ("a", "b"):
        recent.put(key, key.upper(), size_bytes=40)
    assert recent.get("a") == "A"
    recent.put("c", "C", size_bytes=40)
    assert [recent.get(key) for key in ("a", "b", "c")] == ["A", None, "C"]


def test_a_value_that_is_put_again_or_dropped_gives_its_room_back() -> None:
    recent: Recent[int] = Recent(100)
    recent.put("a", 1, size_bytes=60)
    for size in (60, 50):
        recent.put("b", size, size_bytes=size)
        recent.put("a", size, size_bytes=100 - size)
    assert (recent.get("a"), recent.get("b")) == (50, 50)
    recent.drop("b")
    recent.drop("unknown")
    recent.put("c", 3, size_bytes=50)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (50, None, 3)


def test_one_that_is_too_large_stands_alone() -> None:
    recent: Recent[int] = Recent(100)
    recent.put("a", 1, size_bytes=60)
    recent.put("b", 2, size_bytes=1_000)
    assert (recent.get("a"), recent.get("b")) == (None, 2)
    recent.put("c", 3, size_bytes=60)
    assert (recent.get("b"), recent.get("c")) == (None, 3)


def test_sessions_count_with_the_texts_and_entries_of_config_and_metadata() -> None:
    small = session_bytes(session())
    texts = session_bytes(session(config={"text": "x" * 10_000}, metadata={"text": "x" * 10_000}))
    entries = session_bytes(session(config={"list": [{"a": ""}] * 1_000}))
    assert 19_000 < texts - small < 30_000
    assert 200_000 < entries - small < 1_000_000
