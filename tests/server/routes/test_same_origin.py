"""Web pages in the developer's browser, from which a server without keys takes nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from prefect_mipro.server.app import create_app
from prefect_mipro.server.routes.same_origin import SameOrigin
from prefect_mipro.server.settings import ServerSettings
from prefect_mipro.server.upstream.addresses import AllowedHost
from tests.server.live import LiveServer
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, chat_path
from tests.server.scripted_upstream import ScriptedUpstream

FOREIGN = {"Origin": "http://evil.test"}
OTHER_PORT = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
IMAGE = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
REBOUND = {"Host": "evil.test:8765"}
PAGES = [FOREIGN, OTHER_PORT, IMAGE, REBOUND, {"Origin": "null"}]


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as model:
        yield model


@pytest.fixture(scope="module")
def http(
    tmp_path_factory: pytest.TempPathFactory, model: ScriptedUpstream
) -> Iterator[httpx.Client]:
    """A server without keys, which has the session `s`."""
    settings = ServerSettings(
        database_url=f"sqlite:///{tmp_path_factory.mktemp('server')}/mipro.db",
        upstream_url=model.url,
        public_url="https://mipro.example.com",
    )
    with (
        LiveServer(create_app(settings)) as server,
        httpx.Client(base_url=server.url, timeout=20) as client,
    ):
        created = client.post(SESSIONS, json={"session_id": "s", "config_body": CONFIG})
        assert created.is_success
        yield client


@pytest.fixture(scope="module")
def chat(http: httpx.Client) -> str:
    return chat_path(http.get(f"{SESSIONS}/s").json(), "r1")


@pytest.mark.parametrize("headers", PAGES)
def test_a_page_of_another_origin_reads_and_changes_nothing(
    http: httpx.Client, model: ScriptedUpstream, chat: str, headers: dict[str, str]
) -> None:
    before = http.get(f"{SESSIONS}/s").json()
    calls: list[tuple[str, str, Any]] = [
        *(("GET", path, None) for path in ("/health", "/ready", "/metrics", "/openapi.json")),
        ("GET", "/docs", None),
        ("GET", "/no/such/path", None),
        ("GET", SESSIONS, None),
        ("GET", f"{SESSIONS}/s/prompt?rollout_id=r1", None),
        ("GET", f"{SESSIONS}/s/export", None),
        ("OPTIONS", SESSIONS, None),
        ("POST", SESSIONS, {"session_id": "made", "config_body": CONFIG}),
        ("POST", f"{SESSIONS}/s/proxy-token", None),
        ("PATCH", f"{SESSIONS}/s", {"state": "cancelled"}),
        ("DELETE", f"{SESSIONS}/s", None),
        ("GET", chat.replace("chat/completions", "models"), None),
        ("OPTIONS", chat, None),
        ("POST", chat, CHAT),
    ]
    for method, path, body in calls:
        answer = http.request(method, path, json=body, headers=headers)
        assert answer.status_code == 403, (method, path)
        assert "access-control-allow-origin" not in answer.headers
        assert "s." not in answer.text
    assert http.get(f"{SESSIONS}/s").json() == before
    assert [each["session_id"] for each in http.get(SESSIONS).json()["items"]] == ["s"]
    assert model.received == []


def test_a_refusal_says_so_in_the_shape_of_its_path(http: httpx.Client, chat: str) -> None:
    told = http.post(chat, json=CHAT, headers=FOREIGN).json()["error"]
    assert (told["type"], told["code"]) == ("permission_error", "InputInvalid")
    assert "another origin (http://evil.test)" in told["message"]
    told = http.get(SESSIONS, headers=REBOUND).json()
    assert told["error"] == "InputInvalid"
    assert "'evil.test'" in told["message"]
    assert "--allowed-hosts evil.test" in told["message"]


def test_the_log_names_each_origin_once(
    http: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        http.get(SESSIONS, headers={"Origin": "http://my-app.test"})
    lines = [each for each in caplog.records if getattr(each, "origin", "") == "http://my-app.test"]
    assert [line.levelname for line in lines] == ["WARNING"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "same-origin"},
        {"Host": "localhost:8765", "Origin": "http://localhost:8765"},
        {"Host": "LOCALHOST.:8765", "Origin": "http://localhost.:8765"},
        {"Host": "mipro.example.com", "Origin": "https://mipro.example.com"},
        # Behind a proxy that sends a Host of its own.
        {"Host": "127.0.0.1:8765", "Origin": "https://mipro.example.com"},
    ],
)
def test_programs_and_its_own_pages_may_call(http: httpx.Client, headers: dict[str, str]) -> None:
    assert http.get(f"{SESSIONS}/s", headers=headers).status_code == 200


def test_a_link_leads_to_the_docs_and_to_nothing_else(http: httpx.Client) -> None:
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    assert http.get("/docs", headers=link).status_code == 200
    assert http.get("/docs", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403
    assert http.get(f"{SESSIONS}/s", headers=link).status_code == 403


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "text/plain;application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/ld+json",
    ],
)
def test_a_body_is_taken_as_json_only(
    http: httpx.Client, model: ScriptedUpstream, chat: str, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    for path, body in ((chat, CHAT), (SESSIONS, {"session_id": "made", "config_body": CONFIG})):
        answer = http.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 415
        assert "send application/json" in answer.text
        assert (content_type or "missing") in answer.text
    assert model.received == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n",
        b"GET /health HTTP/1.0\r\n",
        b"GET /health HTTP/1.1\r\nHost:\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.test\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost, evil.test\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost@evil.test\r\n",
        b"GET /health HTTP/1.1\r\nHost: [::1\r\n",
        b"POST /api/mipro/v1/s/chat/completions HTTP/1.1\r\n",
    ],
)
def test_a_request_has_one_host(http: httpx.Client, head: bytes) -> None:
    parts = urlsplit(str(http.base_url))
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as caller:
        caller.sendall(head + b"Connection: close\r\n\r\n")
        with caller.makefile("rb") as answer:
            assert b" 400 " in answer.readline()


LOCAL = [b"localhost:8765", b"Localhost.", b"127.0.0.1", b"127.8.8.8:1", b"[::1]:8765"]
ADDRESSES = [b"10.1.2.3:8765", b"[fd00::7]:8765"]
FOREIGN_NAMES = [
    b"evil.test",
    b"localhost.evil.test",
    b"evil-localhost",
    b"127.0.0.1.nip.io:8765",
    b"a.localhost:8765",
    b"0.0.0.0:8765",
    b"2130706433",
]


def taken(checked: SameOrigin, *hosts: bytes) -> list[bytes]:
    """Those of the hosts under which it can be called."""
    scopes = [{"method": "GET", "path": "/", "headers": [(b"host", host)]} for host in hosts]
    return [
        host for host, scope in zip(hosts, scopes, strict=True) if checked.refusal(scope) is None
    ]


@pytest.mark.parametrize("listens_on", ["127.0.0.1", "localhost", "::1"])
def test_a_local_server_answers_to_local_names(listens_on: str) -> None:
    checked = SameOrigin(listens_on=listens_on, public_url=None, allowed=())
    assert taken(checked, *LOCAL, *ADDRESSES, *FOREIGN_NAMES) == LOCAL


def test_it_answers_to_its_public_and_its_allowed_names_too() -> None:
    checked = SameOrigin(
        listens_on="127.0.0.1",
        public_url="https://mipro.example.com/base",
        allowed=(AllowedHost("box.lan", port=8765), AllowedHost("*.example.net")),
    )
    more = [b"MIPRO.example.com", b"box.lan:8765", b"a.example.net:1"]
    foreign = [b"box.lan:80", b"box.lan", b"example.net", *ADDRESSES, *FOREIGN_NAMES]
    assert taken(checked, *LOCAL, *more, *foreign) == LOCAL + more


@pytest.mark.parametrize("listens_on", ["0.0.0.0", "::", "10.1.2.3"])
def test_a_server_for_other_machines_checks_names_only_when_it_has_a_list(listens_on: str) -> None:
    checked = SameOrigin(listens_on=listens_on, public_url=None, allowed=())
    everything = [*LOCAL, *ADDRESSES, *FOREIGN_NAMES]
    assert taken(checked, *everything) == everything


def test_with_a_list_it_still_takes_addresses_which_probes_call() -> None:
    checked = SameOrigin(
        listens_on="0.0.0.0",
        public_url="http://backend:8765",
        allowed=(AllowedHost("mipro.example.com"),),
    )
    own = [b"backend:8765", b"mipro.example.com"]
    everything = [*LOCAL, *ADDRESSES, *own, *FOREIGN_NAMES]
    assert taken(checked, *everything) == [*LOCAL, *ADDRESSES, *own, b"0.0.0.0:8765"]
