"""`config check`: what a session config says, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_mipro.cli.exits import ExitCode
from tests.cli.conftest import Command

CONFIG = """
display = true
[prompt_learning]
algorithm = "mipro"
task_app_url = "http://127.0.0.1:8016"
[prompt_learning.policy]
model = "m"
inference_url = "https://me:secret@models.example/v1"
[prompt_learning.initial_prompt.wildcards]
text = "REQUIRED"
mood = "OPTIONAL"
[[prompt_learning.initial_prompt.messages]]
role = "user"
order = 2
pattern = "{text} in {tone}, {mood}"
[[prompt_learning.initial_prompt.messages]]
role = "system"
order = 1
pattern = "Translate."
[prompt_learning.mipro]
online_proposer_min_reward = 5
"""


def test_it_tells_what_counts_what_does_not_and_the_prompt(
    command: Command, tmp_path: Path
) -> None:
    file = tmp_path / "session.toml"
    file.write_text(CONFIG)
    checked = command("config", "check", str(file))
    assert (checked.code, checked.err) == (ExitCode.OK, "")
    for line in (
        '  prompt_learning.policy.model = "m"',
        '  prompt_learning.policy.inference_url = "https://***@models.example/v1"',
        "  display is not part of a session config and has no effect",
        "  prompt_learning.task_app_url is not needed: programs call the proxy by themselves",
        "  prompt_learning.mipro.online_proposer_min_reward is not known and has no effect; "
        "did you mean 'online_proposer_min_rewards'?",
        "message 1: system, which candidates replace",
        "message 2: user",
        "placeholders: text (required, not blank), tone (required), mood (optional)",
    ):
        assert line in checked.out.splitlines()
    told = command("config", "check", str(file), "--json").document
    assert told["placeholders"] == {"text": True, "tone": True, "mood": False}
    assert [message["role"] for message in told["messages"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("", "no prompt_learning.initial_prompt"),
        ('initial_prompt.messages = [{ role = "user", pattern = "{x}" }]', "no text in a system"),
    ],
    ids=["no prompt", "no system message"],
)
def test_a_prompt_that_cannot_be_learned_is_told(
    command: Command, tmp_path: Path, messages: str, said: str
) -> None:
    file = tmp_path / "session.toml"
    file.write_text(f'[prompt_learning]\nalgorithm = "mipro"\n{messages}\n')
    assert said in command("config", "check", str(file)).out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[prompt_learning", "not valid TOML"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[other]\nx = 1", "no [prompt_learning] section (it has: other)"),
        (b'[prompt_learning]\nalgorithm = "gepa"', "algorithm is 'gepa'"),
        (None, "cannot read the config file"),
    ],
    ids=["broken", "binary", "another table", "another algorithm", "no file"],
)
def test_what_cannot_be_used_is_named(
    command: Command, tmp_path: Path, content: bytes | None, said: str
) -> None:
    file = tmp_path / "session.toml"
    if content is not None:
        file.write_bytes(content)
    refused = command("config", "check", str(file))
    assert refused.code == ExitCode.USAGE
    assert said in refused.err
    assert refused.out == ""
