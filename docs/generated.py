"""What the site shows that is made from code while it is built: the HTTP API, and a class."""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings

METHODS = "<!-- the methods of MiproOnlineSession -->"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Put `reference/openapi.json` among the files of the site."""
    document = create_app(ServerSettings()).openapi()
    files.append(File.generated(config, "reference/openapi.json", content=json.dumps(document)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Its methods are made by descriptors, which a reader of the source alone cannot follow."""
    return markdown.replace(METHODS, "\n\n".join(_methods()))


def _methods() -> Iterator[str]:
    for name in vars(MiproOnlineSession):
        method = getattr(MiproOnlineSession, name)
        if name.startswith("_") or name.endswith("_async") or not callable(method):
            continue
        code = f"```python\n{_signature(name, method)}\n```"
        yield f"### `{name}`\n\n{code}\n\n{inspect.getdoc(method)}"


def _signature(name: str, method: Callable[..., Any]) -> str:
    shown: list[str] = []
    for parameter in inspect.signature(method).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        if parameter.name not in ("self", "cls"):
            shown.append(_parameter(parameter))
    line = f"{name}({', '.join(shown)})"
    if len(line) <= 80:
        return line
    return "\n".join([f"{name}(", *(f"    {each}," for each in shown), ")"])


def _parameter(parameter: inspect.Parameter) -> str:
    # Annotations are strings here; as such they would be shown in quotes.
    stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    known = parameter.default is not parameter.empty
    default = f" = {parameter.default!r}" if known else ""
    return f"{stars}{parameter.name}: {parameter.annotation}{default}"
