"""The reference flow: a small model on this machine learns to name the intent of a request.

    python flows/optimize_prompt.py --help

It needs no key and no other service. The prompt it starts from is in `everyday_intents.toml`, the
requests and their intents are in `data/everyday_intents.jsonl`.
"""

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.settings import PREFECT_API_URL

from prefect_mipro import optimize_prompt
from prefect_mipro.config import read_toml
from prefect_mipro.flows import pause_sessions, temporary_server_settings
from prefect_mipro.models.summaries import OptimizationSummary
from prefect_mipro.tasks import Judgement, LiveRollout

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "everyday_intents.toml"
EXAMPLES = HERE / "data" / "everyday_intents.jsonl"

Row = dict[str, Any]


# A cancelled run stops the proposals too, and the next run goes on with the session.
@flow(name="optimize-everyday-intents", on_cancellation=[pause_sessions])
def optimize_everyday_intents(
    session: str | None = None,
    session_id: str | None = None,
    rollouts: int = 400,
    held_out: int = 210,
    max_workers: int = 4,
    seed: int = 0,
    backend_url: str | None = None,
) -> OptimizationSummary:
    """Optimize the prompt of `classify` and compare the outcome on requests it has not seen.

    Args:
        session: The name of a saved `MiproSessionConfig` block; without one, the TOML file.
        session_id: The session to go on with; without one, the block's or `everyday-intents`.
        rollouts: How many rollouts this run adds.
        held_out: How many requests the comparison is made on.
        max_workers: How many rollouts run at a time.
        seed: Of the order of the requests.
        backend_url: The backend; without one, that of the block, of the environment, or an
            embedded one.
    """
    return optimize_prompt(
        session or str(CONFIG),
        rows("learning"),
        classify,
        exact_match,
        rollouts=rollouts,
        held_out=rows("held_out")[:held_out],
        session_id=session_id or (None if session else "everyday-intents"),
        backend_url=backend_url,
        max_workers=max_workers,
        seed=seed,
    )


def classify(rollout: LiveRollout, row: Row) -> str:
    """The program: one call with the baseline prompt, then the first intent the answer names."""
    answer = rollout.complete(
        [
            {"role": "system", "content": BASELINE},
            {"role": "user", "content": row["text"]},
        ]
    )
    return first_label(answer)


def exact_match(row: Row, label: str) -> Judgement:
    """The reward: 1 for the right intent. The right one may become a demonstration."""
    return Judgement(score=float(label == row["label"]), expected=row["label"])


def first_label(answer: str) -> str:
    """The intent that stands first in the answer; empty when none does."""
    return next((word for word in re.findall(r"\w+", answer.lower()) if word in LABELS), "")


def rows(split: str) -> list[Row]:
    """The requests of one half of the data: `learning` or `held_out`."""
    return [row for row in ALL_ROWS if row["split"] == split]


ALL_ROWS: list[Row] = [
    json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines() if line
]
LABELS = frozenset(row["label"] for row in ALL_ROWS)
BASELINE: str = read_toml(CONFIG)["prompt_learning"]["initial_prompt"]["messages"][0]["pattern"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the flow once, on a Prefect server of its own where none is configured."""
    options = _parser().parse_args(arguments)
    with temporary_server_settings():
        summary = optimize_everyday_intents(
            session_id=options.session_id or f"everyday-intents-{datetime.now(UTC):%Y%m%d-%H%M%S}",
            rollouts=options.rollouts,
            held_out=options.held_out,
            max_workers=options.workers,
            seed=options.seed,
            backend_url=options.backend_url,
        )
    print(report(summary, api_url=PREFECT_API_URL.value()))


def report(summary: OptimizationSummary, *, api_url: str | None) -> str:
    """What came of it, as text."""
    names = {
        summary.best_candidate_id: "in the lead",
        summary.champion_candidate_id: "champion",
        summary.baseline_candidate_id: "baseline",
    }
    lines = ["", f"{'held-out accuracy':<34}{'':>8}  {'95 % interval':<16}{'examples':>8}"]
    lines += [
        f"{names[each.candidate_id]:<12}{each.candidate_id:<22}{each.mean_reward:>8.3f}  "
        f"{each.interval[0]:.3f} to {each.interval[1]:<8.3f}{each.examples:>8}"
        for each in summary.evaluations
    ]
    lines += [
        "",
        f"{summary.rollouts} rollouts, {summary.candidates} candidates, "
        f"{summary.seconds:.0f} s. Session {summary.session_id} is {summary.state}; "
        "--session-id with its name goes on with it.",
        "",
        f"The champion's prompt{'' if summary.improved else ' (still the baseline)'}:",
        textwrap.indent(summary.champion_instruction, "  "),
    ]
    turns = summary.champion_demonstrations
    if turns:
        lines += [f"  and {len(turns)} demonstrations, for example:"]
        lines += [f"    user: {turn.input}\n    assistant: {turn.output}" for turn in turns[:3]]
    ui_url = (api_url or "http://127.0.0.1:4200/api").removesuffix("/api")
    command = os.path.relpath(Path(sys.executable).with_name("prefect"))
    start = "" if api_url else f"start Prefect's server ({command} server start), then "
    lines += [
        "",
        f"To see it all: {start}open",
        *(f"  {ui_url}/v2/artifacts/key/{key}" for key in summary.artifact_keys[:2]),
    ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Optimize the prompt of a small model that names the intent of a request.",
    )
    parser.add_argument(
        "--rollouts", type=int, default=400, help="how many rollouts to run (default: %(default)s)"
    )
    parser.add_argument(
        "--held-out",
        type=int,
        default=210,
        help="how many requests to compare prompts on (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=int, default=4, help="how many rollouts at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the order of the requests (default: %(default)s)"
    )
    parser.add_argument(
        "--session-id", help="the session to start or to go on with (default: a new one)"
    )
    parser.add_argument(
        "--backend-url",
        help="a running backend; environment: MIPRO_BACKEND_URL (default: an embedded one)",
    )
    return parser


if __name__ == "__main__":
    main()
