"""The backend that a command asks: named by option or environment, or the embedded one."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from prefect_mipro.client import environment
from prefect_mipro.client.clients import Client, backend_root
from prefect_mipro.embedded import EmbeddedBackend
from prefect_mipro.transport import DEFAULT_BACKEND_URL


def named_url(options: argparse.Namespace) -> str | None:
    """The backend that the option or the environment names."""
    return options.backend_url or environment.named_backend_url()


@contextmanager
def backend_of(options: argparse.Namespace) -> Iterator[Client]:
    """A client of it. Raises KeyMissing, InputInvalid or BackendFailed."""
    if options.embedded:
        with EmbeddedBackend() as running, Client(running.url, running.api_key) as client:
            yield client
        return
    url = backend_root(named_url(options) or DEFAULT_BACKEND_URL)
    with Client(url, options.api_key or environment.api_key(url)) as client:
        yield client
