"""Pages of other origins in a real browser, and a server without keys on the same machine."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefect_mipro.server.app import create_app
from prefect_mipro.server.settings import ServerSettings
from tests.server.live import LiveServer
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, chat_path
from tests.server.scripted_upstream import ScriptedUpstream

WAIT_SECONDS = 60
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--no-proxy-server", "--host-resolver-rules=MAP evil.test 127.0.0.1"),
]
ORIGINS = {"cross-site": "evil.test", "same-site": "127.0.0.1", "rebound": "evil.test"}
ATTEMPTS = (
    *("text post", "untyped post", "json post", "delete", "read", "opaque read", "beacon", "form"),
    *("image", "script", "frame", "style", "events", "socket"),
)
PAGE = """<!doctype html><script>
const url = (path, attempt) => `TARGET${path}?attempt=${attempt}, PAGE`
const plain = {method: "POST", mode: "no-cors", body: JSON.stringify(MADE)}
const typed = {...plain, mode: "cors", headers: {"content-type": "application/json"}}
const sent = (attempt, options, path = "SESSIONS") =>
  fetch(url(path, attempt), options).catch(() => {})
const element = (tag, attributes) =>
  document.documentElement.append(Object.assign(document.createElement(tag), attributes))
sent("text post", plain)
sent("untyped post", {...plain, body: new Blob([JSON.stringify(CHAT)])}, "MODEL")
sent("json post", typed)
sent("delete", {method: "DELETE"}, "SESSIONS/s")
sent("read", {})
sent("opaque read", {mode: "no-cors"}, "SESSIONS/s/export")
navigator.sendBeacon(url("MODEL", "beacon"), JSON.stringify(CHAT))
element("iframe", {name: "shown"})
const form = document.createElement("form")
Object.assign(form, {method: "POST", action: url("SESSIONS/s/proxy-token", "form")})
form.target = "shown"
document.documentElement.append(form)
form.submit()
element("img", {src: url("SESSIONS/s/prompt", "image") + "&rollout_id=r1"})
element("script", {src: url("SESSIONS", "script")})
element("iframe", {src: url("/docs", "frame")})
element("link", {rel: "stylesheet", href: url("/openapi.json", "style")})
new EventSource(url("SESSIONS/s/events", "events"))
new WebSocket(new URL(url("SESSIONS", "socket"), location).href.replace(/^http/, "ws"))
</script>"""


class Answers:
    """An app, and the status of its answer to each attempt of each page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._changed = threading.Condition()
        self._statuses: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope.get("query_string", b"").decode())

        async def noted(message: Message) -> None:
            if "attempt" in query and message["type"] == "http.response.start":
                with self._changed:
                    self._statuses[query["attempt"][0]] = message["status"]
                    self._changed.notify_all()
            await send(message)

        await self._app(scope, receive, noted)

    def of(self, attempts: set[str]) -> dict[str, int]:
        """The statuses, once all have been answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._statuses.keys() >= attempts, WAIT_SECONDS)
            return dict(self._statuses)


def pages(port: int, target: str, model: str) -> dict[str, str]:
    """Pages by their paths; `/all` has the others in frames, each on the origin that it names."""
    shared = {
        "MODEL": model,
        "SESSIONS": SESSIONS,
        "MADE": json.dumps({"session_id": "made", "config_body": CONFIG}),
        "CHAT": json.dumps(CHAT),
    }
    content = PAGE
    for name, value in shared.items():
        content = content.replace(name, value)
    frames = "".join(
        f'<iframe src="http://{ORIGINS[page]}:{port}/{page}"></iframe>' for page in ORIGINS
    )
    return {
        "/all": frames,
        **{
            f"/{page}": content.replace("PAGE", page).replace(
                "TARGET", "" if page == "rebound" else target
            )
            for page in ORIGINS
        },
    }


@contextmanager
def foreign_server(target: str, model: str) -> Iterator[int]:
    """The port of a server of pages. Their host is then rebound: all else leads to the target."""

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages(server.server_port, target, model).get(self.path)
            if page is None:
                self.forward()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=20)
            connection.request(self.command, self.path, body or None, dict(self.headers.items()))
            self.send_response(connection.getresponse().status)
            self.end_headers()
            connection.close()

        do_POST = do_DELETE = do_OPTIONS = forward  # noqa: N815

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@contextmanager
def browser_at(url: str, folder: Path) -> Iterator[None]:
    """A browser that has the page open."""
    browser = subprocess.Popen(
        [str(BROWSER), *OPTIONS, f"--user-data-dir={folder}", url], stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        browser.kill()
        browser.wait()


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_pages_of_other_origins_read_and_change_nothing(tmp_path: Path) -> None:
    attempts = {f"{attempt}, {page}" for attempt in ATTEMPTS for page in ORIGINS}
    with ScriptedUpstream() as model:
        settings = ServerSettings(
            database_url=f"sqlite:///{tmp_path}/mipro.db", upstream_url=model.url
        )
        answers = Answers(create_app(settings))
        with LiveServer(answers) as server, httpx.Client(base_url=server.url) as own:
            body = {"session_id": "s", "config_body": CONFIG}
            before = own.post(SESSIONS, json=body).json()
            with (
                foreign_server(server.url, chat_path(before, "r1")) as port,
                browser_at(f"http://evil.test:{port}/all", tmp_path / "browser"),
            ):
                found = answers.of(attempts)
            assert found == dict.fromkeys(attempts, 403)
            assert own.get(f"{SESSIONS}/s").json() == before
            assert [each["session_id"] for each in own.get(SESSIONS).json()["items"]] == ["s"]
            assert model.received == []
