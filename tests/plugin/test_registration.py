"""`prefect block register -m prefect_mipro`: what a Prefect server then knows of each block."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

import pytest
from prefect.client.orchestration import get_client

SLUGS = ("mipro-credentials", "mipro-session-config", "prompt-champion")

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command said."""
    monkeypatch.setattr(sys, "argv", ["prefect", "block", "register", "-m", "prefect_mipro"])
    [prefect] = entry_points(group="console_scripts", name="prefect")
    with pytest.raises(SystemExit) as end:
        prefect.load()()
    assert not end.value.code
    return capsys.readouterr().out


def test_one_command_registers_all_blocks_with_their_pages(told: str) -> None:
    assert f"Successfully registered {len(SLUGS)} blocks" in told
    with get_client(sync_client=True) as client:
        pages = {slug: client.read_block_type_by_slug(slug) for slug in SLUGS}
    for page in pages.values():
        assert page.name in told
        assert str(page.logo_url).startswith("https://")
        assert str(page.documentation_url).startswith("https://")
        assert page.description
        assert "from prefect_mipro import" in (page.code_example or "")
