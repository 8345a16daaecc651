"""A store whose methods fail as told: between the services and a real one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from prefect_mipro.errors import StoreFailed


class FaultyStore:
    """A real `Store`, but for the methods that are losing their answers at present."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._losing: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return partial(self._answer, name, found) if name in self._losing else found

    @contextmanager
    def losing(self, *methods: str) -> Iterator[None]:
        """What these do is done and committed, and nobody is told so."""
        self._losing.update(methods)
        yield
        self._losing.clear()

    async def _answer(
        self, name: str, method: Callable[..., Awaitable[Any]], *arguments: Any, **named: Any
    ) -> Any:
        await method(*arguments, **named)
        raise StoreFailed(f"the answer of {name} was lost with the connection to the database")
