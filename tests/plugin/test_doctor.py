"""What `doctor` says of a real Prefect server."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig
from prefect_mipro.cli.checks import Verdict, block_slugs, of_blocks, of_prefect

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_it_finds_the_api_and_the_blocks_in_it() -> None:
    found = {check.name: check for check in of_prefect()}
    assert found["Prefect"].verdict is Verdict.OK
    assert found["Prefect API"].verdict is Verdict.OK
    assert "blocks" in found


def test_it_tells_which_blocks_are_not_registered() -> None:
    known = [MiproCredentials.get_block_type_slug(), MiproSessionConfig.get_block_type_slug()]
    for block in (MiproCredentials, MiproSessionConfig):
        block.register_type_and_schema()
    assert set(known) <= set(block_slugs())
    with get_client(sync_client=True) as client:
        assert of_blocks(client, known).verdict is Verdict.OK
        check = of_blocks(client, [*known, "no-such-block"])
    assert check.verdict is Verdict.NOTE
    assert check.found == "not registered: no-such-block"
    assert check.way_out == "prefect block register -m prefect_mipro"
