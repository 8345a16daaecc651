"""Which key opens which workspace, and how soon a new or revoked one counts."""

from __future__ import annotations

import hmac
import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_mipro.errors import KeyRejected
from prefect_mipro.models.keys import Key
from prefect_mipro.server.services.access import Keys, digest_of, new_key
from prefect_mipro.server.store.engine import open_store
from prefect_mipro.server.store.store import Store

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Door:
    """Keys over a store in memory, with a timer that moves when told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seconds = 0.0

    def keys(self, given: Iterable[str] = (), *, open_to_all: bool = True) -> Keys:
        return Keys(
            self.store,
            [SecretStr(key) for key in given],
            open_to_all=open_to_all,
            timer=lambda: self.seconds,
        )

    async def make(self, name: str, workspace: str = "default") -> str:
        key = new_key()
        await self.store.add_key(
            Key(
                key_id=f"key_{name}",
                name=name,
                workspace=workspace,
                digest=digest_of(key),
                created_at=NOW,
            )
        )
        return key.get_secret_value()


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    store = await open_store("sqlite+aiosqlite://")
    yield Door(store)
    await store.close()


async def test_without_any_key_everybody_on_this_machine_is_of_the_default_workspace(
    door: Door,
) -> None:
    assert await door.keys().workspace_of("", "whatever") == "default"


async def test_without_any_key_nobody_comes_in_where_others_reach_it(door: Door) -> None:
    with pytest.raises(KeyRejected):
        await door.keys(open_to_all=False).workspace_of("whatever")


async def test_each_stored_key_opens_its_workspace(door: Door) -> None:
    keys = door.keys(["given"])
    ours, theirs = await door.make("ours", "team-a"), await door.make("theirs", "team-b")
    assert await keys.workspace_of(ours) == "team-a"
    assert await keys.workspace_of("", theirs) == "team-b"
    assert await keys.workspace_of("given") == "default"


async def test_of_two_keys_the_first_that_is_known_counts(door: Door) -> None:
    keys = door.keys()
    ours, theirs = await door.make("ours", "team-a"), await door.make("theirs", "team-b")
    assert await keys.workspace_of(ours, theirs) == "team-a"
    assert await keys.workspace_of("unknown", theirs) == "team-b"


@pytest.mark.parametrize("offered", ["", "stranger", "givem", "GIVEN", "given ", "ключ", "\udc80"])
async def test_what_is_no_key_is_refused(door: Door, offered: str) -> None:
    with pytest.raises(KeyRejected, match="missing or unknown") as raised:
        await door.keys(["given"]).workspace_of(offered)
    assert not offered or offered not in raised.value.message


async def test_a_digest_opens_nothing(door: Door) -> None:
    key = await door.make("ours")
    with pytest.raises(KeyRejected):
        await door.keys().workspace_of(digest_of(SecretStr(key)))


async def test_a_new_key_and_a_revoked_one_count_within_a_second(door: Door) -> None:
    keys = door.keys(["given"])
    with pytest.raises(KeyRejected):
        await keys.workspace_of("unknown")
    key = await door.make("late")
    door.seconds += 1
    assert await keys.workspace_of(key) == "default"
    await door.store.revoke_key("late", at=NOW)
    door.seconds += 1
    with pytest.raises(KeyRejected):
        await keys.workspace_of(key)


async def test_within_that_second_the_database_is_not_asked_again(door: Door) -> None:
    keys = door.keys()
    key = await door.make("early")
    await keys.workspace_of(key)
    await door.store.close()
    assert await keys.workspace_of(key) == "default"


async def test_the_keys_of_the_settings_ask_no_database(door: Door) -> None:
    keys = door.keys(["given"])
    await door.store.close()
    assert await keys.workspace_of("given") == "default"


async def test_the_first_key_closes_an_open_door_and_revoking_the_last_does_not_open_it(
    door: Door,
) -> None:
    keys = door.keys()
    assert await keys.workspace_of("") == "default"
    await door.make("first")
    door.seconds += 1
    with pytest.raises(KeyRejected):
        await keys.workspace_of("")
    await door.store.revoke_key("first", at=NOW)
    door.seconds += 1
    with pytest.raises(KeyRejected):
        await keys.workspace_of("")


async def test_every_known_key_is_compared_in_constant_time(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = door.keys(["one", "two", "three"])
    compared: list[Any] = []
    really = hmac.compare_digest

    def counting(*both: Any) -> bool:
        compared.append(both)
        return really(*both)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    await keys.workspace_of("one")
    first, compared[:] = len(compared), []
    await keys.workspace_of("three")
    assert len(compared) == first == 3


def test_a_key_is_256_random_bits_that_scanners_know() -> None:
    made = {new_key().get_secret_value() for _ in range(9)}
    assert len(made) == 9
    assert all(re.fullmatch(r"mipro_[0-9a-f]{64}", key) for key in made)
