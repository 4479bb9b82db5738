"""docs/contract-status.md: what Patroni's users rely on, row by row, with the tests that observe it.

    python -m tests.contract_status         writes the page
    python -m tests.contract_status check   says what is wrong, and ends with 1

Rows are in tests/contract_rows/*.yml, in our own words: `section: {row: [test, …]}`. A test is `file::name`
without its directory and `.py`. A row that is not built has the text `not built: …` instead, and says where
it belongs. Every key of the configuration has to have a row: the table of keys says which there are.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from haagent.config.schema import DYNAMIC, KEYS
from haagent.config.sources import VARIABLES

ROOT = Path(__file__).resolve().parents[1]
ROWS_DIR = ROOT / "tests" / "contract_rows"
PAGE = ROOT / "docs" / "contract-status.md"
_NOT_BUILT = "not built: "
_HEAD = """# The contract, row by row

*Written by `python -m tests.contract_status`; do not edit.*

haagent stands in for Patroni 4.1. Each row is one thing that its users, tools and configurations rely on,
with the tests that observe its effect. A test run fails when a row has no test, when a test of a row is gone,
and when a key of the configuration has no row.

"""


@dataclass(frozen=True)
class Row:
    section: str
    what: str
    #: `file::test` of each observer.
    tests: tuple[str, ...] = ()
    #: Why there is none.
    not_built: str | None = None


def rows() -> list[Row]:
    """All rows in the order of the files."""
    found = []
    for path in sorted(ROWS_DIR.glob("*.yml")):
        for section, content in yaml.safe_load(path.read_text()).items():
            found += [_row(section, str(what), observed) for what, observed in content.items()]
    return found


def _row(section: str, what: str, observed: object) -> Row:
    if isinstance(observed, str) and observed.startswith(_NOT_BUILT):
        return Row(section, what, not_built=observed.removeprefix(_NOT_BUILT))
    names = [observed] if isinstance(observed, str) else observed
    return Row(section, what, tuple(str(name) for name in names or ()))  # type: ignore[attr-defined]


@cache
def tests() -> Mapping[str, str]:
    """`file::test` -> path from the root, of every test there is."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in _functions(path):
            found[f"{path.stem}::{name}"] = str(path.relative_to(ROOT))
    return found


def _functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name


def problems() -> list[str]:
    """What is wrong with the rows; nothing when all is well."""
    found = rows()
    known = {row.what.split("`")[1] for row in found if row.what.count("`") >= 2}
    bad = [f"{row.section}: {row.what}: has no test" for row in found if not row.tests and not row.not_built]
    bad += [
        f"{row.section}: {row.what}: there is no test {test}"
        for row in found
        for test in row.tests
        if test not in tests()
    ]
    keys = {*KEYS, *DYNAMIC, *(f"PATRONI_{name}" for name in VARIABLES)}
    bad += [f"the key {key} has no row" for key in sorted(keys) if not _has_row(key, known)]
    return bad


def _has_row(key: str, known: set[str]) -> bool:
    """Its own row, or that of its family: `postgresql.bin_name.*`."""
    return key in known or any(name.endswith("*") and key.startswith(name[:-1]) for name in known)


def page() -> str:
    found = rows()
    built = sum(row.not_built is None for row in found)
    lines = [_HEAD, f"{built} of {len(found)} rows are built.\n"]
    for section in dict.fromkeys(row.section for row in found):
        lines.append(f"\n## {section}\n\n| what | observed by |\n|---|---|")
        lines += [_line(row) for row in found if row.section == section]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    links = [f"[{name.split('::')[1]}](../{tests().get(name, '')})" for name in row.tests]
    observed = f"**not built**: {row.not_built}" if row.not_built else ", ".join(links)
    return f"| {row.what.replace('|', chr(92) + '|')} | {observed} |"


def main() -> int:
    bad = problems()
    for text in bad:
        print(text, file=sys.stderr)
    if sys.argv[1:] != ["check"]:
        PAGE.write_text(page())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
