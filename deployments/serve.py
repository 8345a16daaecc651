"""The deployments of prefect.yaml without work pool and worker: this process starts their runs.

    python deployments/serve.py

It must keep running. Save the blocks first, with deployments/save_blocks.py.
"""

from pathlib import Path
from typing import Any

from prefect import Flow, flow, serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.events import DeploymentEventTrigger, ResourceSpecification
from prefect.types.entrypoint import EntrypointType

from prefect_mipro.events import CAUSE_LABEL, RESOURCE_PREFIX, Cause, SessionEvent
from prefect_mipro.flows import clean_up, promote_champion

ROOT = Path(__file__).resolve().parents[1]
SESSION = "everyday-intents"
DATA = {"database": "messages.db", "session": "nightly-intents"}

# Two runs at once would spend two budgets on one session.
ONE_AT_A_TIME = ConcurrencyLimitConfig(
    limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
)


def deployments() -> list[Any]:
    """What is served; the parameters hold the names of blocks and nothing secret."""
    optimize = from_file("flows/optimize_prompt.py:optimize_everyday_intents")
    label = from_file("flows/nightly_data_flow.py:label_messages")
    report = from_file("flows/nightly_data_flow.py:report_labels")
    won = DeploymentEventTrigger(
        expect={SessionEvent.PROMOTED},
        match=ResourceSpecification(
            {"prefect.resource.id": f"{RESOURCE_PREFIX}{SESSION}", CAUSE_LABEL: Cause.DUEL}
        ),
    )
    return [
        optimize.to_deployment(
            name="nightly-served",
            cron="0 3 * * *",
            parameters={"session": SESSION, "rollouts": 400},
            concurrency_limit=ONE_AT_A_TIME,
        ),
        # Without a concurrency limit, which could cancel a run that is resumed with an answer. The
        # flow itself sees to it that only one run asks about a candidate.
        promote_champion.to_deployment(
            name="promotion-served",
            cron="0 8 * * 1-5",
            triggers=[won],
            parameters={"session": SESSION, "policy": "approval", "timeout_seconds": 172_800},
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
        label.to_deployment(
            name="labelling-served",
            cron="0 1 * * *",
            parameters=DATA,
            concurrency_limit=ONE_AT_A_TIME,
        ),
        report.to_deployment(
            name="delayed-rewards-served",
            cron="0 20 * * *",
            parameters={**DATA, "corrections": "corrections.csv"},
            concurrency_limit=ONE_AT_A_TIME,
        ),
        clean_up.to_deployment(
            name="cleanup-served",
            cron="0 5 * * 0",
            parameters={
                "session": SESSION,
                "idle": "pause",
                "idle_days": 30,
                "artifact_days": 90,
            },
            concurrency_limit=ONE_AT_A_TIME,
            entrypoint_type=EntrypointType.MODULE_PATH,
        ),
    ]


def from_file(entrypoint: str) -> Flow[..., Any]:
    """A flow of this project."""
    found = flow.from_source(source=ROOT, entrypoint=entrypoint)
    assert isinstance(found, Flow)  # a coroutine only inside an event loop
    return found


if __name__ == "__main__":
    serve(*deployments())
