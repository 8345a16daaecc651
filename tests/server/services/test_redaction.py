"""What is kept of texts: all, digests, or nothing; the stricter of server and session counts."""

from __future__ import annotations

import pytest

from prefect_mipro.config import MiproConfig, TraceContent
from prefect_mipro.models.exports import Part
from prefect_mipro.server.services.redaction import NOT_KEPT, Redaction
from tests.server.services.conftest import config_of
from tests.server.store.records import reward, session, trace

SAID = "my card is 4111 1111"
FULL, HASHES, OFF = TraceContent
SESSION = session()
SPOKEN = trace(
    messages=(
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": SAID},
        {"role": SAID, "content": [{"type": "text", "text": SAID}], "name": SAID},
    ),
    response={"choices": [{"message": {"content": SAID}}]},
    input=SAID,
    output=SAID,
    unapplied_reason=SAID,
    status=502,
    error=SAID,
)
REWARDED = reward(
    feedback=SAID,
    expected=SAID,
    artifact={SAID: SAID},
    metadata={"expected": SAID, "example_id": "e7", "seed": 7, "turns": 3},
    example_id="e7",
)


def config(content: TraceContent = FULL) -> MiproConfig:
    return MiproConfig.parse(config_of(trace_content=str(content)))


@pytest.mark.parametrize(
    ("server", "of_session", "kept"),
    [
        (FULL, FULL, FULL),
        (FULL, HASHES, HASHES),
        (HASHES, FULL, HASHES),
        (OFF, HASHES, OFF),
        (HASHES, OFF, OFF),
    ],
)
def test_the_stricter_one_counts(
    server: TraceContent, of_session: TraceContent, kept: TraceContent
) -> None:
    assert Redaction(server).of(config(of_session)) is kept


def test_where_all_is_kept_nothing_changes() -> None:
    assert Redaction().trace(SPOKEN, SESSION, config()) is SPOKEN
    assert Redaction().reward(REWARDED, SESSION, config()) is REWARDED
    assert Redaction().warnings(config()) == []


@pytest.mark.parametrize("content", [HASHES, OFF])
def test_no_word_is_left_in_a_trace_or_a_reward(content: TraceContent) -> None:
    kept = Redaction(content).trace(SPOKEN, SESSION, config())
    assert SAID not in kept.model_dump_json()
    assert (kept.error, kept.unapplied_reason) == (NOT_KEPT, NOT_KEPT)
    assert SAID not in Redaction(content).reward(REWARDED, SESSION, config()).model_dump_json()


@pytest.mark.parametrize("content", [HASHES, OFF])
def test_numbers_and_ids_stay(content: TraceContent) -> None:
    words = {"messages", "response", "input", "output", "unapplied_reason", "error"}
    kept = Redaction(content).trace(SPOKEN, SESSION, config())
    assert kept.model_dump(exclude=words) == SPOKEN.model_dump(exclude=words)
    rewarded = Redaction(content).reward(REWARDED, SESSION, config())
    assert (rewarded.score, rewarded.example_id) == (REWARDED.score, "e7")
    assert rewarded.metadata is not None
    assert rewarded.metadata["seed"] == 7


def test_nothing_is_invented_where_nothing_was_said() -> None:
    silent = trace(messages=(), response=None, input="", output="")
    assert Redaction(HASHES).trace(silent, SESSION, config()) == silent
    assert Redaction(HASHES).reward(reward(), SESSION, config()) == reward()


def test_equal_texts_of_a_session_have_equal_digests_and_those_of_another_differ() -> None:
    def digest(digest_key: str) -> str:
        kept = Redaction(HASHES).trace(SPOKEN, session(digest_key=digest_key), config())
        return str(kept.messages[1]["content"])

    assert digest("1" * 32) == digest("1" * 32) != digest("2" * 32)
    kept = Redaction(HASHES).trace(SPOKEN, SESSION, config())
    assert kept.response == {"digest": kept.messages[1]["content"]}
    assert [message["role"] for message in kept.messages] == ["system", "user", "other"]


def test_what_off_leaves_of_a_trace_is_no_text_at_all() -> None:
    kept = Redaction(OFF).trace(SPOKEN, SESSION, config())
    assert (kept.messages, kept.response) == ((), None)


def test_the_loss_is_told() -> None:
    (warning,) = Redaction(HASHES).warnings(config())
    assert "only digests" in warning
    assert "nothing is learned from what was said" in warning


@pytest.mark.parametrize("content", [HASHES, OFF])
def test_what_comes_in_with_an_import_is_kept_no_better(content: TraceContent) -> None:
    sensors = [{"name": "status", "metadata": {"error": SAID}}]
    call = {**SPOKEN.model_dump(mode="json"), "frame": {"sensors": sensors}}
    redaction = Redaction(content)
    for part, row in (
        (Part.TRACE, call),
        (Part.REWARD, REWARDED.model_dump(mode="json")),
    ):
        assert SAID not in str(redaction.rows(part, [row], SESSION))
    (rollout,) = redaction.rows(Part.ROLLOUT, [{"example_trace_id": "trace_1"}], SESSION)
    assert rollout == {"example_trace_id": None}


@pytest.mark.parametrize("row", [{}, {"messages": 7, "frame": 7}, {"messages": [SAID]}])
def test_a_line_that_is_no_trace_holds_no_words_either(row: dict[str, object]) -> None:
    assert SAID not in str(Redaction(HASHES).rows(Part.TRACE, [row], SESSION))
