"""What a markdown text would do in a browser, by a parser of CommonMark and of GitHub's tables."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
# GitHub's links without markup, which Prefect's pages make too.
_BARE_ADDRESS = re.compile(r"https?://|ftp://|\bwww\.|[\w.+-]@\w", re.IGNORECASE)
_OUR_HTML = re.compile(r"(?:</?details>|<summary>[\w ,]*</summary>|\n)*")

_WORDS = r"""
    ![ [ ]( ) http://e.example/x.png HTTPS:// www.e.example ftp:// a@e.example <http://e.example>
    mailto:a@e.example [a]: <img <a src=//e.example <!-- <script> </script> javascript:
    </details> <details> <summary> > &#91; &lt; ` ``` * ** _ __ ~~ ~ \ | $ { ! : @
    # - + 1. 2) --- === a b1
    """
_SPACES = ("\n", "\n\n", "\r", "\t", " ", "    ", "\u202e", "\u200b")
hostile_texts = st.lists(st.sampled_from((*_WORDS.split(), *_SPACES)), max_size=12).map("".join)


def active(markdown: str) -> list[str]:
    """Links, pictures that are not our own charts, and HTML that is not our own."""
    return list(_active(_PARSER.parse(markdown)))


def shown(markdown: str) -> list[Token]:
    """The inline parts of the only paragraph there is."""
    begin, inline, end = _PARSER.parse(markdown)
    assert (begin.type, end.type) == ("paragraph_open", "paragraph_close")
    return inline.children or []


def _active(tokens: list[Token]) -> Iterator[str]:
    for token in tokens:
        match token.type:
            case "inline":
                yield from _active(token.children or [])
                # Escapes are still in it, and the addresses of charts.
                text = re.sub(r"\]\(data:[^)]*\)|\\[^\w\s]", " ", token.content)
                yield from _BARE_ADDRESS.findall(text)
            case "link_open":
                yield str(token.attrGet("href"))
            case "image" if not str(token.attrGet("src")).startswith("data:image/svg+xml;base64,"):
                yield str(token.attrGet("src"))
            case "html_block" | "html_inline" if not _OUR_HTML.fullmatch(token.content):
                yield token.content
