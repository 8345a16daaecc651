"""Run a deployment of yours whenever another prompt is put to use, for example one that rolls out.

    python deployments/automate.py my-flow/rollout --parameter champion

The parameter, if one is named, gets the name of the `PromptChampion` block. The automation is kept
by Prefect's server; run this again to change it.
"""

import argparse
from collections.abc import Sequence

from prefect.client.orchestration import get_client
from prefect.events import EventTrigger, ResourceSpecification
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, Posture

from prefect_mipro.events import CAUSE_LABEL, RESOURCE_PREFIX, Cause, SessionEvent

# Not `Cause.DUEL`: that is the session's own champion, which nobody has put to use yet.
PUT_TO_USE = [str(cause) for cause in (Cause.AUTOMATIC, Cause.APPROVAL, Cause.ROLL_BACK)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Create the automation, or put it in the place of the one before."""
    options = _parser().parse_args(arguments)
    name = f"another prompt runs {options.deployment}"
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(options.deployment)
        for earlier in client.read_automations_by_name(name):
            client.delete_automation(earlier.id)
        client.create_automation(
            AutomationCore(
                name=name,
                trigger=EventTrigger(
                    expect={SessionEvent.PROMOTED},
                    match=ResourceSpecification(
                        {"prefect.resource.id": f"{RESOURCE_PREFIX}*", CAUSE_LABEL: PUT_TO_USE}
                    ),
                    posture=Posture.Reactive,
                    threshold=1,
                ),
                actions=[
                    RunDeployment(
                        source="selected",
                        deployment_id=deployment.id,
                        parameters=(
                            {options.parameter: "{{ event.payload.champion }}"}
                            if options.parameter
                            else None
                        ),
                    )
                ],
            )
        )
    print(f"A new champion now runs {options.deployment}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Run a deployment when another prompt is used.")
    parser.add_argument("deployment", help="flow and deployment, as in my-flow/rollout")
    parser.add_argument("--parameter", help="the parameter that gets the champion's name")
    return parser


if __name__ == "__main__":
    main()
