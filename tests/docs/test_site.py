"""The site: it builds without a warning, and its reference is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import prefect_mipro
from prefect_mipro import flows, tasks
from tests.docs.pages import ROOT

REFERENCE = [page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
# What the reference shows in another way than by its name alone.
ELSEWHERE = {
    "__version__",
    "HTTPError",
    "MiproConfig",
    "MiproError",
    "SessionWarning",
    "MiproOnlineSession",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. A link that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_has_the_http_api_and_the_methods_of_the_session(site: Path) -> None:
    assert '"/api/v1/online/sessions"' in (site / "reference/openapi.json").read_text("utf-8")
    client = (site / "reference/client.html").read_text("utf-8")
    assert 'id="update_reward"' in client


def test_the_reference_shows_what_tasks_return_and_not_the_steps_of_their_bodies(
    site: Path,
) -> None:
    tasks = (site / "reference/tasks.html").read_text("utf-8")
    assert 'id="prefect_mipro.tasks.pause_session"' in tasks
    assert "Steps" not in tasks


def test_nothing_is_fetched_from_elsewhere_when_a_page_is_read(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="https?://[^"]*"', text), page


def names() -> Iterator[str]:
    """Public names; an awaitable twin is told by the rule that makes its name."""
    public = {*prefect_mipro.__all__, *tasks.__all__, *flows.__all__} - ELSEWHERE
    for name in sorted(public):
        twin = name.removeprefix("Async") if name.startswith("Async") else name[1:]
        if twin not in public:
            yield name


def test_each_public_name_is_in_the_reference() -> None:
    shown = {name for page in REFERENCE for name in re.findall(r"^::: [\w.]+\.(\w+)$", page, re.M)}
    missing = set(names()) - shown
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_in_front_of_the_site_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / target).exists(), target
