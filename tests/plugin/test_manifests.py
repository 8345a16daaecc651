"""Images, services and pools of deployments/: each is checked against its own schema, offline.

Kubernetes objects against the classes that lightkube makes of the Kubernetes API, the compose file
with the parser of the Compose specification, the Dockerfile with hadolint, and the base job
templates against those that Prefect's server ships for its workers.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import prefect
import pytest
import yaml
from compose_spec import PyCompose
from jsonschema import Draft202012Validator
from lightkube.core.resource import NamespacedResource
from lightkube.models.batch_v1 import Job
from lightkube.resources import (
    apps_v1,
    batch_v1,
    core_v1,
    policy_v1,
    rbac_authorization_v1,
)

FOLDER = Path(__file__).parents[2] / "deployments"
KUBERNETES = FOLDER / "kubernetes"
COMPOSE = (FOLDER / "docker" / "compose.yaml").read_text("utf-8")
SHIPPED = json.loads(
    (
        Path(prefect.__file__).parent
        / "server/api/collections_data/views/aggregate-worker-metadata.json"
    ).read_text("utf-8")
)
GROUPS = {
    "apps/v1": apps_v1,
    "batch/v1": batch_v1,
    "policy/v1": policy_v1,
    "rbac.authorization.k8s.io/v1": rbac_authorization_v1,
    "v1": core_v1,
}


def manifests() -> Iterator[dict[str, Any]]:
    for path in sorted(KUBERNETES.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text("utf-8"))


MANIFESTS = list(manifests())
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))


def faults(value: Any, kind: Any, place: str) -> Iterator[str]:
    """What of the value is not as its type says; unknown fields are faults too."""
    if get_origin(kind) in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        found = [list(faults(value, option, place)) for option in options]
        yield from [] if value is None or [] in found else found[0]
    elif dataclasses.is_dataclass(kind):
        yield from object_faults(value, kind, place)
    elif get_origin(kind) is list:
        if not isinstance(value, list):
            yield f"{place} is no list"
            return
        for index, item in enumerate(value):
            yield from faults(item, get_args(kind)[0], f"{place}[{index}]")
    elif kind is dict or get_origin(kind) is dict:
        texts = get_args(kind) == (str, str)
        if not isinstance(value, dict):
            yield f"{place} is no object"
        elif texts and not all(isinstance(text, str) for text in value.values()):
            yield f"{place} has values that are no text"
    elif kind in (str, int, bool) and type(value) is not kind:
        yield f"{place} is {value!r}, not of type {kind.__name__}"


def object_faults(value: Any, kind: Any, place: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{place} is no object"
        return
    known = {(f.metadata.get("json") or f.name): f for f in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    yield from (f"{place}.{name} is unknown" for name in value.keys() - known.keys())
    for name, described in known.items():
        required = (
            described.default is dataclasses.MISSING
            and described.default_factory is dataclasses.MISSING
        )
        if name in value:
            yield from faults(value[name], hints[described.name], f"{place}.{name}")
        elif required:
            yield f"{place}.{name} is missing"


def test_the_check_finds_what_is_wrong() -> None:
    wrong = {
        "spec": {
            "backofLimit": 1,
            "completions": "two",
            "template": {"spec": {"containers": [{"image": "a"}]}},
        }
    }
    assert set(faults(wrong, Job, "job")) == {
        "job.spec.backofLimit is unknown",
        "job.spec.completions is 'two', not of type int",
        "job.spec.template.spec.containers[0].name is missing",
    }


@pytest.mark.parametrize(
    "manifest", MANIFESTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_kubernetes_would_take_the_manifest(manifest: dict[str, Any]) -> None:
    kind = getattr(GROUPS[manifest["apiVersion"]], manifest["kind"])
    assert issubclass(kind, NamespacedResource) or manifest["kind"] == "Namespace"
    assert not list(faults(manifest, kind, manifest["kind"]))


def test_each_file_is_applied_and_each_own_image_is_named() -> None:
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(KUSTOMIZATION["resources"]) == files
    used = set(re.findall(r"image: (prefect-mipro-\S+)", "".join(texts())))
    assert used == {image["name"] for image in KUSTOMIZATION["images"]}
    worker = template("kubernetes")["variables"]["properties"]["image"]["default"]
    assert worker in {f"{each['newName']}:{each['newTag']}" for each in KUSTOMIZATION["images"]}


def texts() -> Iterator[str]:
    return (path.read_text("utf-8") for path in sorted(KUBERNETES.glob("*.yaml")))


def test_pods_find_the_services_secrets_and_accounts_that_they_name() -> None:
    by_kind: dict[str, set[str]] = {}
    for manifest in MANIFESTS:
        by_kind.setdefault(manifest["kind"], set()).add(manifest["metadata"]["name"])
    everything = json.dumps(MANIFESTS)
    hosts = re.findall(r"(?://|@)(\w+)(?:\.prefect-mipro)?[:/]", everything)
    assert {host for host in hosts if host not in ("mipro", "api")} <= by_kind["Service"]
    assert (
        set(re.findall(r'"serviceAccountName": "(\S+?)"', everything)) <= by_kind["ServiceAccount"]
    )
    secret = {each["name"] for each in KUSTOMIZATION["secretGenerator"]}
    assert set(re.findall(r'"secretKeyRef": {"name": "(\S+?)"', everything)) <= secret
    keys = (KUBERNETES / "example.env").read_text("utf-8")
    for key in re.findall(r'"secretKeyRef": {"name": "mipro", "key": "(\S+?)"', everything):
        assert f"{key}=" in keys
    for manifest in MANIFESTS:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            chosen = manifest["spec"]["selector"]["matchLabels"]
            assert chosen == manifest["spec"]["template"]["metadata"]["labels"]


def test_only_a_backend_that_would_answer_gets_calls() -> None:
    (pod,) = (
        manifest["spec"]["template"]["spec"]
        for manifest in MANIFESTS
        if (manifest["kind"], manifest["metadata"]["name"]) == ("Deployment", "backend")
    )
    (container,) = pod["containers"]
    asked = {
        name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("readiness", "liveness")
    }
    assert asked == {"readiness": "/ready", "liveness": "/health"}
    assert "8765/ready" in (FOLDER / "docker" / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("path", ["docker/example.env", "kubernetes/example.env"])
def test_no_secret_is_given_away(path: str) -> None:
    lines = (FOLDER / path).read_text("utf-8").splitlines()
    assert all(line.startswith("#") or not line.partition("=")[2] for line in lines)


def test_compose_would_take_the_file() -> None:
    with_values = re.sub(r"\$\{\w+(?::?[-?]([^}]*))?\}", r"\1", COMPOSE)
    services = composed(with_values).service_names()
    assert set(services) == {"postgres", "backend", "prefect", "setup", "worker"}
    with pytest.raises(ValueError, match="expected u64"):
        composed(with_values.replace("replicas: 2", "replicas: two"))


def composed(text: str) -> PyCompose:
    """Parsed by way of JSON, because the parser does not merge mappings as YAML's `<<` does."""
    return PyCompose.from_json(json.dumps(yaml.safe_load(text)))


def test_the_network_of_the_docker_pool_is_that_of_the_compose_file() -> None:
    name = yaml.safe_load(COMPOSE)["name"]
    networks = template("docker")["variables"]["properties"]["networks"]["default"]
    assert networks == [f"{name}_default"]


def test_the_dockerfile_follows_the_rules() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    dockerfile = FOLDER / "docker" / "Dockerfile"
    done = subprocess.run([hadolint, dockerfile], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def template(kind: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((FOLDER / "work-pools" / f"{kind}.json").read_text("utf-8"))
    return read


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_worker_would_take_the_base_job_template(kind: str) -> None:
    ours = template(kind)
    theirs = SHIPPED[f"prefect-{kind}"][kind]["default_base_job_configuration"]
    assert ours["job_configuration"].keys() <= theirs["job_configuration"].keys()
    variables = ours["variables"]
    Draft202012Validator.check_schema(variables)
    defaults = {
        name: variable["default"]
        for name, variable in variables["properties"].items()
        if "default" in variable
    }
    Draft202012Validator(variables).validate(defaults)
    Draft202012Validator(theirs["variables"]).validate(defaults)
    asked = set(re.findall(r"{{ (\w+) }}", json.dumps(ours["job_configuration"])))
    assert asked == variables["properties"].keys()


def test_the_job_of_a_flow_run_is_one_that_kubernetes_would_take() -> None:
    ours = template("kubernetes")
    values = {
        name: variable.get("default", "text")
        for name, variable in ours["variables"]["properties"].items()
    }
    values |= {"labels": {"a": "b"}, "env": [{"name": "A", "value": "b"}], "command": ["prefect"]}
    manifest = filled(ours["job_configuration"]["job_manifest"], values)
    # Kubernetes makes the name; the client's class wants one.
    assert not list(faults(manifest, Job, "job"))


def filled(part: Any, values: dict[str, Any]) -> Any:
    """The template with a value for each variable, as a worker fills it."""
    match part:
        case dict():
            return {name: filled(inner, values) for name, inner in part.items()}
        case list():
            return [filled(inner, values) for inner in part]
        case str() if found := re.fullmatch(r"{{ (\w+) }}", part):
            return values[found[1]]
        case str():
            return re.sub(r"{{ (\w+) }}", lambda found: str(values[found[1]]), part)
    return part
