"""The server's own OpenAPI, tried by schemathesis: each call, with what fits it and what does not.

Of each answer it checks: no 5xx, a status and a body that the schema tells, 405 with `Allow` for
other methods, no call without a key, no success for what the schema forbids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import schemathesis
from schemathesis.engine import events, from_schema

from prefect_mipro.server.routes.sessions import PROMPT_LEARNING_PREFIX
from tests.server.routes.conftest import CHAT, CONFIG, SESSIONS, chat_path

PHASES = ("examples", "coverage", "fuzzing", "stateful")
SESSIONS_SETTLED = 3
ROLLOUT_IDS = ("r1", "r2")
# Rules across fields, which a schema cannot tell: 422 is right for some of what fits it.
WITH_RULES = ("2xx", "401", "404", "409", "422")


@dataclass
class Findings:
    """What was tried, and what was amiss: of each kind of failure of a call the first."""

    calls: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)


def fuzz(
    url: str,
    *,
    key: str,
    known: Mapping[str, Sequence[str]],
    examples: int,
    seed: int | None = None,
    phases: Sequence[str] = PHASES,
    twins: bool = True,
) -> Findings:
    """Try every call. `known` are ids by parameter, which most calls get instead of random ones.

    Without a `seed` it tries the same each time. Without `twins` the sessions of the older dialect
    are left out: they are the same functions under another prefix.
    """
    config = schemathesis.Config.from_dict(
        {
            **({} if seed is None else {"seed": seed}),
            "base-url": url,
            "headers": {"Authorization": f"Bearer {key}"},
            "generation": {
                "deterministic": seed is None,
                "database": "none",
                "max-examples": examples,
            },
            "phases": {name: {"enabled": name in phases} for name in PHASES},
            "checks": {"positive_data_acceptance": {"expected-statuses": list(WITH_RULES)}},
            "dictionaries": {name: {"values": list(ids)} for name, ids in known.items()},
            "parameters": {
                f"{place}.{name}": {"dictionary": name, "probability": 0.7}
                for name in known
                for place in ("path", "query", "body")
            },
        }
    )
    schema: schemathesis.BaseSchema = schemathesis.openapi.from_url(
        f"{url}/openapi.json", config=config
    )
    if not twins:
        schema = schema.exclude(path_regex=f"^{PROMPT_LEARNING_PREFIX}")
    findings = Findings()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                _read(event.recorder, findings)
            case events.NonFatalError():
                findings.failures[event.label, type(event.value).__name__] = str(event.value)
            case events.FatalError():
                raise event.exception
    return findings


def _read(recorder: Any, findings: Findings) -> None:
    for interaction in recorder.interactions.values():
        findings.calls += 1
        if interaction.response is not None:
            findings.statuses[interaction.response.status_code] += 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                told = check.failure_info
                findings.failures.setdefault(
                    (recorder.label, check.name),
                    f"{told.failure.title}: {told.failure.message}\n{told.code_sample}",
                )


def settle(http: httpx.Client) -> dict[str, list[str]]:
    """Sessions with rollouts, rewards and candidates: their ids by the names of parameters."""
    session_ids, candidate_ids = [], []
    for number in range(SESSIONS_SETTLED):
        created = http.post(SESSIONS, json={"session_id": f"s{number}", "config_body": CONFIG})
        session = created.raise_for_status().json()
        for rollout_id in ROLLOUT_IDS:
            http.post(chat_path(session, rollout_id), json=CHAT).raise_for_status()
        body = {
            "reward_info": {"score": 0.5},
            "rollout_id": ROLLOUT_IDS[0],
            "metadata": {"seed": 1},
        }
        http.post(f"{SESSIONS}/s{number}/reward", json=body).raise_for_status()
        session_ids.append(session["session_id"])
        candidate_ids.append(session["baseline_candidate_id"])
    return {
        "session_id": session_ids,
        "candidate_id": candidate_ids,
        "rollout_id": list(ROLLOUT_IDS),
    }
