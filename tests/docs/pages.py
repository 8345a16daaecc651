"""The pages of the documentation, and the code blocks in them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer
from sybil.typing import Evaluator

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)

_FENCED = RawFencedCodeBlockLexer(re.compile(r"(?P<language>\w*)(?P<options>[^\n]*)\n"))
# Set-up that a reader does not have to see: `<!-- invisible-code-block: python … -->`.
_HIDDEN = DirectiveInHTMLCommentLexer(
    r"invisible-code-block", r"\w+", mapping={"arguments": "language", "source": "source"}
)


def name(page: Path) -> str:
    """The page's path from the project's root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, evaluate: Evaluator) -> list[Example]:
    """All code blocks of the page, from top to bottom, to be evaluated in one namespace."""

    def parse(document: Document) -> Iterable[Region]:
        for lexer in (_FENCED, _HIDDEN):
            for region in lexer(document):
                region.parsed = region.lexemes["source"]
                region.evaluator = evaluate
                yield region

    return list(Document.parse(str(page), parse).examples())


def title(block: Example) -> str | None:
    """The file name that stands above the block, if one does."""
    options = block.region.lexemes.get("options", "")
    found = re.search(r'title="([^"]+)"', options)
    return found[1] if found else None
