"""The package as an installer and Prefect see it: cheap to import, complete, and discoverable."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.resources import files

import pytest
from prefect.blocks.core import Block

import prefect_mipro


def test_importing_the_package_does_not_import_prefect() -> None:
    program = "import sys, prefect_mipro; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", prefect_mipro.__all__)
def test_every_public_name_can_be_loaded(name: str) -> None:
    assert getattr(prefect_mipro, name) is not None


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'MiproCredential'"):
        getattr(prefect_mipro, "MiproCredential")  # noqa: B009  a checker would see the typo


def test_prefect_block_register_finds_the_blocks_among_the_members() -> None:
    members = dict(inspect.getmembers(prefect_mipro, Block.is_block_class))
    assert {"MiproCredentials", "MiproSessionConfig"} <= members.keys()


def test_prefect_imports_the_blocks_through_the_collections_entry_point() -> None:
    [collection] = entry_points(group="prefect.collections", name="prefect_mipro")
    assert collection.load().MiproCredentials is prefect_mipro.MiproCredentials


def test_the_installed_version_is_the_one_in_the_source() -> None:
    assert version("prefect-mipro") == prefect_mipro.__version__


def test_the_package_says_that_it_is_typed() -> None:
    assert files("prefect_mipro").joinpath("py.typed").is_file()
