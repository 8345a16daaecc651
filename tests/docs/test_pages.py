"""Every code block of README and docs: Python runs, files are read, commands exist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from prefect.settings import PREFECT_API_URL
from sybil import Example
from sybil.evaluators.python import PythonEvaluator
from sybil.region import Lexeme

from prefect_mipro.config import MiproConfig, parse_toml
from tests.docs.commands import check_shell
from tests.docs.conftest import Place
from tests.docs.pages import PAGES, blocks, name, title

# Only read by the compiler: DSPy does not install beside the tests' own OpenAI client.
NOT_INSTALLED = ("import dspy",)
BACKEND_URL = "http://127.0.0.1:8765"
SERVER_URL = "http://127.0.0.1:4200/api"
# What the pages show and nobody runs.
SHOWN = frozenset({"text", "diff", "mermaid"})

run_python = PythonEvaluator()


def needs_prefect(page: Path) -> bool:
    """Whether code of the page runs flows."""
    return "prefect import" in page.read_text("utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if not needs_prefect(page)], ids=name)
def test_the_code_of_the_page_works(page: Path, place: Place) -> None:
    run(page, place)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("page", [page for page in PAGES if needs_prefect(page)], ids=name)
def test_the_flows_of_the_page_work(page: Path, place: Place) -> None:
    run(page, place)


def run(page: Path, place: Place) -> None:
    """Evaluate the page's blocks in order."""
    for block in blocks(page, lambda block: evaluate(block, place)):
        block.namespace["__name__"] = page.stem
        block.evaluate()


def evaluate(block: Example, place: Place) -> None:
    """Do with a block what its language asks for."""
    text = str(block.parsed)
    file = title(block)
    if file:
        (place.folder / file).write_text(text, encoding="utf-8")
    match block.region.lexemes["language"]:
        case "python" if any(each in text for each in NOT_INSTALLED):
            compile(text, block.path, "exec")
        case "python":
            addressed = text.replace(BACKEND_URL, place.backend_url).replace(
                SERVER_URL, str(PREFECT_API_URL.value())
            )
            block.parsed = Lexeme(addressed, block.parsed.offset, block.parsed.line_offset)
            run_python(block)
        case "toml":
            check_toml(text)
        case "yaml":
            assert list(yaml.safe_load_all(text))
        case "json":
            json.loads(text)
        case "sh":
            check_shell(text, place.folder)
        case language:
            assert language in SHOWN, f"a block in {language or 'no language'} is not checked"


def check_toml(text: str) -> None:
    """A session config, or a part of one, has only keys that have an effect."""
    body = parse_toml(text)
    table = body.get("prompt_learning")
    if isinstance(table, dict):
        table.setdefault("algorithm", "mipro")
        assert MiproConfig.parse(body).warnings == []
