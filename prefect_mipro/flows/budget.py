"""The budget of a run: its rollouts, how many at a time, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

STEPS = 20


@dataclass(frozen=True)
class Budget:
    """The number of rollouts of a run, how many run at a time, and how fast they start.

    `rate_limit` is in rollouts per second. `concurrency_limit` names one of Prefect's global
    concurrency limits, which all flow runs share.
    """

    rollouts: int
    max_workers: int
    rollouts_per_task: int = 1
    rate_limit: float | None = None
    concurrency_limit: str | None = None

    def within(self, slots: int) -> Budget:
        """The budget with at most `slots` rollouts at a time, but at least one."""
        return replace(self, max_workers=max(1, min(self.max_workers, slots)))

    @cached_property
    def tasks(self) -> int:
        """The number of Prefect tasks that run at a time, chosen to end the run soonest.

        Workers of a task wait for its last rollout, and tasks for the run's last task. Rollouts are
        assumed to take equally long. Of equal choices, more tasks spread better over machines.
        """
        tasks_in_all = max(1, math.ceil(self.rollouts / self.rollouts_per_task))

        def rounds(tasks: int) -> int:
            rounds_of_a_task = math.ceil(self.rollouts_per_task / (self.max_workers // tasks))
            return math.ceil(tasks_in_all / tasks) * rounds_of_a_task

        most = min(self.max_workers, tasks_in_all)
        return min(range(most, 0, -1), key=rounds)

    @property
    def workers_per_task(self) -> int:
        """The number of rollouts a task runs at a time."""
        return self.max_workers // self.tasks

    @property
    def step(self) -> int:
        """The number of rollouts between two checks of the session's status."""
        return max(1, math.ceil(self.rollouts / STEPS))
