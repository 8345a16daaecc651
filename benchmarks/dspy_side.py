"""MIPROv2 of DSPy on a labelling task: the peer that ours is measured against.

Import it after DSPY_CACHEDIR is set. There are two formats of the task's prompts: DSPy's own, and
one in which demonstrations are plain chat turns, exactly as in ours. The plain one is better for
MIPROv2 with a model of 135M parameters. With random sets of demonstrations, as many as are allowed,
it got 0.70 and 0.30 of the bundled task right where DSPy's got 0.18 and 0.33 (40 rows), and 0.57 of
six Banking77 intents (mean of six sets) where DSPy's got 0.53 (of four, 30 rows); a call took a
third of the time, and none was repeated for an answer that cannot be read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Sequence
from typing import Any

import dspy

from benchmarks.counting_server import CountingServer
from benchmarks.labelling import Row, Task
from benchmarks.runs import Budget, Ledger, Pool, Prompt, Run, Tested
from prefect_mipro.server.upstream.model_file import MODEL_NAME

TEXT = "text"
# An evaluation with more failures than this counts as 0 as a whole.
MOST_ERRORS = 10_000


def optimize(
    task: Task,
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    seed: int,
    plain: bool,
    max_tokens: int,
    proposer_tokens: int,
    budget: Budget,
    server: CountingServer,
    label: str,
) -> Run:
    """Learn on the rows, then test the program that MIPROv2 returns."""
    configure(task, plain=plain)
    labels = {role: f"{label}.{role}" for role in ("task", "proposer", "held_out")}
    learned, proposing, testing = labels.values()
    ledger = Ledger(label, lambda: server.usage(learned, proposing).calls)
    pools: list[Pool] = []

    def metric(example: Any, prediction: Any, trace: object = None) -> float:
        reward = task.reward(example[task.field], str(prediction[task.field]))
        ledger.add(reward)
        return reward

    class Watched(dspy.MIPROv2):  # type: ignore[misc]
        """Keeps the pool of candidates before it is searched."""

        def _optimize_prompt_parameters(
            self, program: Any, instructions: Any, demonstrations: Any, *rest: Any
        ) -> Any:
            pools.append(
                Pool(
                    instructions=tuple(instructions[0]),
                    demonstration_sets=tuple(_pairs(task, demos) for demos in demonstrations[0]),
                    calls=server.usage(learned, proposing).calls,
                    rewards=ledger.rewards,
                )
            )
            return super()._optimize_prompt_parameters(program, instructions, demonstrations, *rest)

    optimizer = Watched(
        metric=metric,
        prompt_model=_model(server.url(proposing), max_tokens=proposer_tokens),
        task_model=_model(server.url(learned), max_tokens=max_tokens),
        auto=None,
        num_candidates=budget.candidates,
        max_bootstrapped_demos=budget.bootstrapped,
        # As many as ours may have.
        max_labeled_demos=max(task.demonstration_sizes),
        num_threads=budget.threads,
        max_errors=MOST_ERRORS,
        # 0 means the default to it.
        seed=seed + 1,
    )
    optimizer.num_instruct_candidates = budget.instructions
    examples = [_example(task, row) for row in rows]
    started = time.perf_counter()
    with _quiet():
        program = optimizer.compile(
            dspy.Predict(dspy.Signature(f"{TEXT} -> {task.field}", task.instruction)),
            trainset=examples[budget.validation :],
            valset=examples[: budget.validation],
            num_trials=budget.trials,
            minibatch_size=budget.minibatch,
        )
    seconds = time.perf_counter() - started
    used = server.usage(learned), server.usage(proposing)
    predictor = program.predictors()[0]
    evaluate = dspy.Evaluate(
        devset=[_example(task, row) for row in held_out],
        metric=lambda example, answer: task.reward(example[task.field], str(answer[task.field])),
        num_threads=budget.threads,
        max_errors=MOST_ERRORS,
    )
    with _quiet(), dspy.context(lm=_model(server.url(testing), max_tokens=max_tokens)):
        outcome = evaluate(program)
    tested = Tested(
        calls=used[0].calls + used[1].calls,
        prompt=Prompt(
            instruction=predictor.signature.instructions,
            demonstrations=_pairs(task, predictor.demos),
        ),
        rewards=tuple(float(reward) for *_, reward in outcome.results),
        prompt_tokens=server.usage(testing).prompt_tokens / len(held_out),
    )
    return Run.of(
        task=used[0],
        proposer=used[1],
        rewards=ledger.rewards,
        seconds=seconds,
        tested={"returned": tested},
        pool=pools[0],
    )


def configure(task: Task, *, plain: bool) -> None:
    """Set DSPy up: nothing cached, its own words on the error stream only when they matter."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    dspy.configure(adapter=Format(task) if plain else Lenient())
    logging.getLogger("dspy").setLevel(logging.CRITICAL)


class Lenient(dspy.ChatAdapter):  # type: ignore[misc]
    """DSPy's format; an answer without its marks is taken whole where one field is asked for.

    A small proposer forgets the marks, and MIPROv2 would end with an error.
    """

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The fields of the answer."""
        try:
            return dict(super().parse(signature, completion))
        except dspy.utils.exceptions.AdapterParseError:
            if len(signature.output_fields) != 1:
                raise
            return {next(iter(signature.output_fields)): completion.strip()}


class Format(Lenient):
    """The task's prompt as ours are: instruction, demonstrations as turns, text. No marks.

    The signatures of MIPROv2's own proposer keep DSPy's format.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self._task = task

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        """The messages of a call."""
        if not self._is_task(signature):
            return list(super().format(signature, demos, inputs))
        prompt = Prompt(
            instruction=signature.instructions, demonstrations=_pairs(self._task, demos)
        )
        return [dict(message) for message in prompt.messages(inputs[TEXT])]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The label as the metric reads it, so that what is bootstrapped from it is clean."""
        if not self._is_task(signature):
            return super().parse(signature, completion)
        return {self._task.field: self._task.read(completion) or completion}

    def _is_task(self, signature: Any) -> bool:
        return list(signature.fields) == [TEXT, self._task.field]


def _model(url: str, *, max_tokens: int) -> Any:
    # Only this engine sends max_tokens under the name that llama.cpp knows.
    return dspy.LM(
        f"openai/{MODEL_NAME}",
        api_base=url,
        api_key="none",
        model_type="chat",
        temperature=0.0,
        max_tokens=max_tokens,
        cache=False,
        num_retries=0,
        engine="litellm",
    )


def _example(task: Task, row: Row) -> Any:
    return dspy.Example({TEXT: row.text, task.field: row.label}).with_inputs(TEXT)


def _pairs(task: Task, demonstrations: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(demo[TEXT]), str(demo[task.field])) for demo in demonstrations)


@contextlib.contextmanager
def _quiet() -> Any:
    """DSPy reports on standard output, which belongs to the figures."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
