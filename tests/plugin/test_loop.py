"""The parts of the loop that need no server: which example comes when, and what is recorded."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from itertools import islice
from typing import Any

import pytest

from prefect_mipro.flows import optimize_prompt
from prefect_mipro.flows.budget import Budget
from prefect_mipro.flows.loop import is_coroutine_function, stream
from prefect_mipro.flows.recording import recorded

ROWS = list("abcdefg")


def first(count: int, *, seed: int = 0, start: int = 0) -> list[tuple[int, str]]:
    return list(islice(stream(ROWS, seed=seed, start=start), count))


def test_each_pass_over_the_examples_has_every_example_once() -> None:
    examples = [example for _, example in first(21)]
    assert Counter(examples) == Counter(ROWS * 3)
    assert sorted(examples[:7]) == sorted(examples[7:14]) == ROWS


def test_each_pass_has_an_order_of_its_own() -> None:
    examples = [example for _, example in first(14)]
    assert examples[:7] != examples[7:]


def test_the_seed_decides_on_the_order() -> None:
    assert first(20) == first(20)
    assert first(20) != first(20, seed=1)


def test_a_later_run_goes_on_where_the_one_before_stopped() -> None:
    assert first(10) + first(10, start=10) == first(20)


def test_examples_are_numbered_by_their_place() -> None:
    assert [number for number, _ in first(5, start=9)] == [9, 10, 11, 12, 13]


@pytest.mark.parametrize(
    ("max_workers", "rollouts_per_task", "tasks", "workers_per_task"),
    [(8, 1, 8, 1), (8, 4, 2, 4), (8, 50, 2, 4), (8, 100, 1, 8), (1, 10, 1, 1), (3, 2, 3, 1)],
)
def test_all_tasks_together_keep_to_the_number_of_workers(
    max_workers: int, rollouts_per_task: int, tasks: int, workers_per_task: int
) -> None:
    budget = Budget(100, max_workers, rollouts_per_task)
    assert (budget.tasks, budget.workers_per_task) == (tasks, workers_per_task)
    assert budget.tasks * budget.workers_per_task <= max_workers


@pytest.mark.parametrize("rollouts", [200, 1_000, 5_000])
def test_workers_hardly_wait_for_the_last_rollout_of_a_task_or_of_the_run(rollouts: int) -> None:
    budget = Budget(rollouts, 16, rollouts_per_task=50)
    rounds_of_a_task = math.ceil(50 / budget.workers_per_task)
    rounds = math.ceil(rollouts / 50 / budget.tasks) * rounds_of_a_task
    assert rounds <= 1.05 * rollouts / 16


def test_a_limit_of_few_slots_leaves_few_workers() -> None:
    assert Budget(100, 16).within(4).max_workers == 4
    assert Budget(100, 16).within(400).max_workers == 16


@pytest.mark.parametrize("rollouts", [0, 1, 19, 20, 400, 10_000])
def test_the_status_is_asked_for_at_most_twenty_times(rollouts: int) -> None:
    budget = Budget(rollouts, 8)
    assert budget.step >= 1
    assert rollouts // budget.step <= 20


async def coroutine(_rollout: object, _example: object) -> str:
    return ""


class Callable:
    async def __call__(self, _rollout: object, _example: object) -> str:
        return ""


@pytest.mark.parametrize(
    ("program", "expected"),
    [(coroutine, True), (Callable(), True), (partial(coroutine, None), True), (first, False)],
)
def test_programs_that_are_coroutine_functions_are_known(program: Any, expected: bool) -> None:
    assert is_coroutine_function(program) is expected


def test_parameters_are_recorded_without_many_items() -> None:
    assert recorded(list(range(500))) == "<500 items>"


def test_functions_are_recorded_by_name() -> None:
    assert recorded(first) == f"{__name__}.first"


def test_keys_in_a_config_are_not_recorded() -> None:
    config = {"prompt_learning": {"task_app_api_key": "secret", "algorithm": "mipro"}}
    assert recorded(config) == {
        "prompt_learning": {"task_app_api_key": "********", "algorithm": "mipro"}
    }


def test_a_flow_with_other_options_is_recorded_in_the_same_way() -> None:
    changed = optimize_prompt.with_options(name="another")
    assert changed.name == "another"
    assert changed.serialize_parameters({"examples": ROWS * 10})["examples"] == "<70 items>"


@pytest.mark.parametrize("value", ["text" * 100, 7, None, {"a": [1, 2]}, [1, 2], b"x" * 50])
def test_small_values_are_recorded_as_they_are(value: Any) -> None:
    assert recorded(value) == value
