"""The embedded model's file: fetched, or found."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from prefect_mipro.cli.exits import say
from prefect_mipro.cli.options import AnswerOptions

app = App(
    name="model",
    help="""\
Fetch the embedded model, which needs no key.

Examples
  prefect-mipro model install
  prefect-mipro model path
""",
)


@app.command
def install(*, answer: AnswerOptions = AnswerOptions()) -> None:
    """Fetch the model's file into the user's cache, once (93 MB)."""
    from prefect_mipro.server.upstream import model_file

    _tell(model_file.install(say), answer)


@app.command
def path(*, answer: AnswerOptions = AnswerOptions()) -> None:
    """Print where the file is."""
    from prefect_mipro.server.upstream import model_file

    _tell(model_file.find(), answer)


def _tell(file: Path, answer: AnswerOptions) -> None:
    from prefect_mipro.server.upstream.model_file import MODEL_NAME

    answer.output.outcome({"path": str(file), "model": MODEL_NAME}, str(file))
