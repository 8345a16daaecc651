"""The error tree: its names, its statuses, and how it travels."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

from prefect_mipro import errors
from prefect_mipro.errors import (
    BODY_SNIPPET_CHARACTERS,
    BackendFailed,
    HTTPError,
    InputInvalid,
    MiproError,
    error_class,
)


def tree(root: type[MiproError]) -> list[type[MiproError]]:
    return [root, *(below for child in root.__subclasses__() for below in tree(child))]


every_error = pytest.mark.parametrize("cls", tree(MiproError))


def drawn() -> dict[str, str | None]:
    """Each class of the module's drawing, with the class it hangs from."""
    found: dict[str, str | None] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if name := re.match(r"([│ ├└─]*)([A-Z]\w+)  ", line):
            depth = len(name[1])
            above = [(other, parent) for other, parent in above if other < depth]
            found[name[2]] = above[-1][1] if above else None
            above.append((depth, name[2]))
        elif name := re.match(r"([│ ├└─]+)([A-Z]\w+)$", line):
            found[name[2]] = next(p for d, p in reversed(above) if d < len(name[1]))
    return found


def test_the_drawing_shows_the_tree() -> None:
    expected = {cls.__name__: cls.__bases__[0].__name__ for cls in tree(MiproError)}
    assert drawn() == {**expected, "MiproError": None}


def test_the_sdks_name_for_the_root_is_kept() -> None:
    assert HTTPError is MiproError


@every_error
def test_a_class_is_found_by_its_name(cls: type[MiproError]) -> None:
    assert error_class(cls.__name__, status=418) is cls


@pytest.mark.parametrize("name", [None, "", "SomethingNewer", "KeyError"])
@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, errors.InputInvalid),
        (401, errors.KeyRejected),
        (402, errors.PaymentRequired),
        (403, errors.KeyRejected),
        (404, errors.NotFound),
        (409, errors.Conflict),
        (410, errors.InputInvalid),
        (413, errors.BodyTooLarge),
        (422, errors.InputInvalid),
        (429, errors.Overloaded),
        (500, errors.BackendFailed),
        (503, errors.BackendFailed),
        (504, errors.UpstreamTimedOut),
        (301, errors.BackendFailed),
    ],
)
def test_an_unknown_name_means_the_class_of_the_status(
    name: str | None, status: int, cls: type[MiproError]
) -> None:
    assert error_class(name, status=status) is cls


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.InputInvalid, ValueError),
        (errors.ConfigInvalid, ValueError),
        (errors.ConfigNotFound, FileNotFoundError),
        (errors.KeyMissing, ValueError),
        (errors.AnswerInvalid, ValueError),
    ],
)
def test_some_are_what_the_documented_class_raises(
    cls: type[MiproError], builtin: type[Exception]
) -> None:
    with pytest.raises(builtin, match="why"):
        raise cls("why")


@every_error
def test_an_error_says_its_message_and_where_it_came_from(cls: type[MiproError]) -> None:
    assert str(cls("why")) == "why"
    assert str(cls("why", status=409, url="http://h/x")) == "why [409 http://h/x]"


@every_error
def test_an_error_has_the_status_of_its_class_unless_told(cls: type[MiproError]) -> None:
    assert cls("why").status == cls.default_status
    assert cls("why", status=0).status == 0


def fields(error: MiproError) -> dict[str, Any]:
    names = ("message", "detail", "status", "url", "body_snippet", "retry_after_seconds")
    return {"class": type(error), "text": str(error), **{n: getattr(error, n) for n in names}}


@every_error
def test_an_error_survives_pickling_and_copying(cls: type[MiproError]) -> None:
    error = cls(
        "why",
        detail={"a": [1]},
        status=429,
        url="http://h/x",
        body_snippet="body",
        retry_after_seconds=2.5,
    )
    assert fields(pickle.loads(pickle.dumps(error))) == fields(error)
    assert fields(copy.copy(error)) == fields(error)


@every_error
def test_a_pickler_may_make_an_empty_error_and_fill_it(cls: type[MiproError]) -> None:
    empty = cls.__new__(cls)
    empty.__dict__.update(vars(cls("why")))
    assert fields(empty) == fields(cls("why"))


def test_a_snippet_is_at_most_four_kibibytes() -> None:
    assert BODY_SNIPPET_CHARACTERS == 4096
    assert MiproError("why", body_snippet="x" * 9_000).body_snippet == "x" * 4096


def test_what_the_caller_can_fix_is_told_from_what_the_backend_broke() -> None:
    assert not issubclass(BackendFailed, InputInvalid)
    assert not issubclass(InputInvalid, BackendFailed)
