"""What Prefect's UI shows of tasks: parameters, docstrings, and their examples."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import Task
from prefect.utilities.callables import parameter_docstrings, parameter_schema

from prefect_mipro import tasks

Public = Callable[..., Any]


def _functions() -> Iterator[tuple[str, Public]]:
    for module in (tasks,):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, Task):
                yield name, found.fn


FUNCTIONS = dict(_functions())
TASKS = [name for name in tasks.__all__ if isinstance(getattr(tasks, name), Task)]
TWINS = [name for name in TASKS if f"a{name}" in TASKS]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_has_all_sections_and_says_what_each_parameter_is(name: str) -> None:
    function = FUNCTIONS[name]
    text = inspect.getdoc(function) or ""
    signature = inspect.signature(function, eval_str=True)
    wanted = ["Args:", "Raises:", "Example:"]
    if signature.return_annotation is not None:
        wanted.append("Returns:")
    assert [section for section in wanted if f"\n{section}\n" not in text] == []
    assert set(parameter_docstrings(text)) == set(signature.parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_example_compiles_and_calls_it_with_its_own_parameters(name: str) -> None:
    tree = _example(FUNCTIONS[name])
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]
    assert calls
    for call in calls:
        named = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(FUNCTIONS[name]).bind(*call.args, **named)
    awaited = [node.value for node in ast.walk(tree) if isinstance(node, ast.Await)]
    is_twin = inspect.iscoroutinefunction(FUNCTIONS[name])
    assert all((call in awaited) is is_twin for call in calls)


def test_each_task_has_a_twin() -> None:
    assert {*TWINS, *(f"a{name}" for name in TWINS)} == {*TASKS}


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_in_nothing_but_their_kind(name: str) -> None:
    one, twin = getattr(tasks, name), getattr(tasks, f"a{name}")
    assert (one.isasync, twin.isasync) == (False, True)
    for option in ("name", "task_run_name", "cache_policy", "persist_result", "retries"):
        assert getattr(one, option) == getattr(twin, option)
    signatures = [inspect.signature(each.fn, eval_str=True) for each in (one, twin)]
    assert signatures[0].return_annotation == signatures[1].return_annotation
    parameters = [dict(signature.parameters) for signature in signatures]
    for each in parameters:
        each.pop("program", None)
    assert parameters[0] == parameters[1]


@pytest.mark.parametrize("name", TASKS)
def test_prefect_makes_a_schema_of_the_parameters(name: str) -> None:
    task = getattr(tasks, name)
    schema = parameter_schema(task.fn)
    parameters = inspect.signature(task.fn).parameters
    required = [each.name for each in parameters.values() if each.default is each.empty]
    assert list(schema.properties) == list(parameters)
    assert schema.required == required
    assert all(each["description"] for each in schema.properties.values())


def _example(documented: Any) -> ast.Module:
    text = inspect.getdoc(documented) or ""
    found = re.search(r"^Example:\n(.*)", text, re.DOTALL | re.MULTILINE)
    assert found, "it has no example"
    code = re.search(r"```python\n(.*?)```", textwrap.dedent(found[1]), re.DOTALL)
    assert code, "its example has no code"
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: ast.Module = compile(code[1], "example", "exec", flags)
    return tree
