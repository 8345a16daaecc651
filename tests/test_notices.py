"""Licence notices: all that is bundled or downloaded and is no code or page of ours is named."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from prefect_mipro.server.upstream import model_file

ROOT = Path(__file__).parents[1]
NOTICES = (ROOT / "THIRD_PARTY.md").read_text("utf-8")
FOLDERS = ("prefect_mipro", "flows", "deployments", "docs", "benchmarks")
OURS = frozenset(
    {".css", ".dockerignore", ".env", ".gitignore", ".md", ".py", ".toml", ".typed", ".yaml"}
)


def test_each_file_of_another_kind_than_code_and_text_has_a_notice() -> None:
    patterns = [word for word in NOTICES.split("`") if "/" in word and " " not in word]
    unnamed = [
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and (path.suffix or path.name) not in {*OURS, "Dockerfile"}
        and not any(fnmatch(str(path.relative_to(ROOT)), pattern) for pattern in patterns)
    ]
    assert unnamed == []


def test_the_notice_of_the_model_is_about_the_one_that_is_installed() -> None:
    package, version = model_file.REQUIREMENT.split("==")
    assert f"`{package}` | {version} |" in NOTICES
    assert Path(model_file.MEMBER).name in NOTICES
    assert model_file.SHA256 in NOTICES
