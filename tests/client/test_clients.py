"""Both clients against a real server on loopback."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from prefect_mipro.client import operations
from prefect_mipro.client.clients import AsyncClient, Client, backend_root
from prefect_mipro.client.operations import Operation
from prefect_mipro.errors import BackendUnreachable, InputInvalid, KeyRejected, SessionNotFound
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.rollouts import RewardRequest
from prefect_mipro.models.sessions import CreateSession, SessionState
from tests.client.backend import KEY, RECEIPT, STATUS, Answer, Backend
from tests.fake_upstream import FakeUpstream

LOST = Answer(dropped=True)
REWARD = RewardRequest(reward_info={"score": 1.0}, rollout_id="r1")


def test_a_request_carries_the_key_and_says_who_we_are(backend: Backend, client: Client) -> None:
    client.health()
    assert backend.last.headers["authorization"] == f"Bearer {KEY}"
    assert backend.last.headers["user-agent"] == "prefect-mipro"


async def test_an_async_request_is_the_same(backend: Backend, async_client: AsyncClient) -> None:
    await async_client.health()
    assert backend.last.headers["authorization"] == f"Bearer {KEY}"


def test_without_a_key_no_authorization_is_sent(backend: Backend) -> None:
    with Client(backend.url) as client:
        client.health()
    assert "authorization" not in backend.last.headers


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Client(backend.url) as client:
        client.health()
    async with AsyncClient(backend.url) as async_client:
        await async_client.health()
    assert len(backend.received) == 2


def test_further_headers_are_sent_along(backend: Backend) -> None:
    with Client(backend.url, headers={"X-Org-ID": "o1"}) as client:
        client.health()
    assert backend.last.headers["x-org-id"] == "o1"


@pytest.mark.parametrize("key", [f"{KEY}\n", f"  {KEY}", SecretStr(KEY)])
def test_space_around_a_key_is_dropped(backend: Backend, key: str | SecretStr) -> None:
    with Client(backend.url, key) as client:
        client.health()
    assert backend.last.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["a\nb-secret", "a\x00b-secret", "ü-secret"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        Client("http://h", key)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("end", ["", "/", "/api", "/api/", "/api/v1", "/api/v1/", "/v1"])
def test_every_way_to_write_the_address_reaches_the_backend(backend: Backend, end: str) -> None:
    with Client(backend.url + end) as client:
        client.sessions()
    assert backend.asked == [("GET", "/api/v1/online/sessions")]


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://api", "http://api"),
        ("http://v1/", "http://v1"),
        ("https://h/prefix/api", "https://h/prefix"),
        (" http://h:8000 ", "http://h:8000"),
        ("http://[::1]:8000/api", "http://[::1]:8000"),
    ],
)
def test_only_the_path_of_an_address_is_shortened(url: str, root: str) -> None:
    assert backend_root(url) == root


@pytest.mark.parametrize(
    "url", ["", "h:8000", "localhost", "ftp://h", "http://", "http://[::1", "http://h:99999"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InputInvalid, match=r"http://127\.0\.0\.1:8765"):
        Client(url)


@pytest.mark.parametrize("url", ["http://h?key=1", "http://h#top"])
def test_an_address_ends_with_its_path(url: str) -> None:
    with pytest.raises(InputInvalid, match="root"):
        Client(url)


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(InputInvalid) as caught:
        Client("http://user:password@h")
    assert "password" not in str(caught.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), True, "30", None])
def test_an_unusable_timeout_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client("http://h", timeout_seconds=seconds)


def test_connections_are_kept(backend: Backend, client: Client) -> None:
    for _ in range(3):
        client.health()
    assert len({each.port for each in backend.received}) == 1


def call_of_a_model() -> Operation[JsonObject]:
    return Operation(
        method="POST", path="/v1/chat/completions", body={}, repeatable=False, answer=dict
    )


class Pairs:
    """A model that answers two calls at once, and sees how many there are at a time."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._pair = threading.Barrier(2, timeout=30)

    def answer(self, _body: JsonObject) -> str:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self._pair.wait()
        with self._lock:
            self._now -= 1
        return "ok"


def test_calls_under_way_are_as_many_as_connections_are_allowed() -> None:
    pairs = Pairs()
    with (
        FakeUpstream(pairs.answer) as model,
        Client(model.url.removesuffix("/v1"), most_connections=2) as client,
        ThreadPoolExecutor(6) as pool,
    ):
        list(pool.map(lambda _: client.send(call_of_a_model()), range(6)))
    assert pairs.most == 2


async def test_async_calls_under_way_are_as_many_as_connections_are_allowed() -> None:
    pairs = Pairs()
    with FakeUpstream(pairs.answer) as model:
        async with AsyncClient(model.url.removesuffix("/v1"), most_connections=2) as client:
            await asyncio.gather(*(client.send(call_of_a_model()) for _ in range(6)))
    assert pairs.most == 2


async def test_async_connections_are_kept(backend: Backend, async_client: AsyncClient) -> None:
    for _ in range(3):
        await async_client.health()
    assert len({each.port for each in backend.received}) == 1


async def test_many_requests_at_once_are_all_answered(
    backend: Backend, async_client: AsyncClient
) -> None:
    answers = await asyncio.gather(*(async_client.health() for _ in range(200)))
    assert answers == [{}] * 200


def test_typed_answers_are_records(backend: Backend, client: Client) -> None:
    backend.answers(STATUS, RECEIPT, STATUS)
    assert client.create_session(CreateSession(config_name="c")).session_id == "support-bot"
    assert client.reward("support-bot", REWARD).candidate_id == "cand_1"
    assert client.change_state("support-bot", SessionState.PAUSED).state is SessionState.RUNNING


def test_a_body_travels_as_json(backend: Backend, client: Client) -> None:
    backend.answers(RECEIPT)
    client.reward("s", REWARD)
    assert backend.last.headers["content-type"] == "application/json"
    assert backend.last.body == {"reward_info": {"score": 1.0}, "rollout_id": "r1"}


def test_an_escaped_id_arrives_escaped(backend: Backend, client: Client) -> None:
    client.candidate("a/b?c")
    assert backend.last.path == "/api/candidates/a%2Fb%3Fc"


def test_a_query_travels_encoded(backend: Backend, client: Client) -> None:
    client.candidates("s", sort="objective:desc,created_at:desc", cursor="a b&c")
    assert backend.last.query["sort"] == "objective:desc,created_at:desc"
    assert backend.last.query["cursor"] == "a b&c"


def test_a_dropped_reward_is_sent_again_as_the_same_request(
    backend: Backend, client: Client, waits: list[float]
) -> None:
    backend.answers(LOST, LOST, RECEIPT)
    client.reward("s", REWARD)
    assert len(backend.received) == 3
    assert len({each.headers["idempotency-key"] for each in backend.received}) == 1
    assert len({str(each.body) for each in backend.received}) == 1
    assert waits == [0.5, 1.0]


async def test_a_dropped_create_is_sent_again_as_the_same_request(
    backend: Backend, async_client: AsyncClient, waits: list[float]
) -> None:
    backend.answers(LOST, Answer(status=503, headers={"Retry-After": "3"}), STATUS)
    await async_client.create_session(CreateSession(config_name="c"))
    assert len({each.headers["idempotency-key"] for each in backend.received}) == 1
    assert len({each.body["system"]["name"] for each in backend.received}) == 1
    assert waits == [0.5, 3.0]


def test_the_same_operation_sent_twice_is_one_request_for_the_backend(
    backend: Backend, client: Client
) -> None:
    backend.answers(RECEIPT, RECEIPT)
    reward = operations.reward("s", REWARD)
    client.send(reward)
    client.send(reward)
    assert len({each.headers["idempotency-key"] for each in backend.received}) == 1


def test_a_candidate_of_ones_own_is_sent_once(backend: Backend, client: Client) -> None:
    backend.answers(LOST)
    with pytest.raises(BackendUnreachable):
        client.add_candidate("s", "Classify.")
    assert len(backend.received) == 1


def test_a_slow_answer_ends_in_an_error(backend: Backend, waits: list[float]) -> None:
    backend.answers(*[Answer(held=True)] * 4)
    with (
        Client(backend.url, KEY, timeout_seconds=0.05, sleep=waits.append) as client,
        pytest.raises(BackendUnreachable, match="timed out"),
    ):
        client.health()
    assert len(waits) == 3


async def test_a_slow_answer_ends_in_an_error_for_the_async_client(backend: Backend) -> None:
    backend.answers(Answer(held=True))
    async with AsyncClient(backend.url, KEY, timeout_seconds=0.05) as client:
        with pytest.raises(BackendUnreachable):
            await client.add_candidate("s", "Classify.")


def test_no_server_at_all_ends_in_an_error_that_names_the_address(waits: list[float]) -> None:
    gone = Backend()
    gone.stop()
    with (
        Client(gone.url, KEY, sleep=waits.append) as client,
        pytest.raises(BackendUnreachable) as caught,
    ):
        client.health()
    assert caught.value.url == f"{gone.url}/health"
    assert caught.value.status == 0
    assert len(waits) == 3


def test_a_refusal_raises_the_class_that_the_backend_names(
    backend: Backend, client: Client
) -> None:
    body = {"error": "SessionNotFound", "message": "no session has the id 's'"}
    backend.answers(Answer(body, status=404))
    with pytest.raises(SessionNotFound) as caught:
        client.session_status("s")
    assert str(caught.value) == (
        f"no session has the id 's' [404 {backend.url}/api/v1/online/sessions/s]"
    )


async def test_a_refusal_raises_from_the_async_client_too(
    backend: Backend, async_client: AsyncClient
) -> None:
    backend.answers(Answer({"error": "KeyRejected", "message": "unknown key"}, status=401))
    with pytest.raises(KeyRejected):
        await async_client.health()


def test_redirects_are_not_followed(backend: Backend, client: Client) -> None:
    backend.answers(Answer({}, status=307, headers={"Location": f"{backend.url}/elsewhere"}))
    with pytest.raises(Exception, match="/elsewhere"):
        client.health()
    assert len(backend.received) == 1


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_client_shows_its_address_and_not_its_key(
    make: Callable[..., Client | AsyncClient],
) -> None:
    client = make("http://h/api", KEY)
    assert repr(client) == f"{type(client).__name__}('http://h')"
    assert KEY not in repr(vars(client))


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("travel", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_client_does_not_travel(
    make: Callable[..., Client | AsyncClient], travel: Callable[[object], object]
) -> None:
    with pytest.raises(TypeError, match="make a new one"):
        travel(make("http://h", KEY))


def test_the_key_is_in_no_log(
    backend: Backend, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    backend.answers(LOST, STATUS)
    client.session_status("s")
    assert caplog.records
    assert KEY not in caplog.text


def test_a_method_tells_what_it_does() -> None:
    assert Client.session_status.__doc__ == operations.session_status.__doc__
