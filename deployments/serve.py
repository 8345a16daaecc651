"""The nightly deployment without work pool and worker: this process waits for 3 o'clock itself.

python deployments/serve.py
"""

from pathlib import Path

from prefect import Flow, flow
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    nightly = flow.from_source(
        source=ROOT, entrypoint="flows/optimize_prompt.py:optimize_everyday_intents"
    )
    assert isinstance(nightly, Flow)  # a coroutine only inside an event loop
    nightly.serve(
        name="nightly-served",
        cron="0 3 * * *",
        # The name of a block and nothing secret; deployments/save_blocks.py saves one.
        parameters={"session": "everyday-intents", "rollouts": 400},
        # Two runs at once would spend two budgets on one session.
        global_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
    )
