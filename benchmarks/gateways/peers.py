"""The peers, from a virtual environment of their own: the LiteLLM proxy, the TensorZero gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gateways.processes import child, free_port
from benchmarks.gateways.systems import Gateway, NotInstalled, Site

LITELLM_KEY = "sk-benchmark"
INSTALL = (
    "python3 -m venv VENV && VENV/bin/pip install 'litellm[proxy]' 'tensorzero==2026.6.0', "
    "then --peers-venv VENV"
)


@contextmanager
def litellm(site: Site) -> Iterator[Gateway]:
    """One worker, a key, no database: its fastest set-up."""
    program = _installed(site, "bin/litellm")
    port = free_port()
    config = site.folder / "litellm.yaml"
    # YAML reads JSON.
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    {
                        "model_name": "mock",
                        "litellm_params": {
                            "model": "openai/mock",
                            "api_base": site.upstream_url,
                            "api_key": "none",
                        },
                    }
                ],
                "general_settings": {"master_key": LITELLM_KEY},
            }
        )
    )
    options = ("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    environment = {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    command = (program, "--config", config, "--telemetry", "False", *options)
    with child(command, log=site.log("litellm"), environment=environment) as server:
        server.wait_for(f"http://127.0.0.1:{port}/health/liveliness")
        yield Gateway(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            processes=(server.process_id,),
            headers={"authorization": f"Bearer {LITELLM_KEY}"},
            same_bytes=False,
        )


@contextmanager
def tensorzero(site: Site) -> Iterator[Gateway]:
    """Adaptive experimentation over five prompts, on a PostgreSQL of its own."""
    raise NotInstalled("to come")
    yield


def _installed(site: Site, path: str) -> Path:
    """A file of the peers' virtual environment. Raises NotInstalled."""
    if site.peers_venv is None:
        raise NotInstalled(f"no --peers-venv; {INSTALL}")
    found = site.peers_venv / path
    if not found.exists():
        raise NotInstalled(f"{found} is not there; {INSTALL}")
    return found
