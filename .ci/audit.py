"""Known vulnerabilities of locked packages: 0 none, 1 some, 2 where nobody could be asked.

    python .ci/audit.py requirements-dev.txt

pip-audit asks the database OSV. Where that cannot be reached it ends with a traceback and the exit
code of a finding; here a check that was not made is told from one that found something.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, NOT_ASKED = range(3)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("requirements", type=Path, help="with a version and hashes for each")
    parser.add_argument("--osv-url", help="of another OSV than the public one")
    options = parser.parse_args(arguments)
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json"]
    command += ["--progress-spinner", "off", "--vulnerability-service", "osv"]
    command += ["--requirement", str(options.requirements)]
    if options.osv_url:
        command += ["--osv-url", options.osv_url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout:
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        print(f"Nothing was audited: {reason}")
        return NOT_ASKED
    packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    for package in packages:
        for found in package.get("vulns", ()):
            fixed = ", ".join(found["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
    # What pip-audit leaves out must not count as clean.
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        print(f"Not audited: {', '.join(skipped)}")
        return NOT_ASKED
    vulnerable = sum(bool(package["vulns"]) for package in packages)
    print(f"{len(packages)} packages, {vulnerable} with known vulnerabilities")
    return VULNERABLE if vulnerable else CLEAN


if __name__ == "__main__":
    sys.exit(main())
