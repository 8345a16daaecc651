"""The page `/docs`: all that can be called, and nothing of another host."""

from __future__ import annotations

import re

from prefect_mipro.server.routes.docs import page
from tests.server.routes.conftest import Caller


def test_it_lists_every_call_without_a_key_a_script_or_another_host(caller: Caller) -> None:
    answer = caller.program.get("/docs")
    document = caller.program.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    loaded = re.findall(r"""(?:src|href|action)=["'](?!#)([^"']*)""", answer.text)
    assert loaded == ["openapi.json"]
    assert "<script" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    targets = set(re.findall(r'href="#([^"]+)"', answer.text))
    assert targets <= set(re.findall(r'id="([^"]+)"', answer.text))


def test_what_the_document_says_is_text() -> None:
    operation = {"tags": ["<b>"], "summary": "<script>", "responses": {"200": {}}}
    info = {"title": "&", "version": "1", "summary": "", "description": "<img>"}
    shown = page({"info": info, "paths": {"/": {"get": operation}}, "components": {"schemas": {}}})
    assert not {"<b>", "<script>", "<img>"} & set(re.findall(r"<\w+>", shown))


def test_the_pages_that_load_from_elsewhere_are_gone(caller: Caller) -> None:
    for path in ("/redoc", "/docs/oauth2-redirect"):
        assert caller.program.get(path).status_code == 404
