"""Rewards that come at once, and the checks of the evidence that they ask for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from prefect_mipro.server.services.beliefs import Beliefs
from prefect_mipro.server.services.promotion import Promotion
from prefect_mipro.server.services.rewards import PromotionChecks
from prefect_mipro.server.services.session_cache import LiveSession, PromptCache, SessionCache
from tests.server.services.conftest import Backend
from tests.server.store.records import reward

REWARDS = 40


class Counted(Promotion):
    """One that remembers how many rewards each check has seen."""

    def __init__(self, backend: Backend) -> None:
        prompts = PromptCache(backend.store)
        beliefs = Beliefs(backend.store, prompts)
        super().__init__(
            backend.store, prompts, beliefs, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC)
        )
        self.seen: list[int] = []

    async def consider(self, live: LiveSession) -> None:
        self.seen.append(live.rewards)
        await super().consider(live)


async def test_rewards_that_come_at_once_share_a_look_and_each_is_seen(backend: Backend) -> None:
    await backend.create()
    for number in range(REWARDS):
        await backend.call(f"r{number}")
    promotion = Counted(backend)
    checks = PromotionChecks(
        SessionCache(backend.store, PromptCache(backend.store)), promotion, backend.journal
    )

    async def rewarded(number: int) -> int:
        told = reward(f"reward_{number}", f"r{number}", session_id="s", candidate_id=None)
        await backend.store.add_reward(told)
        counted = (await backend.store.session("s")).rewards
        await checks.check("s")
        return max(promotion.seen) - counted

    assert min(await asyncio.gather(*map(rewarded, range(REWARDS)))) >= 0
    assert promotion.seen[-1] == REWARDS
    assert len(promotion.seen) < REWARDS / 2


async def test_a_reward_that_comes_alone_is_looked_at_by_itself(backend: Backend) -> None:
    await backend.create()
    promotion = Counted(backend)
    checks = PromotionChecks(
        SessionCache(backend.store, PromptCache(backend.store)), promotion, backend.journal
    )
    for _ in range(3):
        await checks.check("s")
    assert len(promotion.seen) == 3
