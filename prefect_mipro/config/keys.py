"""The keys a session config may have: which are known, which have no effect here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

from pydantic import AliasChoices, BaseModel

from prefect_mipro.config.sections import PromptLearning
from prefect_mipro.errors import ConfigInvalid

# Words of the hosted service, and constants that were settings once, which this backend reads
# past; a warning names each that is set.
INERT: Mapping[str, frozenset[str]] = {
    "prompt_learning": frozenset(
        "task_app_api_key env_name env_config proxy_models ontology verifier results_folder".split()
    ),
    "prompt_learning.policy": frozenset({"inference_mode", "policy_name", "config"}),
    "prompt_learning.termination_config": frozenset(
        "max_trials max_category_costs_usd pessimism_enabled".split()
    ),
    "prompt_learning.mipro.selection": frozenset(
        "temperature leader_share uniform_share new_lever_share new_lever_rewards caution".split()
    ),
    "prompt_learning.mipro.promotion": frozenset({"trigger_probability", "cool_down_rollouts"}),
    "prompt_learning.mipro": frozenset(
        "online_recent_event_window online_recent_rollout_window online_event_shard_size "
        "online_rollout_shard_size online_snapshot_max_events online_snapshot_max_seconds "
        "transform_slots proxy_models ontology tpe spec_path spec_max_tokens "
        "spec_include_examples spec_priority_threshold metaprompt text_dreamer adaptive_pool "
        "verifier num_iterations num_evaluations_per_iteration batch_size max_concurrent env_name "
        "env_config min_bootstrap_demos max_wall_clock_seconds max_token_limit max_spend_usd "
        "token_counting_model enforce_token_limit demo grounding meta_update meta meta_model "
        "meta_model_provider modules seeds policy_config results_file proposer_effort "
        "proposer_output_tokens".split()
    ),
}


# Addresses of the program, which the hosted service asked for: nobody misses anything without them.
UNUSED = frozenset({"task_app_id", "task_app_url", "container_id", "container_url"})


def check_path(path: object) -> None:
    """Raise ConfigInvalid unless a config can have a key at this dotted path."""
    if not isinstance(path, str):
        raise ConfigInvalid(f"override {path!r} is no path; give text with dots between the keys")
    known = set(_known_paths())
    free = ("prompt_learning.initial_prompt.wildcards.", "prompt_learning.prices.")
    inert_tables = tuple(f"{table}.{key}." for table, keys in INERT.items() for key in keys)
    if path in known or path.startswith((*free, *inert_tables)):
        return
    close = difflib.get_close_matches(path, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        f"prompt_learning.mipro.{path}", known, n=1, cutoff=0.5
    )
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigInvalid(f"override {path!r} names no key of a config{hint}")


def _known_paths() -> Iterator[str]:
    yield "prompt_learning"
    yield from _section_paths(PromptLearning, "prompt_learning.")
    for table, keys in INERT.items():
        yield from (f"{table}.{key}" for key in keys)


def _section_paths(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, inner in _fields(section).items():
        yield f"{prefix}{name}"
        if inner:
            yield from _section_paths(inner, f"{prefix}{name}.")


def _fields(section: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Every name a key of the section may have, with the section below it, if it is a table."""
    fields: dict[str, type[BaseModel] | None] = {}
    for name, field in section.model_fields.items():
        if field.exclude:
            continue
        types = (field.annotation, *get_args(field.annotation))
        if get_origin(field.annotation) is dict:
            types = ()  # its keys are the user's own words
        inner = next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), None)
        alias = field.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [name]
        fields.update({str(choice): inner for choice in names})
    return fields


def warnings(merged: Mapping[str, Any]) -> Iterator[str]:
    """Each key that is set and has no effect."""
    for key in merged:
        if key != "prompt_learning":
            yield f"{key} is not part of a session config and has no effect"
    yield from _section_warnings(PromptLearning, merged["prompt_learning"], "prompt_learning")


def honoured(merged: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key that is set and has an effect: its dotted path, and its value as it was written."""
    yield from _section_honoured(PromptLearning, merged["prompt_learning"], "prompt_learning")


def _section_honoured(
    section: type[BaseModel], table: Mapping[str, Any], path: str
) -> Iterator[tuple[str, Any]]:
    fields = _fields(section)
    for key in table.keys() & fields.keys() - INERT.get(path, frozenset()) - UNUSED:
        inner, value = fields[key], table[key]
        if inner and isinstance(value, Mapping):
            yield from _section_honoured(inner, value, f"{path}.{key}")
        else:
            yield f"{path}.{key}", value


def _section_warnings(
    section: type[BaseModel], table: Mapping[str, Any], path: str
) -> Iterator[str]:
    fields = _fields(section)
    inert = INERT.get(path, frozenset())
    for key, value in table.items():
        if key in inert:
            yield f"{path}.{key} has no effect on this backend"
        elif key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{path}.{key} is not known and has no effect{hint}"
        elif (inner := fields[key]) and isinstance(value, Mapping):
            yield from _section_warnings(inner, value, f"{path}.{key}")
