"""A Prefect task and its asynchronous twin from one body.

    @session_task(run_name="pause {session.session_id}")
    def pause_session(session: SessionHandle) -> Steps[SessionStatus]:
        ...

    apause_session = async_twin(pause_session)

Both have the body's parameters, its result type, and its docstring.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

from prefect import Task, task

from prefect_mipro.tasks.retries import ONCE, RETRIED
from prefect_mipro.tasks.steps import Connect, Steps, arun, run

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def session_task(
    *, run_name: str | Callable[[], str], repeatable: bool = True
) -> Callable[[Callable[P, Steps[T]]], Task[P, T]]:
    """A decorator that makes a task of a body.

    The body's operations go to the backend of its parameter `session`. The task is named after the
    function, and does not store its result, which could be read by anyone with access to the
    storage. It retries while the backend is away if it is `repeatable`, that is, if another run
    after a lost answer does no harm.
    """

    def decorated(body: Callable[P, Steps[T]]) -> Task[P, T]:
        signature = _signature(body)

        @wraps(body)
        def function(*args: P.args, **kwargs: P.kwargs) -> T:
            return run(_connected(body, signature, *args, **kwargs))

        _describe(function, signature)
        name = body.__name__.replace("_", "-")
        options = RETRIED if repeatable else ONCE
        return task(name=name, task_run_name=run_name, **options)(function)

    return decorated


def async_twin(blocking: Task[P, T]) -> Task[P, Coroutine[Any, Any, T]]:
    """The asynchronous task of the same body, named with an `a` in front."""
    body: Callable[P, Steps[T]] = inspect.unwrap(blocking.fn)
    signature = _signature(body)

    @wraps(body)
    async def function(*args: P.args, **kwargs: P.kwargs) -> T:
        return await arun(_connected(body, signature, *args, **kwargs))

    _describe(function, signature)
    function.__name__ = function.__qualname__ = f"a{blocking.fn.__name__}"
    return twin_of(blocking)(function)


def twin_of(blocking: Task[..., Any]) -> Callable[[Callable[P, T]], Task[P, T]]:
    """A decorator that makes the asynchronous twin of a task from a coroutine function.

    The twin has the task's docstring and options.
    """

    def decorated(function: Callable[P, T]) -> Task[P, T]:
        options: dict[str, Any] = {option: getattr(blocking, option) for option in _OPTIONS}
        made = task(name=blocking.name, task_run_name=blocking.task_run_name, **options)
        return made(documented_like(blocking.fn)(function))

    return decorated


def documented_like(blocking: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator that gives a coroutine function the docstring of its blocking twin."""
    name = blocking.__name__

    def decorated(function: F) -> F:
        text = inspect.getdoc(blocking) or ""
        function.__doc__ = re.sub(rf"\b{name}\b(\(?)", lambda match: _call(name, match[1]), text)
        return function

    return decorated


_OPTIONS = (
    "cache_policy",
    "persist_result",
    "retries",
    "retry_delay_seconds",
    "retry_condition_fn",
)


def _connected(
    body: Callable[P, Steps[T]], signature: inspect.Signature, *args: P.args, **kwargs: P.kwargs
) -> Steps[T]:
    if "session" in signature.parameters:
        yield Connect(signature.bind(*args, **kwargs).arguments["session"])
    return (yield from body(*args, **kwargs))


def _signature(body: Callable[..., Steps[Any]]) -> inspect.Signature:
    """The signature of both tasks: the body's, with the type of its value in place of `Steps`."""
    signature = inspect.signature(body, eval_str=True)
    *_, value = get_args(signature.return_annotation)
    return signature.replace(return_annotation=None if value is type(None) else value)


def _describe(function: Any, signature: inspect.Signature) -> None:
    function.__signature__ = signature
    function.__annotations__ = {
        **{each.name: each.annotation for each in signature.parameters.values()},
        "return": signature.return_annotation,
    }


def _call(name: str, parenthesis: str) -> str:
    return f"await a{name}(" if parenthesis else f"a{name}"
