"""The peers, from a virtual environment of their own: the LiteLLM proxy, the TensorZero gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gateways.payloads import SYSTEM_PROMPT
from benchmarks.gateways.postgres import Database, postgres
from benchmarks.gateways.processes import NotStarted, child, free_port
from benchmarks.gateways.systems import INSTRUCTIONS, Gateway, NotInstalled, Site
from benchmarks.gateways.tensorzero_schema import bookkeeping, schema

LAUNCHER = Path(__file__).with_name("tensorzero_gateway.py")
# One for each of its three lists of migrations, and one that succeeds.
LARGEST_ATTEMPT = 4
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
            version=_version(site, "litellm"),
        )


@contextmanager
def tensorzero(site: Site) -> Iterator[Gateway]:
    """Adaptive experimentation over five prompts, on a PostgreSQL of its own."""
    python = _installed(site, "bin/python")
    library = _installed(site, "lib/python3*/site-packages/tensorzero/tensorzero*.so")
    config = _tensorzero_config(site)
    with postgres(site) as database:
        database.run(schema(library))
        for attempt in range(1, LARGEST_ATTEMPT + 1):
            command = (python, LAUNCHER, config, database.url)
            with child(command, log=site.log(f"tensorzero{attempt}")) as server:
                try:
                    url = server.announced_url()
                except NotStarted:
                    booked = bookkeeping(server.output())
                    if booked is None or attempt == LARGEST_ATTEMPT:
                        raise
                    database.run(booked)
                    continue
                yield Gateway(
                    f"{url}/chat/completions",
                    processes=(server.process_id,),
                    database_processes=(database.process_id,),
                    model="tensorzero::function_name::answer",
                    system_prompt=False,
                    same_bytes=False,
                    version=_version(site, "tensorzero"),
                    kept=lambda answered, failed: _tensorzero_kept(database, answered),
                )
                return


def _tensorzero_config(site: Site) -> Path:
    """A function whose variants are our session's candidates, as prompts."""
    prompts = {
        f"prompt_{number}": text for number, text in enumerate((SYSTEM_PROMPT, *INSTRUCTIONS))
    }
    lines = [
        "[gateway]",
        "observability.enabled = true",
        "[models.mock]",
        'routing = ["mock"]',
        "[models.mock.providers.mock]",
        'type = "openai"',
        'model_name = "mock"',
        f'api_base = "{site.upstream_url}"',
        'api_key_location = "none"',
        "[metrics.good]",
        'type = "float"',
        'level = "episode"',
        'optimize = "max"',
        "[functions.answer]",
        'type = "chat"',
        "[functions.answer.experimentation]",
        'type = "adaptive"',
        f"candidate_variants = {json.dumps(list(prompts))}",
        'metric = "good"',
    ]
    for name, text in prompts.items():
        template = site.folder / f"{name}.minijinja"
        template.write_text(text)
        lines += [
            f"[functions.answer.variants.{name}]",
            'type = "chat_completion"',
            'model = "mock"',
            f'templates.system.path = "{template}"',
        ]
    config = site.folder / "tensorzero.toml"
    config.write_text("\n".join(lines))
    return config


def _tensorzero_kept(database: Database, answered: int) -> Sequence[str]:
    """Whether it did the work that it is measured at: an episode pinned, an inference kept."""
    complaints = []
    for table in ("variant_by_episode", "tensorzero.chat_inferences"):
        found = database.number(f"SELECT count(*) FROM {table}")
        if found < answered:
            complaints.append(f"{found:,} rows in {table} for {answered:,} calls answered")
    return complaints


def _installed(site: Site, path: str) -> Path:
    """A file of the peers' virtual environment. Raises NotInstalled."""
    if site.peers_venv is None:
        raise NotInstalled(f"no --peers-venv; {INSTALL}")
    found = next(site.peers_venv.glob(path), None)
    if found is None:
        raise NotInstalled(f"no {path} in {site.peers_venv}; {INSTALL}")
    return found


def _version(site: Site, package: str) -> str:
    folder = _installed(site, f"lib/python3*/site-packages/{package}-[0-9]*.dist-info")
    return folder.name.removesuffix(".dist-info").rpartition("-")[2]
