"""What is uploaded: a wheel and a source archive that are whole, valid, and hold nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import prefect_mipro

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "prefect_mipro"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with both archives."""
    folder = tmp_path_factory.mktemp("dist")
    # In this environment, because an isolated one is fetched from the package index.
    run("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_package_index_would_take_both(built: Path) -> None:
    archives = [str(path) for path in built.iterdir()]
    assert len(archives) == 2
    assert run("-m", "twine", "check", "--strict", *archives).count("PASSED") == 2


def test_the_version_stands_in_one_place(built: Path, metadata: Message) -> None:
    assert metadata["Version"] == prefect_mipro.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert all(prefect_mipro.__version__ in path.name for path in built.iterdir())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    in_wheel = {name for name in wheel.namelist() if ".dist-info/" not in name}
    demo = {name for name in in_wheel if name.startswith("prefect_mipro/demo/")}
    in_tree = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert in_wheel - demo == in_tree
    assert {"optimize_prompt.py", "everyday_intents.toml", "data/everyday_intents.jsonl"} <= {
        name.removeprefix("prefect_mipro/demo/") for name in demo
    }
    assert "prefect_mipro/py.typed" in in_wheel


def test_prefect_finds_the_blocks_of_an_installed_wheel(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert "prefect_mipro = prefect_mipro.blocks" in wheel.read(name).decode()


def test_the_source_archive_has_what_a_reader_wants_and_nothing_made(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "docs/tutorial.md", "tests/test_packaging.py"} <= names
    made = {"site", "dist", ".venv", ".git", ".hypothesis"}
    assert not {name.partition("/")[0] for name in names} & made
    assert not [name for name in names if "__pycache__" in name or name.endswith(".db")]


def test_the_description_shows_the_readme(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "Your prompt gets better while your traffic runs." in str(metadata.get_payload())
