"""The session config: what is accepted, what is refused and with which words, and overrides."""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_mipro.config import MiproConfig, ProposerMode, override, parse_toml, read_toml
from prefect_mipro.config.sections import MOST_SEEDS
from prefect_mipro.config.session import LARGEST_CONFIG_BYTES
from prefect_mipro.errors import ConfigInvalid, ConfigNotFound

PUBLIC_EXAMPLE = """
[prompt_learning]
algorithm = "mipro"
task_app_id = "banking77"
task_app_url = "http://localhost:8016"
[prompt_learning.initial_prompt]
id = "banking77_pattern"
name = "Banking77"
wildcards = { query = "REQUIRED", available_intents = "OPTIONAL" }
messages = [
  { role = "user", order = 1, pattern = "Query: {query}\\nIntents: {available_intents}" },
  { role = "system", order = 0, pattern = "You classify banking queries." },
]
[prompt_learning.policy]
model = "gpt-4.1-nano"
provider = "openai"
inference_mode = "synth_hosted"
temperature = 0.0
max_completion_tokens = 256
[prompt_learning.mipro]
mode = "online"
bootstrap_train_seeds = [0, 1, 2]
val_seeds = [30, 31]
online_pool = [0, 1, 2]
online_proposer_mode = "inline"
online_proposer_min_rollouts = 20
online_rollouts_per_candidate = 10
[prompt_learning.mipro.proposer]
mode = "instruction_only"
model = "gpt-4.1-mini"
provider = "openai"
temperature = 0.7
max_tokens = 512
generate_at_iterations = [0, 1, 2]
instructions_per_batch = 2
"""
SMALLEST: dict[str, Any] = {"prompt_learning": {"algorithm": "mipro"}}


def with_mipro(**fields: Any) -> dict[str, Any]:
    return {"prompt_learning": {"algorithm": "mipro", "mipro": fields}}


def refusal(body: Any, overrides: Any = None) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        MiproConfig.parse(body, overrides)
    return str(caught.value)


# What is accepted


def test_the_public_example_is_accepted_and_its_one_key_without_effect_is_named() -> None:
    config = MiproConfig.parse(parse_toml(PUBLIC_EXAMPLE))
    assert config.warnings == [
        "prompt_learning.policy.inference_mode has no effect on this backend"
    ]
    assert config.policy.model == "gpt-4.1-nano"
    assert config.mipro.online_rollouts_per_candidate == 10
    assert config.mipro.proposer.mode is ProposerMode.INSTRUCTION_ONLY
    assert config.initial_prompt is not None
    assert config.initial_prompt.instruction == "You classify banking queries."


def test_the_smallest_config_has_a_default_for_everything() -> None:
    config = MiproConfig.parse(SMALLEST)
    assert config.mipro.reward_range == (0.0, 1.0)
    assert config.policy.provider == "default"
    assert config.initial_prompt is None


@pytest.mark.parametrize(
    ("body", "path", "value"),
    [
        ({"prompt_learning": {"algorithm_name": "mipro"}}, "algorithm", "mipro"),
        (with_mipro(online_train_seeds=[4]), "mipro.online_pool", [4]),
        (with_mipro(rollouts_per_candidate=3), "mipro.online_rollouts_per_candidate", 3),
        (with_mipro(candidate_rollouts=4), "mipro.online_rollouts_per_candidate", 4),
        (with_mipro(val_seeds={"start": 3, "end": 6}), "mipro.val_seeds", [3, 4, 5]),
        (with_mipro(val_seeds={"start": 9, "end": 3, "step": -3}), "mipro.val_seeds", [9, 6]),
    ],
)
def test_older_names_and_shapes_are_understood(
    body: dict[str, Any], path: str, value: object
) -> None:
    found: Any = MiproConfig.parse(body).prompt_learning
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_pool_may_stand_one_table_further_out() -> None:
    pools: dict[str, Any] = {"online_pool": [1], "test_pool": [2]}
    outer = {"prompt_learning": {"algorithm": "mipro", **pools}}
    both = {"prompt_learning": {"algorithm": "mipro", **pools, "mipro": {"online_pool": [3]}}}
    assert MiproConfig.parse(outer).mipro.online_pool == [1]
    assert MiproConfig.parse(both).mipro.online_pool == [3]
    assert MiproConfig.parse(both).mipro.test_pool == [2]


@pytest.mark.parametrize(
    ("example_id", "split"),
    [
        ("1", "train"),
        ("2", "train"),
        ("3", "validation"),
        ("4", "held_out"),
        ("9", None),
        ("a", None),
        ("", None),
        (None, None),
    ],
)
def test_an_example_belongs_to_the_pool_of_its_seed(
    example_id: str | None, split: str | None
) -> None:
    pools = with_mipro(online_pool=[1], bootstrap_train_seeds=[2], val_seeds=[3], test_pool=[4])
    assert MiproConfig.parse(pools).mipro.split_of(example_id) == split


# Warnings


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ({**SMALLEST, "results": {}}, "results is not part of a session config"),
        (with_mipro(tpe={"gamma": 0.25}), "prompt_learning.mipro.tpe has no effect"),
        (with_mipro(onlin_pool=[1]), "did you mean 'online_pool'?"),
        (with_mipro(proposer={"modle": "m"}), "proposer.modle is not known"),
        (with_mipro(**{"1": 2}), "prompt_learning.mipro.1 is not known"),
    ],
)
def test_a_key_without_effect_is_named(body: dict[str, Any], warning: str) -> None:
    (found,) = MiproConfig.parse(body).warnings
    assert warning in found


def test_warnings_are_no_part_of_the_config() -> None:
    config = MiproConfig.parse(with_mipro(tpe={}))
    assert "warnings" not in config.model_dump()


# What is refused


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "no [prompt_learning] section (it has: nothing)"),
        ({"mipro": {}}, "(it has: mipro); start it with [prompt_learning]"),
        ({"prompt_learning": 5}, "prompt_learning is 5; it must be a table"),
        (None, "the config is None"),
        ([], "the config is []"),
        ({"prompt_learning": {}}, "prompt_learning.algorithm is missing"),
        ({"prompt_learning": {"algorithm": "gepa"}}, "prompt_learning.algorithm is 'gepa'"),
        (with_mipro(mode="offline"), "prompt_learning.mipro.mode is 'offline'"),
        (with_mipro(selection={"strategy": "greedy"}), "selection.strategy is 'greedy'"),
        (with_mipro(online_rollouts_per_candidate=0), "online_rollouts_per_candidate is 0"),
        (with_mipro(few_shot_score_threshold=2), "few_shot_score_threshold is 2"),
        (with_mipro(reward_range=[1, 0]), "reward_range is [1.0, 0.0]"),
        (with_mipro(reward_range=[float("-inf"), 1]), "two finite numbers"),
        (with_mipro(reward_range=[float("nan"), 1]), "two finite numbers"),
        (with_mipro(demonstrations={"sizes": []}), "demonstrations.sizes is []"),
        (with_mipro(online_pool={"start": 0, "end": 10**400}), "more than 100000 seeds"),
        (with_mipro(online_pool={"start": 0, "end": 5, "step": 0}), "step not 0"),
        (with_mipro(online_pool={"start": [], "end": None}), "must be integers"),
        (with_mipro(online_pool=[0] * (MOST_SEEDS + 1)), "100000 items"),
        (
            {"prompt_learning": {"algorithm": "mipro", "initial_prompt": {"messages": [{}]}}},
            "initial_prompt.messages.0.role is missing",
        ),
    ],
)
def test_a_refusal_names_the_key_and_the_value(body: Any, words: str) -> None:
    assert words in refusal(body)


def test_a_refusal_names_every_problem() -> None:
    text = refusal(with_mipro(seed="x", promotion={"alpha": 2}))
    assert "prompt_learning.mipro.seed is 'x'" in text
    assert "prompt_learning.mipro.promotion.alpha is 2" in text


def test_a_long_value_is_shown_in_part() -> None:
    assert len(refusal({"prompt_learning": "x" * 10_000})) < 200


def test_a_bottomless_config_is_refused() -> None:
    bottomless: dict[str, Any] = {}
    for _ in range(5_000):
        bottomless = {"x": bottomless}
    assert "nested too deeply" in refusal({"prompt_learning": bottomless})


# TOML


def test_toml_that_does_not_parse_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigInvalid, match="line 2"):
        parse_toml("[a]\nb = \n")


@pytest.mark.parametrize("text", ["a = " + "[" * 5_000, "a = " + "9" * 5_000])
def test_toml_that_no_parser_holds_is_refused(text: str) -> None:
    with pytest.raises(ConfigInvalid, match="not valid TOML"):
        parse_toml(text)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mipro.toml"
    path.write_text(PUBLIC_EXAMPLE)
    assert read_toml(str(path)) == parse_toml(PUBLIC_EXAMPLE)


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mipro.toml"
    path.write_text("[")
    with pytest.raises(ConfigInvalid, match=r"mipro\.toml is not valid TOML"):
        read_toml(path)


@pytest.mark.parametrize("name", ["none.toml", ".", "none/mipro.toml"])
def test_a_file_that_cannot_be_read_is_not_found(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigNotFound, match="cannot read the config file") as caught:
        read_toml(tmp_path / name)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mipro.toml"
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigInvalid, match="not UTF-8"):
        read_toml(path)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mipro.toml"
    path.write_bytes(b"#" * (LARGEST_CONFIG_BYTES + 1))
    with pytest.raises(ConfigInvalid, match=r"262,145 bytes, more than 262,144 \(256 KB\)"):
        read_toml(path)


@pytest.mark.parametrize("place", ["pattern", "override", "unknown"])
def test_a_huge_config_is_refused_with_its_size_and_the_bound(place: str) -> None:
    huge = "é" * (LARGEST_CONFIG_BYTES // 2)
    body, overrides = parse_toml(PUBLIC_EXAMPLE), {}
    if place == "pattern":
        body["prompt_learning"]["initial_prompt"]["messages"][0]["pattern"] = huge
    elif place == "override":
        overrides = {"prompt_learning.env_name": huge}
    else:
        body["unknown"] = huge
    with pytest.raises(ConfigInvalid, match=r"has 26\d,\d{3} bytes, more than 262,144 \(256 KB\)"):
        MiproConfig.parse(body, overrides)


def test_a_huge_text_is_refused_unread() -> None:
    with pytest.raises(ConfigInvalid, match=r"the config has 262,146 bytes"):
        parse_toml("#" + "é" * (LARGEST_CONFIG_BYTES // 2) + "]")


def test_a_config_that_contains_itself_is_refused() -> None:
    body = parse_toml(PUBLIC_EXAMPLE)
    body["self"] = body
    with pytest.raises(ConfigInvalid, match="contains itself"):
        MiproConfig.parse(body)


# Overrides


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("prompt_learning.mipro.rollout.budget", 200),
        ("prompt_learning.mipro.proposer", {"mode": "all_levers"}),
        ("prompt_learning.mipro.candidate_rollouts", 4),
        ("prompt_learning.mipro.tpe.gamma", 0.2),
        ("prompt_learning.policy.config.any.thing", 1),
        ("prompt_learning.initial_prompt.wildcards.query", "REQUIRED"),
    ],
)
def test_an_override_sets_the_key_at_its_path(path: str, value: object) -> None:
    found: Any = override(SMALLEST, {path: value})
    for name in path.split("."):
        found = found[name]
    assert found == value


def test_overrides_count_before_validation() -> None:
    overrides = {"prompt_learning.mipro.rollout.budget": 200}
    assert MiproConfig.parse(SMALLEST, overrides).mipro.rollout.budget == 200
    assert "budget is 0" in refusal(SMALLEST, {"prompt_learning.mipro.rollout.budget": 0})


def test_overriding_leaves_the_given_tables_alone() -> None:
    body, value = copy.deepcopy(SMALLEST), {"budget": 3}
    merged = override(body, {"prompt_learning.mipro.rollout": value})
    merged["prompt_learning"]["mipro"]["rollout"]["budget"] = 9
    assert (body, value) == (SMALLEST, {"budget": 3})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"prompt_learning.mipro.rollout.bugdet": 3},
            "did you mean 'prompt_learning.mipro.rollout.budget'?",
        ),
        (
            {"selection.strategy": "mipro"},
            "did you mean 'prompt_learning.mipro.selection.strategy'?",
        ),
        ({"": 1}, "override '' names no key"),
        ({"prompt_learning..mipro": 1}, "names no key"),
        ({"prompt_learning.mipro.mode.deeper": 1}, "names no key"),
        ({1: 2}, "override 1 is no path"),
        ("text", "overrides is 'text'"),
    ],
)
def test_an_override_that_leads_nowhere_is_refused(overrides: Any, words: str) -> None:
    assert words in refusal(SMALLEST, overrides)


def test_an_override_below_a_value_is_refused() -> None:
    body = {"prompt_learning": {"algorithm": "mipro", "mipro": 5}}
    words = refusal(body, {"prompt_learning.mipro.rollout.budget": 3})
    assert "'mipro' is int here, not a table" in words


# Whatever comes, it is a config or a ConfigInvalid

keys = st.sampled_from(
    "prompt_learning algorithm mipro policy initial_prompt messages role pattern order rollout "
    "budget proposer mode online_pool start end step reward_range selection strategy sizes".split()
) | st.text(max_size=4)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["mipro", "online", "all_levers", "1", "", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)
sections = st.dictionaries(keys, values, max_size=5)
paths = st.sampled_from(
    "prompt_learning prompt_learning.mipro prompt_learning.mipro.online_pool "
    "prompt_learning.mipro.rollout.budget prompt_learning.policy.config.a.b "
    "prompt_learning.mipro.tpe.a prompt_learning.initial_prompt.messages".split()
)


@given(
    st.fixed_dictionaries({"prompt_learning": sections}, optional={"other": values}),
    st.dictionaries(paths | st.text(max_size=8), values, max_size=3),
)
def test_anything_is_a_config_or_a_config_invalid(
    body: dict[str, Any], overrides: dict[str, Any]
) -> None:
    body["prompt_learning"].setdefault("algorithm", "mipro")
    with suppress(ConfigInvalid):
        config = MiproConfig.parse(body, overrides)
        again = MiproConfig.parse(config.model_dump())
        assert again.prompt_learning == config.prompt_learning


@given(st.text())
def test_any_text_is_a_table_or_a_config_invalid(text: str) -> None:
    with suppress(ConfigInvalid):
        assert isinstance(parse_toml(text), dict)
