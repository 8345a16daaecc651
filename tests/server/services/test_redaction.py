"""What is kept of texts: all, or nothing; the stricter of server and session counts."""

from __future__ import annotations

import pytest

from prefect_mipro.config import MiproConfig, TraceContent
from prefect_mipro.models.exports import Part
from prefect_mipro.server.services.privacy import NOT_KEPT, Redaction, digest
from tests.server.services.conftest import config_of
from tests.server.store.records import reward, session, trace

SAID = "my card is 4111 1111"
FULL, OFF = TraceContent
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


@pytest.mark.parametrize(("server", "of_session"), [(FULL, OFF), (OFF, FULL), (OFF, OFF)])
def test_the_stricter_one_counts(server: TraceContent, of_session: TraceContent) -> None:
    redaction = Redaction(server)
    assert not redaction.keeps_all(config(of_session))
    (warning,) = redaction.warnings(config(of_session))
    assert "nothing is learned from what was said" in warning


def test_where_all_is_kept_nothing_changes() -> None:
    assert Redaction().trace(SPOKEN, config()) is SPOKEN
    assert Redaction().reward(REWARDED, config()) is REWARDED
    assert Redaction().warnings(config()) == []


def test_no_word_is_left_in_a_trace_or_a_reward() -> None:
    kept = Redaction(OFF).trace(SPOKEN, config())
    assert SAID not in kept.model_dump_json()
    assert (kept.messages, kept.response) == ((), None)
    assert (kept.error, kept.unapplied_reason) == (NOT_KEPT, NOT_KEPT)
    assert SAID not in Redaction(OFF).reward(REWARDED, config()).model_dump_json()


def test_numbers_and_ids_stay() -> None:
    words = {"messages", "response", "input", "output", "unapplied_reason", "error"}
    kept = Redaction(OFF).trace(SPOKEN, config())
    assert kept.model_dump(exclude=words) == SPOKEN.model_dump(exclude=words)
    rewarded = Redaction(OFF).reward(REWARDED, config())
    assert (rewarded.score, rewarded.example_id) == (REWARDED.score, "e7")
    assert rewarded.metadata == {"example_id": "e7", "seed": 7}


def test_nothing_is_invented_where_nothing_was_said() -> None:
    silent = trace(messages=(), response=None, input="", output="")
    assert Redaction(OFF).trace(silent, config()) == silent
    assert Redaction(OFF).reward(reward(), config()) == reward()


def test_equal_texts_of_a_session_have_equal_digests_and_those_of_another_differ() -> None:
    one, another = session(digest_key="1" * 32), session(digest_key="2" * 32)
    assert digest(one, SAID) == digest(one, SAID) != digest(another, SAID)
    assert SAID not in digest(one, SAID)


def test_what_comes_in_with_an_import_is_kept_no_better() -> None:
    redaction = Redaction(OFF)
    for part, row in (
        (Part.TRACE, SPOKEN.model_dump(mode="json")),
        (Part.REWARD, REWARDED.model_dump(mode="json")),
    ):
        assert SAID not in str(redaction.rows(part, [row]))
    (rollout,) = redaction.rows(Part.ROLLOUT, [{"example_trace_id": "trace_1"}])
    assert rollout == {"example_trace_id": None}


@pytest.mark.parametrize("row", [{}, {"messages": 7}, {"messages": [SAID]}])
def test_a_line_that_is_no_trace_holds_no_words_either(row: dict[str, object]) -> None:
    assert SAID not in str(Redaction(OFF).rows(Part.TRACE, [row]))
