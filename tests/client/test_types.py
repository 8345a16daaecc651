"""What a type checker infers for both clients and the session; running it proves nothing more."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from prefect_mipro.client import operations
from prefect_mipro.client.clients import AsyncClient, Client
from prefect_mipro.client.operations import Operation, raw
from prefect_mipro.client.session import MiproOnlineSession
from prefect_mipro.models.base import JsonObject
from prefect_mipro.models.rollouts import RewardReceipt, RewardRequest
from prefect_mipro.models.sessions import SessionStatus, SessionUrls
from tests.client.backend import RECEIPT, STATUS, Backend

REWARD = RewardRequest(reward_info={"score": 1.0})


def test_a_client_answers(backend: Backend, client: Client) -> None:
    backend.answers(STATUS, STATUS, RECEIPT, STATUS)
    assert_type(client.session_status("s"), SessionStatus)
    assert_type(client.session_urls("s", correlation_id="c"), SessionUrls)
    assert_type(client.reward("s", REWARD), RewardReceipt)
    assert_type(client.send(raw(operations.session_status("s"))), JsonObject)


async def test_an_async_client_is_awaited(backend: Backend, async_client: AsyncClient) -> None:
    backend.answers(STATUS, RECEIPT)
    coming: Coroutine[Any, Any, SessionStatus] = async_client.session_status("s")
    assert_type(await coming, SessionStatus)
    assert_type(await async_client.reward("s", REWARD), RewardReceipt)
    assert_type(await async_client.candidates("s", limit=3), JsonObject)


def test_an_operation_has_the_type_of_its_answer() -> None:
    assert_type(operations.session_status("s"), Operation[SessionStatus])
    assert_type(raw(operations.session_status("s")), Operation[JsonObject])


def test_a_session_answers_and_its_twins_are_awaited(backend: Backend) -> None:
    def inferred(session: MiproOnlineSession) -> None:
        assert_type(session.status(), JsonObject)
        coming: Coroutine[Any, Any, JsonObject] = session.status_async()
        coming.close()
        assert_type(MiproOnlineSession.create(config_name="c"), MiproOnlineSession)
        assert_type(MiproOnlineSession.get_online_url("s", timeout=1.0), str)
        session.update_reward()  # type: ignore[call-arg]
        session.list_candidates(limits=3)  # type: ignore[call-arg]

    assert callable(inferred)
