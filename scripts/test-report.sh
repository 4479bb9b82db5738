#!/usr/bin/env bash
# Runs every test, the slow ones too, and writes what happened to docs/test-report.md. Arguments go to pytest.
# Exits as pytest did; the report is written either way.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${HAAGENT_VENV:?run it by make test-all}/bin/python
xml=$(mktemp)
trap 'rm -f "$xml"' EXIT

"$python" -m pytest -n "${JOBS:-2}" --dist worksteal --junitxml="$xml" "$@"
status=$?

"$python" - "$xml" docs/test-report.md <<'PYTHON'
import collections
import datetime
import os
import pathlib
import platform
import subprocess
import sys
import xml.etree.ElementTree as xml

from tests.support.versions import MATRIX, bin_dir_of

def says(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip().split("\n")[0]
    except OSError:
        return "not found"


def outcome(case):
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


cases = list(xml.parse(sys.argv[1]).getroot().iter("testcase"))
folders = collections.defaultdict(collections.Counter)
for case in cases:
    folder = ".".join(case.get("classname", "").split(".")[:2]) or "(collection)"
    folders[folder][outcome(case)] += 1
    folders[folder]["s"] += float(case.get("time", 0))
servers = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"))
servers += [f"{bin_dir_of(version)}/postgres" for version in MATRIX]
commit = says("git", "log", "-1", "--format=%h of %cs") or "no commit"
lines = [
    "# Test report",
    "",
    f"Written by `make test-all` on {datetime.date.today()}, commit {commit}. Do not edit.",
    "",
    f"- {platform.freedesktop_os_release()['PRETTY_NAME']}, {os.cpu_count()} cores, Python {platform.python_version()}",
    *(f"- {says(str(server), '--version')}" for server in servers),
    f"- {says('etcd', '--version')}",
    "",
    "| tests | passed | failed | skipped | seconds |",
    "|---|--:|--:|--:|--:|",
]
total = collections.Counter()
for folder, count in sorted(folders.items()):
    total += count
    lines.append(f"| {folder} | {count['passed']} | {count['failed']} | {count['skipped']} | {count['s']:.0f} |")
lines.append(f"| all | {total['passed']} | {total['failed']} | {total['skipped']} | {total['s']:.0f} |")
for title, kind in (("Failed", "failed"), ("Skipped", "skipped")):
    names = [f"- {c.get('classname')}::{c.get('name')}" for c in cases if outcome(c) == kind]
    lines += ["", f"## {title}", "", *(names or ["None."])]
slowest = sorted(cases, key=lambda c: -float(c.get("time", 0)))[:10]
lines += ["", "## Slowest", ""]
lines += [f"- {float(c.get('time', 0)):.1f} s {c.get('classname')}::{c.get('name')}" for c in slowest]
pathlib.Path(sys.argv[2]).write_text("\n".join(lines) + "\n")
PYTHON
echo "report: docs/test-report.md"
exit $status
