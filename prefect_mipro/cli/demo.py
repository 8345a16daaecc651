"""The reference flow, run from wherever this package is installed.

The flow is one file that people read and copy, `flows/optimize_prompt.py`, with its data beside it.
A wheel carries both as `prefect_mipro/demo`; a checkout has them at its root.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from prefect_mipro.cli.exits import PROGRAM, say
from prefect_mipro.errors import ConfigNotFound

_PACKAGE = Path(__file__).resolve().parents[1]
_HOMES = (_PACKAGE / "demo", _PACKAGE.parent / "flows")
_FLOW = "optimize_prompt.py"
_HELP = frozenset({"-h", "--help"})


# The flow writes the help of its own options.
demo = App(name="demo", help_flags=(), version_flags=())


@demo.default
def run(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Optimize a prompt with the embedded model; no key."""
    from prefect_mipro.server.upstream import model_file

    flow = flow_path()
    if not _HELP & set(arguments):
        if find_spec("xllamacpp") is None:
            raise ModuleNotFoundError("the embedded model needs it", name="xllamacpp")
        model_file.install(say)
    # Its help begins with the first word.
    sys.argv = [f"{PROGRAM} demo", *arguments]
    _loaded(flow).main(arguments)


def _loaded(flow: Path) -> Any:
    """The flow's module, which is no part of the package."""
    spec = spec_from_file_location(flow.stem, flow)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[flow.stem] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flow_path() -> Path:
    """The file of the flow. Raises ConfigNotFound."""
    for home in _HOMES:
        if (home / _FLOW).is_file():
            return home / _FLOW
    raise ConfigNotFound(
        f"the demo's flow is neither in {_HOMES[0]} nor in {_HOMES[1]}; install prefect-mipro anew"
    )
