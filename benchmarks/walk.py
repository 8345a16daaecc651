"""How many files of the package a proxied call and a reward pass, from the socket to the database.

    python -m benchmarks.walk

A server in this process answers one call and takes one reward, each after others like it, so that
nothing is done for the first time. A file counts if one of its functions runs meanwhile: on the way
to the answer, or in what follows within a second of it. `-v` names the files.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx

import prefect_mipro
from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.transport import DEFAULT_BACKEND_URL

PACKAGE = Path(prefect_mipro.__file__).parent
AFTERWARDS_SECONDS = 1.0
WARM_UP = 3
SYSTEM = {"role": "system", "content": "You name the topic of a query."}
CONFIG = {
    "prompt_learning": {
        "algorithm": "mipro",
        "initial_prompt": {
            "messages": [
                {"role": "system", "order": 0, "pattern": SYSTEM["content"]},
                {"role": "user", "order": 1, "pattern": "{query}"},
            ]
        },
        "policy": {"model": "m"},
    }
}
ANSWER = json.dumps(
    {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "cards"}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1},
    }
).encode()


class Model(BaseHTTPRequestHandler):
    """A model's server that always gives the same answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, format: str, *_: Any) -> None: ...


class Walk:
    """The files of the package in which a function begins while it is watched, in any thread."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        threading.setprofile(self._note)
        sys.setprofile(self._note)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(PACKAGE)):
            self.files.add(str(Path(path).relative_to(PACKAGE)))


async def measure() -> dict[str, set[str]]:
    """The files that each passes."""
    walk = Walk()
    with tempfile.TemporaryDirectory() as folder, HTTPServer(("127.0.0.1", 0), Model) as model:
        threading.Thread(target=model.serve_forever, daemon=True).start()
        settings = ServerSettings(
            database_url=f"sqlite:///{folder}/mipro.db",
            upstream_url=f"http://127.0.0.1:{model.server_port}/v1",
        )
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url=DEFAULT_BACKEND_URL) as http:
                found = await _walked(http, walk)
        model.shutdown()
    return found


async def _walked(http: httpx.AsyncClient, walk: Walk) -> dict[str, set[str]]:
    created = await http.post("/api/v1/online/sessions", json={"config_body": CONFIG})
    session = created.raise_for_status().json()
    path = urlsplit(session["online_url"]).path

    async def call(number: int) -> None:
        asked = {"role": "user", "content": f"where is card {number}?"}
        body = {"model": "m", "messages": [SYSTEM, asked]}
        answer = await http.post(f"{path}/r{number}/chat/completions", json=body)
        answer.raise_for_status()

    async def reward(number: int) -> None:
        body = {"rollout_id": f"r{number}", "reward_info": {"score": 1.0}}
        url = f"/api/v1/online/sessions/{session['session_id']}/reward"
        (await http.post(url, json=body)).raise_for_status()

    steps: dict[str, Callable[[int], Any]] = {"a proxied call": call, "a reward": reward}
    found = {}
    for name, step in steps.items():
        for number in range(WARM_UP):
            await step(number)
        await asyncio.sleep(AFTERWARDS_SECONDS)
        if step is reward:
            await call(WARM_UP + 1)
            await asyncio.sleep(AFTERWARDS_SECONDS)
        walk.files.clear()
        await step(WARM_UP + (step is reward))
        await asyncio.sleep(AFTERWARDS_SECONDS)
        found[name] = set(walk.files)
    return found


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="name the files")
    verbose = parser.parse_args().verbose
    for name, files in asyncio.run(measure()).items():
        print(f"{name} passes {len(files)} files")
        if verbose:
            print("\n".join(f"  {path}" for path in sorted(files)))


if __name__ == "__main__":
    main()
