"""The locked development dependencies: whole, hashed, from no particular place; and their audit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-dev.txt"
AUDIT = ROOT / ".ci/audit.py"
_ENTRY = re.compile(
    r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)( ; (?P<marker>[^\\]+?))?"
    r"(?P<hashes>( \\\n    --hash=sha256:[0-9a-f]{64})+)\n"
)


@cache
def locked() -> dict[str, list[Version]]:
    """The versions that the lock has for this interpreter and machine, by package."""
    found: dict[str, list[Version]] = defaultdict(list)
    for entry in _ENTRY.finditer(LOCK.read_text("utf-8")):
        if not entry["marker"] or Marker(entry["marker"]).evaluate():
            found[canonicalize_name(entry["name"])].append(Version(entry["version"]))
    return dict(found)


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return found


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return not marker or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def needed(extra: str) -> Iterator[Requirement]:
    """What an extra of ours asks for, those extras included that it names."""
    yield from map(Requirement, project()["dependencies"])
    for requirement in map(Requirement, project()["optional-dependencies"][extra]):
        if requirement.name == project()["name"]:
            for each in requirement.extras:
                yield from needed(each)
        else:
            yield requirement


def test_the_lock_holds_versions_and_hashes_and_names_no_place() -> None:
    text = LOCK.read_text("utf-8")
    left = _ENTRY.sub("", text)
    assert [line for line in left.splitlines() if not line.startswith("#")] == []
    assert not re.search(r"[/@]", text)


def test_what_pyproject_and_its_dependencies_ask_for_is_locked() -> None:
    """Else: `make lock`."""
    waiting = list(needed("dev"))
    assert len(waiting) > 50
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        extras = frozenset(requirement.extras)
        if not applies(requirement, frozenset()):
            continue
        found = locked().get(canonicalize_name(requirement.name), [])
        assert len(found) == 1, f"{requirement}: {len(found)} locked versions"
        assert requirement.specifier.contains(found[0], prereleases=True), (
            f"{requirement} does not allow the locked {found[0]}: make lock"
        )
        key = (canonicalize_name(requirement.name), extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            further = requires(requirement.name) or []
        except PackageNotFoundError:
            continue
        waiting += [
            Requirement(f"{each.name}{_extras(each)}{each.specifier}")
            for each in map(Requirement, further)
            if applies(each, extras)
        ]


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(requirement.extras)}]" if requirement.extras else ""


class Vulnerabilities(BaseHTTPRequestHandler):
    """An OSV that knows of one: in version 1.0 of `holey`."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = asked["package"]["name"]
        events = [{"introduced": "0"}, {"fixed": "1.1"}]
        affected = {
            "package": {"name": name, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
        }
        found = {"id": "PYSEC-1", "modified": "2026-01-01T00:00:00Z", "affected": [affected]}
        body = json.dumps({"vulns": [found]} if name == "holey" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def osv() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Vulnerabilities) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(folder: Path, name: str, url: str) -> tuple[int, str]:
    """Exit code and output for a lock with one package."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}==1.0 --hash=sha256:{'0' * 64}\n")
    command = [sys.executable, str(AUDIT), str(requirements), "--osv-url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout


def test_an_audit_names_the_package_and_the_version_that_is_fixed(tmp_path: Path, osv: str) -> None:
    code, output = audit(tmp_path, "holey", osv)
    assert (code, output.splitlines()[0]) == (1, "holey 1.0: PYSEC-1, fixed in 1.1")


def test_an_audit_that_finds_nothing_succeeds(tmp_path: Path, osv: str) -> None:
    assert audit(tmp_path, "whole", osv) == (0, "1 packages, 0 with known vulnerabilities\n")


def test_an_audit_that_could_not_ask_is_no_success(tmp_path: Path) -> None:
    code, output = audit(tmp_path, "whole", "http://127.0.0.1:9/v1/query")
    assert code == 2
    assert output.startswith("Nothing was audited: ")
    assert "127.0.0.1" in output
