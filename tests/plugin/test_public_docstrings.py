"""What Prefect shows of tasks, flows and blocks: parameters, docstrings, and their examples."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import Flow, Task
from prefect.blocks.core import Block
from prefect.utilities.callables import parameter_docstrings, parameter_schema

from prefect_mipro import blocks, flows, tasks

Public = Callable[..., Any]


def _functions() -> Iterator[tuple[str, Public]]:
    for module in (tasks, flows):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, Task | Flow):
                yield name, found.fn
            elif inspect.isfunction(found) and name.endswith("_session"):
                yield name, found


def _block_methods() -> Iterator[tuple[str, Public]]:
    for block in BLOCKS:
        for name, member in inspect.getmembers(block):
            function = getattr(member, "__func__", member)
            ours = str(getattr(function, "__module__", "")).startswith("prefect_mipro")
            if ours and inspect.isfunction(function) and not name.startswith("_"):
                yield f"{block.__name__}.{name}", function


BLOCKS = [
    found
    for found in vars(blocks).values()
    if inspect.isclass(found) and issubclass(found, Block) and found.__module__ == blocks.__name__
]
FUNCTIONS = dict(_functions())
METHODS = dict(_block_methods())
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
    assert {each.strip("*") for each in parameter_docstrings(text)} == {*signature.parameters}


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


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_blocks_say_what_they_take_and_return(name: str) -> None:
    function = METHODS[name]
    text = inspect.getdoc(function) or ""
    parameters = [each for each in inspect.signature(function).parameters if each not in _BOUND]
    assert "\nReturns:\n" in text
    assert {each.strip("*") for each in parameter_docstrings(text)} == {*parameters}


@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_has_an_example_and_says_what_each_field_is(block: type[Block]) -> None:
    assert _example(block).body
    fields = {name: field.description for name, field in block.model_fields.items()}
    assert [name for name, description in fields.items() if not description] == []


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


_BOUND = ("self", "cls")


def _example(documented: Any) -> ast.Module:
    text = inspect.getdoc(documented) or ""
    found = re.search(r"^Example:\n(.*)", text, re.DOTALL | re.MULTILINE)
    assert found, "it has no example"
    code = re.search(r"```python\n(.*?)```", textwrap.dedent(found[1]), re.DOTALL)
    assert code, "its example has no code"
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree: ast.Module = compile(code[1], "example", "exec", flags)
    return tree
