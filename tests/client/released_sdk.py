"""The released SDK whose class we take over, to compare with."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from importlib import import_module
from types import ModuleType


def released(name: str) -> ModuleType:
    """A module of the SDK.

    Imported where the folder that it makes does no harm, and without its own deprecations.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return import_module(f"synth_ai.{name}")
