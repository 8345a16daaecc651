"""The pictures of the documentation: a real run on a real Prefect server, in a real Chromium.

    python -m docs.screenshots            # the tutorial's flow, 3 to 5 minutes, into docs/pictures
    python -m docs.screenshots --made-up  # 40 candidates with long prompts, to look at

Run it from the project's root. It needs the embedded model (`prefect-mipro model install`) and a
Chromium (`apt install chromium fonts-dejavu-core`).
"""

import argparse
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from PIL import Image
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from prefect_mipro.artifacts.publishing import SessionArtifacts
from prefect_mipro.artifacts.reports import artifact_key
from tests.plugin.examples import large_status

PICTURES = Path(__file__).parent / "pictures"
TUTORIAL = Path(__file__).parent / "tutorial.md"
SESSION_ID = "tickets"
LARGEST_BYTES = 200_000
COLORS = 256
START_TIMEOUT_SECONDS = 120.0
# Of the browser's own clock, which runs ahead while it waits: enough for the page's last request.
LOADING_MILLISECONDS = 15_000


@dataclass(frozen=True)
class Shot:
    """A page of Prefect, and how much of it is in the picture."""

    name: str
    path: str
    width: int
    height: int


class Server:
    """A Prefect server with a database of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_url = f"{url}/api"

    def newest(self, key: str) -> str:
        """The page of the newest artifact with that key."""
        answer = self._ask("artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
        return f"/artifacts/artifact/{answer[0]['latest_id']}"

    def run_of(self, flow_name: str) -> str:
        """The page of the only run of that flow, at its artifacts."""
        answer = self._ask("flow_runs/filter", {"flows": {"name": {"any_": [flow_name]}}})
        return f"/runs/flow-run/{answer[0]['id']}?tab=Artifacts"

    def _ask(self, path: str, body: dict[str, object]) -> list[dict[str, str]]:
        answer = httpx.post(f"{self.api_url}/{path}", json=body).raise_for_status()
        found: list[dict[str, str]] = answer.json()
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, look, and write the pictures."""
    parser = argparse.ArgumentParser(description="Take the pictures of the documentation.")
    parser.add_argument("--folder", type=Path, default=PICTURES, help="where the pictures go")
    parser.add_argument("--rollouts", type=int, default=200, help="of the tutorial's flow")
    parser.add_argument(
        "--made-up", action="store_true", help="a large session that was never run instead"
    )
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    with prefect_server() as server, temporary_settings({PREFECT_API_URL: server.api_url}):
        shots = _made_up(server) if options.made_up else _tutorial(server, options.rollouts)
        for shot in shots:
            path = options.folder / f"{shot.name}.png"
            photograph(f"{server.url}/v2{shot.path}", path, width=shot.width, height=shot.height)
            print(f"{path}: {path.stat().st_size:,} bytes")


def _tutorial(server: Server, rollouts: int) -> list[Shot]:
    """What a reader of the tutorial sees, from the same code."""
    code = re.search(r'```python title="tickets.py"\n(.*?)```', TUTORIAL.read_text("utf-8"), re.S)
    assert code
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tickets.py").write_text(code[1], encoding="utf-8")
        program = f"import tickets; tickets.improve({rollouts})"
        environment = {**os.environ, "PREFECT_API_URL": server.api_url, "XDG_DATA_HOME": folder}
        subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, check=True)
    keys = [artifact_key(SESSION_ID, name) for name in ("champion", "leaderboard")]
    return [
        Shot("champion", server.newest(keys[0]), 1280, 960),
        Shot("champion-whole", server.newest(keys[0]), 1280, 2120),
        Shot("leaderboard", server.newest(keys[1]), 1280, 760),
        Shot("run", server.run_of("optimize-prompt"), 1280, 900),
    ]


def _made_up(server: Server) -> list[Shot]:
    status = large_status()

    @flow(name="made-up")
    def publish() -> SessionArtifacts:
        artifacts = SessionArtifacts(status.session_id)
        artifacts.show_progress(status, done=310, planned=400)
        artifacts.publish(status)
        return artifacts

    artifacts = publish()
    return [
        Shot("made-up-champion", server.newest(artifacts.champion_key), 1280, 2400),
        Shot("made-up-leaderboard", server.newest(artifacts.leaderboard_key), 1280, 900),
        Shot("made-up-progress", server.newest(artifacts.progress_key), 1280, 500),
        Shot("made-up-run", server.run_of("made-up"), 1280, 900),
    ]


@contextmanager
def prefect_server() -> Iterator[Server]:
    """A server on a free port, which ends with the context."""
    server = Server(f"http://127.0.0.1:{_free_port()}")
    with tempfile.TemporaryDirectory() as home:
        process = subprocess.Popen(
            [
                *(Path(sys.executable).with_name("prefect"), "server", "start"),
                *("--host", "127.0.0.1", "--port", server.url.rpartition(":")[2]),
            ],
            env={
                **os.environ,
                "PREFECT_HOME": home,
                # Its pages ask the address that these tell.
                "PREFECT_API_URL": server.api_url,
                "PREFECT_SERVER_UI_API_URL": server.api_url,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            },
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(f"{server.api_url}/health")
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def photograph(url: str, path: Path, *, width: int, height: int) -> None:
    """Write what a browser's window of that size shows, in few colors."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *(f"--user-data-dir={profile}", f"--window-size={width},{height}"),
                *(f"--virtual-time-budget={LOADING_MILLISECONDS}", "--hide-scrollbars"),
                *(f"--screenshot={path}", url),
            ],
            stderr=subprocess.DEVNULL,
            check=True,
        )
    with Image.open(path) as picture:
        few_colors = picture.convert("RGB").quantize(COLORS, method=Image.Quantize.FASTOCTREE)
    few_colors.save(path, optimize=True)
    size = path.stat().st_size
    if size > LARGEST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes, more than {LARGEST_BYTES:,}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_for(url: str) -> None:
    end = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            httpx.get(url).raise_for_status()
        except httpx.HTTPError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)
        else:
            return


if __name__ == "__main__":
    main()
