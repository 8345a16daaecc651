"""The OpenAPI document of the backend, made from the app itself while the site is built."""

import json

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Put `reference/openapi.json` among the files of the site."""
    document = create_app(ServerSettings()).openapi()
    files.append(File.generated(config, "reference/openapi.json", content=json.dumps(document)))
    return files
