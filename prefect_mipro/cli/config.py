"""`config`: what a session config says, before a session is made of it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from prefect_mipro.cli.options import AnswerOptions, Text

if TYPE_CHECKING:
    from prefect_mipro.models.chat import InitialPrompt
    from prefect_mipro.models.placeholders import Placeholder

app = App(name="config", help="Check a session config before it is used.")

_SHOWN_CHARACTERS = 100
_CREDENTIALS = re.compile(r"//[^/@\s\"]+@")


@app.command
def check(
    file: Annotated[Text, Parameter(help="A session config in TOML.")],
    /,
    *,
    answer: AnswerOptions = AnswerOptions(),
) -> None:
    """Check a session config, without a server.

    Prints which keys have an effect, which have none, and the prompt that calls
    are recognised by. An invalid config ends with an error that names each fault.

    Examples
      prefect-mipro config check session.toml
      prefect-mipro config check session.toml --json | jq .warnings
    """
    from prefect_mipro.config import MiproConfig, keys, read_toml
    from prefect_mipro.models.chat import SYSTEM_ROLES
    from prefect_mipro.models.placeholders import placeholders_of

    body = read_toml(file)
    config = MiproConfig.parse(body)
    honoured = {path: _without_credentials(value) for path, value in sorted(keys.honoured(body))}
    prompt = config.initial_prompt
    messages = prompt.ordered if prompt else ()
    named = placeholders_of(prompt) if prompt else ()
    unused = (
        f"prompt_learning.{key}" for key in sorted(body["prompt_learning"].keys() & keys.UNUSED)
    )
    warnings = [
        *config.warnings,
        *(f"{path} is not needed: programs call the proxy by themselves" for path in unused),
        *_missing(prompt),
    ]
    output = answer.output
    if output.as_json:
        output.document(
            {
                "valid": True,
                "honoured": honoured,
                "warnings": warnings,
                "messages": [{"role": m.role, "pattern": m.pattern} for m in messages],
                "placeholders": {each.name: each.required for each in named},
            }
        )
        return
    output.mark("ok", f"{file} is a valid session config")
    output.passage("These keys have an effect", "\n".join(map(_setting, honoured.items())))
    if warnings:
        output.passage("These have none, or need a look", "\n".join(warnings))
    learned = next((m for m in messages if m.role in SYSTEM_ROLES), None)
    for number, message in enumerate(messages, start=1):
        what = ", which candidates replace" if message is learned else ""
        output.passage(f"message {number}: {message.role}{what}", message.pattern or "(empty)")
    if named:
        output.line(f"placeholders: {', '.join(map(_need, named))}")


def _need(placeholder: Placeholder) -> str:
    need = "required" if placeholder.required else "optional"
    return f"{placeholder.name} ({need}{'' if placeholder.may_be_blank else ', not blank'})"


def _missing(prompt: InitialPrompt | None) -> list[str]:
    """What keeps a prompt from being learned."""
    if prompt is None:
        return [
            "there is no prompt_learning.initial_prompt: calls are served as they come, and no "
            "instruction is learned"
        ]
    if not prompt.instruction:
        return [
            "initial_prompt has no text in a system message: no instruction is learned, "
            "demonstrations are"
        ]
    return []


def _without_credentials(value: Any) -> Any:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return json.loads(_CREDENTIALS.sub("//***@", text))


def _setting(setting: tuple[str, Any]) -> str:
    path, value = setting
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[: _SHOWN_CHARACTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    return f"{path} = {text}"
