"""Keys, workspaces and the secrets of proxy URLs: the same in every store."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_mipro.errors import Conflict, NotFound, SessionNotFound
from prefect_mipro.models.keys import Key
from prefect_mipro.server.store.records import SessionFilter
from prefect_mipro.server.store.store import Store
from tests.server.store.records import at, candidate, create, instruction, session


def key(name: str = "ci", **values: Any) -> Key:
    return Key(
        **{
            "key_id": f"key_{name}",
            "name": name,
            "workspace": "team-a",
            "digest": f"digest of {name}",
            "created_at": at(0),
            **values,
        }
    )


async def test_keys_are_listed_in_the_order_in_which_they_were_made(store: Store) -> None:
    assert await store.keys() == ()
    await store.add_key(key("second", created_at=at(2)))
    await store.add_key(key("first", created_at=at(1)))
    assert [each.name for each in await store.keys()] == ["first", "second"]
    assert (await store.keys())[0] == key("first", created_at=at(1))


async def test_a_name_stands_for_one_key_for_good(store: Store) -> None:
    await store.add_key(key())
    await store.revoke_key("ci", at=at(1))
    with pytest.raises(Conflict, match="'ci' was made before"):
        await store.add_key(key(key_id="key_2", digest="another"))
    assert len(await store.keys()) == 1


async def test_a_revoked_key_stays_as_it_was_revoked_first(store: Store) -> None:
    await store.add_key(key())
    await store.add_key(key("other"))
    revoked = await store.revoke_key("ci", at=at(1))
    assert revoked == key(revoked_at=at(1))
    assert await store.revoke_key("ci", at=at(2)) == revoked
    assert [each.revoked_at for each in await store.keys()] == [at(1), None]


async def test_a_key_that_is_not_there_cannot_be_revoked(store: Store) -> None:
    with pytest.raises(NotFound, match="no key has the name 'ci'"):
        await store.revoke_key("ci", at=at(1))


async def test_a_session_belongs_to_the_workspace_that_it_was_made_in(store: Store) -> None:
    await create(store)
    await create(store, "s2", workspace="team-a")
    assert await store.workspace_of("s1") == "default"
    assert await store.workspace_of("s2") == "team-a"
    with pytest.raises(SessionNotFound):
        await store.workspace_of("s3")


async def test_a_list_may_be_of_one_workspace(store: Store) -> None:
    for number, workspace in enumerate(("team-a", "team-b", "team-a"), start=1):
        await create(store, f"s{number}", workspace=workspace, created_at=at(number))
    first = await store.sessions(SessionFilter(workspace="team-a"), limit=1)
    rest = await store.sessions(
        SessionFilter(workspace="team-a"), limit=9, cursor=first.next_cursor
    )
    assert [found.session_id for found in (*first.items, *rest.items)] == ["s3", "s1"]
    assert (await store.sessions(SessionFilter(workspace="team-c"), limit=9)).items == ()


async def test_an_id_of_another_workspace_is_taken_and_nothing_else_is_told(store: Store) -> None:
    await create(store)
    before = await store.session("s1")
    with pytest.raises(Conflict) as raised:
        await store.create_session(
            session("s1", workspace="team-a", baseline_id="b2", champion_id="b2"),
            [instruction()],
            candidate(candidate_id="b2"),
        )
    assert raised.value.message == "the session id 's1' is taken; choose another one"
    assert await store.session("s1") == before


async def test_another_secret_changes_nothing_else(store: Store) -> None:
    await create(store)
    before = await store.session("s1")
    after = await store.rotate_secret("s1", "f" * 32, at=at(1))
    assert after == await store.session("s1")
    changes = {"proxy_secret": "f" * 32, "version": before.version + 1, "updated_at": at(1)}
    assert after == before.model_copy(update=changes)
    with pytest.raises(SessionNotFound):
        await store.rotate_secret("s2", "f" * 32, at=at(1))
