"""How much a run of the loop does, how much of it at a time, and how fast."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

STEPS = 20


@dataclass(frozen=True)
class Budget:
    """How much this run does, how much of it at a time, and how fast.

    `rate_limit` is in rollouts a second. `concurrency_limit` names a global concurrency limit of
    Prefect, which all flow runs share.
    """

    rollouts: int
    max_workers: int
    rollouts_per_task: int = 1
    rate_limit: float | None = None
    concurrency_limit: str | None = None

    def within(self, slots: int) -> Budget:
        """The same where no more than `slots` rollouts, or one, can run at a time."""
        return replace(self, max_workers=max(1, min(self.max_workers, slots)))

    @cached_property
    def tasks(self) -> int:
        """How many Prefect tasks run at a time: so many that the run is over soonest.

        Workers of a task wait for its last rollout, and tasks for the run's last task. Rollouts
        are taken to last equally long; more tasks spread better over processes and machines.
        """
        tasks_in_all = max(1, math.ceil(self.rollouts / self.rollouts_per_task))

        def rounds(tasks: int) -> int:
            rounds_of_a_task = math.ceil(self.rollouts_per_task / (self.max_workers // tasks))
            return math.ceil(tasks_in_all / tasks) * rounds_of_a_task

        most = min(self.max_workers, tasks_in_all)
        return min(range(most, 0, -1), key=rounds)

    @property
    def workers_per_task(self) -> int:
        """How many rollouts a task runs at a time; together at most `max_workers`."""
        return self.max_workers // self.tasks

    @property
    def step(self) -> int:
        """After how many rollouts the loop looks at the session's status, and shows it."""
        return max(1, math.ceil(self.rollouts / STEPS))
