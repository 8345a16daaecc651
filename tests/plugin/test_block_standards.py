"""The bar that Prefect sets for every integration's blocks."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite

from prefect_mipro.blocks import MiproCredentials, MiproSessionConfig, PromptChampion


@pytest.fixture(autouse=True)
def logo_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing the suite fetches from the internet: a square picture."""

    def fetch(url: str) -> io.BytesIO:
        assert url.startswith("https://")
        picture = io.BytesIO()
        Image.new("RGB", (250, 250)).save(picture, format="PNG")
        picture.seek(0)
        return picture

    monkeypatch.setattr("prefect.testing.standard_test_suites.blocks.urlopen", fetch)


@pytest.mark.parametrize("block", [MiproCredentials, MiproSessionConfig, PromptChampion])
class TestBlockStandards(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, request: pytest.FixtureRequest) -> type[Block]:
        found: type[Block] = request.param
        return found
