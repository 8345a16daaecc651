"""What a rollout is worth, in all the forms in which metrics say it."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from prefect_mipro.errors import RewardInvalid
from prefect_mipro.models.judgements import Judgement, judgement, score_of, within


class Tensor:
    """A tensor without dimensions, as far as it is looked at."""

    ndim = 0

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Scored(NamedTuple):
    feedback: str | None
    score: float
    rows: int


@dataclasses.dataclass
class Prediction:
    score: float
    feedback: str | None = None


NUMBERS = {
    "bool": (True, 1.0),
    "int": (1, 1.0),
    "Decimal": (Decimal("0.25"), 0.25),
    "Fraction": (Fraction(1, 4), 0.25),
    "numpy.bool": (np.True_, 1.0),
    "numpy.int64": (np.int64(1), 1.0),
    "numpy.uint8": (np.uint8(1), 1.0),
    "numpy.float16": (np.float16(0.5), 0.5),
    "numpy.float32": (np.float32(0.5), 0.5),
    "numpy.float64": (np.float64(0.5), 0.5),
    "numpy.longdouble": (np.longdouble(0.5), 0.5),
    "array without dimensions": (np.array(0.5), 0.5),
    "array of a bool": (np.array(False), 0.0),
    "tensor": (Tensor(0.5), 0.5),
}


@pytest.mark.parametrize(("value", "score"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_of_all_libraries_are_scores(value: Any, score: float) -> None:
    assert judgement(value) == Judgement(score=score)
    assert type(judgement((value, None)).score) is float
    assert json.loads(Judgement(score=value).model_dump_json())["score"] == score


FEEDBACK = {
    "pair": (0.5, "nearly"),
    "list": [np.float32(0.5), "nearly"],
    "mapping": {"score": 0.5, "feedback": "nearly", "rows": 3},
    "mapping with an older name": {"score": None, "reward": 0.5, "feedback": "nearly"},
    "row of a data frame": pd.Series({"score": 0.5, "feedback": "nearly"}),
    "named tuple": Scored("nearly", 0.5, 3),
    "dataclass": Prediction(0.5, "nearly"),
    "Judgement": Judgement(score=0.5, feedback="nearly"),
}


@pytest.mark.parametrize("value", FEEDBACK.values(), ids=FEEDBACK)
def test_scores_come_with_feedback(value: Any) -> None:
    assert judgement(value) == Judgement(score=0.5, feedback="nearly")


@pytest.mark.parametrize(
    "value",
    [
        (0.5, None),
        (0.5, float("nan")),
        {"score": 0.5, "feedback": pd.NA},
        Prediction(0.5),
    ],
    ids=["None", "NaN", "NA", "default"],
)
def test_feedback_may_be_missing(value: Any) -> None:
    assert judgement(value) == Judgement(score=0.5)


def test_a_mapping_may_tell_the_right_answer() -> None:
    said = {"score": 0, "expected": "music", "metadata": {"turns": 2}}
    assert judgement(said) == Judgement(score=0.0, expected="music", metadata={"turns": 2})


NO_SCORES = {
    "None": (None, "the reward is None; .*leave the rollout out"),
    "NaN": (float("nan"), "the reward is nan; .*leave the rollout out"),
    "NaN of NumPy": (np.float32("nan"), "the reward is np.float32.nan."),
    "NaN with feedback": ((float("nan"), "?"), "the reward is nan"),
    "NaN in a mapping": ({"score": float("nan")}, "the reward is nan"),
    "NA": (pd.NA, "the reward is <NA>"),
    "NaT": (pd.NaT, "the reward is NaT"),
    "masked": (np.ma.masked, "the reward is masked"),
    "signalling NaN": (Decimal("sNaN"), "the reward is Decimal"),
    "infinity": (float("-inf"), "the reward is -inf"),
    "infinity of NumPy": (np.float64("inf"), "the reward is np.float64.inf."),
    "text": ("0.5", r"the reward is '0.5'; .*return float\(text\)"),
    "text of NumPy": (np.str_("0.5"), "the reward is np.str_"),
    "array of a text": (np.array("0.5"), "the reward is array"),
    "array": (np.array([0.5, 1.0]), "with 1 dimensions return one number, such as its mean"),
    "array of one number": (np.array([0.5]), "with 1 dimensions return one number"),
    "matrix": (np.eye(40), "with 2 dimensions"),
    "complex": (1j, "the reward is 1j"),
    "duration": (np.timedelta64(1, "s"), "the reward is np.timedelta64"),
    "too large": (10**400, "the reward is too large"),
    "much too large": (10**5_000, "the reward is too large"),
    "tensor on no device": (Tensor(RuntimeError("meta")), "the reward is <"),
    "empty tuple": ((), r"the reward is \(\)"),
    "tuple of one": ((0.5,), r"the reward is \(0.5,\)"),
    "three": ((0.5, "a", "b"), r"the reward is \(0.5, 'a', 'b'\)"),
    "two numbers": ((0.5, 0.5), "the feedback of the reward is 0.5; give text or leave it out"),
    "mapping without": ({"accuracy": 1}, "the reward is {'accuracy': 1}; .* with a score"),
    "answer that is no text": ({"score": 1, "expected": 3}, "the expected of the reward is 3"),
    "function": (len, "the reward is <built-in function len>; give or return a finite number"),
}


@pytest.mark.parametrize(("value", "sentence"), NO_SCORES.values(), ids=NO_SCORES)
def test_what_is_no_score_is_named_with_the_way_out(value: Any, sentence: str) -> None:
    with pytest.raises(RewardInvalid, match=sentence):
        judgement(value)


def test_the_message_is_short() -> None:
    with pytest.raises(RewardInvalid) as raised:
        score_of(np.zeros((100, 100)))
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("score", "border"),
    [
        (1.0000000000000002, 1.0),
        (1.0000001192092896, 1.0),
        (-2.220446049250313e-16, -0.0),
        (-0.9e-6, 0.0),
        (0.3, 0.3),
    ],
)
def test_a_score_outside_the_range_by_a_rounding_is_its_border(score: float, border: float) -> None:
    assert within(score, (0.0, 1.0)) == border
    assert within(10 * score - 5, (-5.0, 5.0)) == pytest.approx(10 * border - 5)


@pytest.mark.parametrize("score", [1.2, 1.000002, -0.000002])
def test_a_score_further_outside_names_the_setting(score: float) -> None:
    with pytest.raises(
        RewardInvalid, match=rf"{score} is outside \[0.0, 1.0\]; set .*reward_range"
    ):
        within(score, (0.0, 1.0))
