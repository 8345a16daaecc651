"""The page `/docs`: every call of the API, written from its OpenAPI document.

One HTML page without scripts and without another host: it works offline, and no foreign code runs
on an origin whose pages may call the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from prefect_mipro.server.routes.same_origin import DOCS_PATH

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
}
_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
pre, code { font: 14px/1.5 ui-monospace, monospace }
pre { overflow-x: auto }
h3 { margin: 2rem 0 0 }
p { white-space: pre-line; margin: .5rem 0 }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
"""

router = APIRouter()


@router.get(DOCS_PATH, include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The page, which needs no key: it shows what can be called, and nothing that is kept."""
    return HTMLResponse(page(request.app.openapi()), headers=_HEADERS)


def page(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as HTML."""
    info = document["info"]
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}'
            f"</title><style>{_STYLE}</style>",
            f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
            f"<p>{escape(info['summary'])}</p>",
            '<p>The same for programs: <a href="openapi.json">openapi.json</a></p>',
            f"<p>{escape(info['description'].strip())}</p>",
            *_operations(document["paths"]),
            "<h2>Schemas</h2>",
            *_schemas(document["components"]["schemas"]),
            "</html>",
        ]
    )


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in paths.items():
        for method, operation in methods.items():
            section = "".join(_operation(f"{method.upper()} {path}", operation))
            by_tag.setdefault(operation["tags"][0], []).append(section)
    for tag, sections in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        yield from sections


def _operation(call: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{escape(call)}</code></h3>"
    yield f"<p>{escape(operation.get('description') or operation['summary'])}</p>"
    if parameters := operation.get("parameters"):
        yield "<table>"
        for parameter in parameters:
            place = parameter["in"] + (", required" if parameter["required"] else "")
            yield f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(place)}"
            yield f"<td>{escape(parameter.get('description', ''))}</tr>"
        yield "</table>"
    if body := operation.get("requestBody"):
        yield f"<p>Body: {_names(body)}</p>"
    for status, answer in operation["responses"].items():
        if status < "300":
            yield f"<p>Answer {escape(status)}: {_names(answer) or 'no named schema'}</p>"
    refusals = sorted(status for status in operation["responses"] if status >= "300")
    if refusals:
        yield f"<p>Refusals: {escape(', '.join(refusals))}</p>"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in schemas.items():
        shown = escape(json.dumps(schema, indent=2))
        yield f'<h3 id="{escape(name)}">{escape(name)}</h3>'
        yield f"<details><summary>JSON schema</summary><pre>{shown}</pre></details>"


def _names(content: Any) -> str:
    """Links to the named schemas in a part of the document."""
    names = (ref.rpartition("/")[2] for ref in _references(content))
    return ", ".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in names)


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _references(each)
