"""What comes out of one optimizer's run, and the file in which runs are kept."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.counting_server import Usage
from prefect_mipro.models.base import JsonObject, Record

ROLLOUTS_PER_LINE = 50


class Prompt(Record):
    """An instruction, and demonstrations as pairs of text and answer."""

    instruction: str
    demonstrations: tuple[tuple[str, str], ...] = ()

    def messages(self, text: str) -> list[dict[str, str]]:
        """The chat that asks for the text's label."""
        turns = [
            {"role": role, "content": content}
            for demonstration in self.demonstrations
            for role, content in zip(("user", "assistant"), demonstration, strict=True)
        ]
        system = {"role": "system", "content": self.instruction}
        return [system, *turns, {"role": "user", "content": text}]


class Tested(Record):
    """A prompt on the held-out rows: which it got right, and what a call took on average.

    `calls` are those that had been made to find it.
    """

    calls: int
    prompt: Prompt
    rewards: tuple[float, ...]
    prompt_tokens: float

    @property
    def accuracy(self) -> float:
        """Share of the held-out rows with the right label."""
        return sum(self.rewards) / len(self.rewards)


class Pool(Record):
    """Candidates by their parts: each instruction goes with each demonstration set.

    The first of each is the caller's own. `calls` were needed to make it all, and `rewards` came
    with them.
    """

    instructions: tuple[str, ...]
    demonstration_sets: tuple[tuple[tuple[str, str], ...], ...]
    calls: int
    rewards: tuple[tuple[int, float], ...]


class Ledger:
    """The rewards of a run as they come, each with the number of calls made until then.

    It shows on the error stream how far the run is.
    """

    def __init__(self, title: str, calls: Callable[[], int]) -> None:
        self._title = title
        self._calls = calls
        self._rewards: list[tuple[int, float]] = []
        self._lock = threading.Lock()
        self._started = time.perf_counter()
        # DSPy's output is held back while it learns; this is not.
        self._shown_on = sys.stderr

    @property
    def rewards(self) -> tuple[tuple[int, float], ...]:
        """All of them, in the order in which they came."""
        return tuple(self._rewards)

    def add(self, reward: float) -> None:
        """Enter the reward of a rollout that has ended."""
        with self._lock:
            calls = self._calls()
            self._rewards.append((calls, reward))
            if len(self._rewards) % ROLLOUTS_PER_LINE == 0:
                earned = sum(each for _, each in self._rewards)
                seconds = time.perf_counter() - self._started
                print(
                    f"{self._title}: {calls} calls, reward {earned:.0f}, {seconds:.0f} s",
                    file=self._shown_on,
                )


class Run(Record):
    """One optimizer on one task with one seed.

    `rewards` are those of its rollouts in the order in which they came, each with the number of
    calls made until then. `tested` has the prompts it named, by the point at which it named them.
    Calls and tokens are those of learning, as the model's server counted them.
    """

    task_calls: int
    proposer_calls: int
    prompt_tokens: int
    completion_tokens: int
    rewards: tuple[tuple[int, float], ...]
    seconds: float
    tested: dict[str, Tested]
    pool: Pool | None = None

    @classmethod
    def of(
        cls,
        *,
        task: Usage,
        proposer: Usage,
        rewards: tuple[tuple[int, float], ...],
        seconds: float,
        tested: Mapping[str, Tested],
        pool: Pool | None = None,
    ) -> Run:
        """From what the server counted."""
        both = task + proposer
        return cls(
            task_calls=task.calls,
            proposer_calls=proposer.calls,
            prompt_tokens=both.prompt_tokens,
            completion_tokens=both.completion_tokens,
            rewards=rewards,
            seconds=seconds,
            tested=dict(tested),
            pool=pool,
        )

    @classmethod
    def baseline(cls, tested: Tested) -> Run:
        """Nothing was learned."""
        nothing = Usage()
        return cls.of(
            task=nothing, proposer=nothing, rewards=(), seconds=0.0, tested={"returned": tested}
        )

    @property
    def calls(self) -> int:
        """All calls that learning took."""
        return self.task_calls + self.proposer_calls

    def earned(self, calls: int) -> float:
        """The reward of the first so many calls. Those of a proposer earn nothing."""
        return sum(reward for made, reward in self.rewards if made <= calls)


@dataclass(frozen=True)
class Budget:
    """The sizes of a MIPROv2 run. Six sets and three instructions are those of its `light` mode."""

    candidates: int
    instructions: int
    trials: int
    minibatch: int
    training: int
    validation: int
    bootstrapped: int
    threads: int


class Results:
    """The runs made so far, in a JSON file that is written after each of them."""

    def __init__(self, path: Path, settings: JsonObject) -> None:
        """Raises ValueError for a file that was made with other settings."""
        self._path = path
        self._settings = settings
        self._runs: dict[str, Run] = {}
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] != settings:
                raise ValueError(
                    f"{path} was made with {stored['settings']}, and this is {settings}; "
                    "use the same options, or choose another --output"
                )
            self._runs = {key: Run.model_validate(run) for key, run in stored["runs"].items()}

    def get(self, task: str, seed: int, side: str) -> Run | None:
        """That run, if it has been made."""
        return self._runs.get(f"{task}/{seed}/{side}")

    def runs(self, task: str, side: str) -> dict[int, Run]:
        """All runs of that side, by seed."""
        split = {tuple(key.split("/")): run for key, run in self._runs.items()}
        return {
            int(seed): run
            for (of_task, seed, of_side), run in split.items()
            if (of_task, of_side) == (task, side)
        }

    def add(self, task: str, seed: int, side: str, run: Run) -> None:
        """Keep a run, on disk too."""
        self._runs[f"{task}/{seed}/{side}"] = run
        stored = {
            "settings": self._settings,
            "runs": {key: run.model_dump(mode="json") for key, run in self._runs.items()},
        }
        unfinished = self._path.with_suffix(".part")
        unfinished.write_text(json.dumps(stored), encoding="utf-8")
        os.replace(unfinished, self._path)
