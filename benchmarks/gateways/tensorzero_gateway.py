"""Run TensorZero's gateway from its wheel until standard input ends; print its URL.

    VENV/bin/python benchmarks/gateways/tensorzero_gateway.py CONFIG_FILE POSTGRES_URL

This file runs in the peers' virtual environment, so it imports nothing of ours.
"""

from __future__ import annotations

import sys

# The wheel's one way to a gateway with a port of its own; its public names wrap it for a client.
from tensorzero.tensorzero import _start_http_gateway  # type: ignore[import-not-found]

if __name__ == "__main__":
    config_file, postgres_url = sys.argv[1:]
    gateway = _start_http_gateway(
        config_file=config_file,
        clickhouse_url=None,
        postgres_url=postgres_url,
        valkey_url=None,
        async_setup=False,
    )
    print(gateway.base_url, flush=True)
    sys.stdin.read()
