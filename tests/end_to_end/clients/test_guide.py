"""The examples of docs/clients.md run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.end_to_end.clients.conftest import Place
from tests.end_to_end.clients.samples import DONE, EVENTS

GUIDE = Path(__file__).parents[3] / "docs" / "clients.md"
# Those of other languages, and of packages that are not ours to install, say so.
EXAMPLES = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_they_run_one_after_the_other(place: Place) -> None:
    names: dict[str, Any] = {"session": place.session}
    for example in EXAMPLES:
        if "stream=True" in example:
            place.upstream.gate.set()
            place.script(place.upstream.stream(b"".join([*EVENTS, DONE])))
        exec(compile(example, str(GUIDE), "exec"), names)
    assert len(place.upstream.received) >= len(EXAMPLES)
