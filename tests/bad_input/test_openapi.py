"""The API keeps what its OpenAPI schema says, whatever it is sent."""

from __future__ import annotations

from tests.bad_input.fuzzing import fuzz, settle
from tests.server.routes.conftest import KEY, Caller


def test_every_call_keeps_its_schema_and_no_input_is_a_fault_of_the_server(caller: Caller) -> None:
    findings = fuzz(
        caller.url,
        key=KEY,
        known=settle(caller.http),
        examples=2,
        phases=("coverage", "fuzzing"),
        twins=False,
    )
    assert findings.failures == {}
    assert findings.calls > 500
    assert findings.statuses[200] > 20
