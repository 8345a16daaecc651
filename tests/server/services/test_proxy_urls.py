"""Who comes in through a proxy URL, and what becomes of one that has leaked."""

from __future__ import annotations

import pytest

from prefect_mipro.errors import KeyRejected, SessionNotFound
from prefect_mipro.models.sessions import CreateSession, SessionState
from prefect_mipro.server.services.access import ProxyUrls
from tests.server.services.conftest import Backend, config_of


async def of_default() -> str:
    return "default"


async def of_another() -> str:
    return "another"


async def of_nobody() -> str:
    raise KeyRejected("no key came")


def proxy_id_of(url: str) -> str:
    return url.rpartition("/")[2]


async def test_a_url_with_the_sessions_secret_needs_no_key(backend: Backend) -> None:
    status = await backend.create()
    proxy_id = proxy_id_of(status.online_url)
    session = await backend.urls.admit(proxy_id, callers_workspace=of_nobody)
    assert session.session_id == "s"


@pytest.mark.parametrize("wrong", ["s", f"s.{'0' * 32}", f"nobody.{'0' * 32}", "nobody"])
async def test_without_the_secret_a_key_is_asked_for(backend: Backend, wrong: str) -> None:
    await backend.create()
    with pytest.raises(KeyRejected, match="use the session's online_url"):
        await backend.urls.admit(wrong, callers_workspace=of_nobody)


async def test_a_key_opens_the_plain_id_of_its_own_workspace_only(backend: Backend) -> None:
    request = CreateSession(session_id="s", config_body=config_of())
    await backend.sessions.create(request, workspace="another")
    session = await backend.urls.admit("s", callers_workspace=of_another)
    assert session.session_id == "s"
    refusals = []
    for proxy_id in ("s", "t"):
        with pytest.raises(SessionNotFound) as raised:
            await backend.urls.admit(proxy_id, callers_workspace=of_default)
        refusals.append(raised.value.message.replace(repr(proxy_id), "it"))
    assert refusals[0] == refusals[1]


async def test_a_secret_that_is_none_any_more_is_not_repeated(backend: Backend) -> None:
    wrong = f"s.{'0' * 32}"
    await backend.create()
    with pytest.raises(KeyRejected) as raised:
        await backend.urls.admit(wrong, callers_workspace=of_default)
    assert "0000" not in raised.value.message


async def test_an_id_that_looks_like_a_url_is_served_to_its_key(backend: Backend) -> None:
    session_id = f"s.{'0' * 32}"
    await backend.create(session_id)
    session = await backend.urls.admit(session_id, callers_workspace=of_default)
    assert session.session_id == session_id


@pytest.mark.parametrize("state", [SessionState.RUNNING, SessionState.CANCELLED])
async def test_a_new_url_is_served_and_the_earlier_one_refused_at_once(
    backend: Backend, state: SessionState
) -> None:
    status = await backend.create()
    await backend.sessions.change_state("s", state)
    before = proxy_id_of(status.online_url)
    await backend.urls.admit(before, callers_workspace=of_nobody)
    urls = await backend.urls.rotate("s")
    assert proxy_id_of(urls.online_url) != before
    await backend.urls.admit(proxy_id_of(urls.online_url), callers_workspace=of_nobody)
    with pytest.raises(KeyRejected):
        await backend.urls.admit(before, callers_workspace=of_nobody)
    assert (await backend.sessions.urls("s")) == urls


async def test_what_is_told_of_a_rotation_holds_no_secret(backend: Backend) -> None:
    status = await backend.create()
    urls = await backend.urls.rotate("s")
    event = (await backend.sessions.events("s", since=0, limit=9))[-1]
    assert event.event_type == "mipro.session.url_rotated"
    for url in (status.online_url, urls.online_url):
        assert url.rpartition(".")[2] not in str(event)


async def test_only_a_session_that_is_there_has_a_url_to_change(backend: Backend) -> None:
    urls: ProxyUrls = backend.urls
    with pytest.raises(SessionNotFound):
        await urls.rotate("nobody")
