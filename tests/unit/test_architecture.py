"""Rules about the code itself that no reviewer should have to remember (design, "Never", and style).

Each rule reads the syntax trees of the files, so a violation names file and line. Exceptions stand in the
tables below, one line each with its reason; one that no longer matches anything fails too, so that the tables
stay true.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = ("haagent", "dcs", "postgres_ctl")

#: Everything haagent/core may import. Only data types and pure functions: same input, same output.
CORE_MAY_IMPORT = {
    *("__future__", "abc", "bisect", "collections", "collections.abc", "copy", "dataclasses", "decimal"),
    *("difflib", "enum", "fractions", "functools", "heapq", "itertools", "json", "math", "operator", "re"),
    *("string", "types", "typing", "urllib.parse"),
    *("dcs.records", "postgres_ctl.facts", "postgres_ctl.sync_standbys"),
}
#: Builtins that reach outside, and names that would smuggle a module in.
CORE_MAY_NOT_CALL = {
    "open",
    "print",
    "input",
    "eval",
    "exec",
    "compile",
    "__import__",
    "breakpoint",
    "id",
    "hash",
}

ROLE_WORDS = {
    "primary",
    "replica",
    "leader",
    "standby_leader",
    "standby-leader",
    "master",
    "demoted",
    "promoted",
}
ROLE_NAMES = {"role", "leader", "leader_name"}
#: "file: source line" -> why this comparison of roles or leader names outside haagent/core decides nothing.
ROLE_COMPARISONS = {
    'dcs/consul_service.py: "Tags": sorted([*tags, "master"] if path == "primary" else tags),': "a tag",
    'dcs/codec.py: role="primary" if role == "master" else role,': "parses the word of older peers",
    'postgres_ctl/gucs.py: if value.lower() in ("hot_standby", "replica"):': "a value of wal_level, no role",
}
MOST_ROLE_COMPARISONS = 6

#: Client libraries and the only places that may import them.
CLIENT_LIBRARIES = {
    "psycopg": ("postgres_ctl",),
    "kazoo": ("dcs.zookeeper",),
    "consul": ("dcs.consul",),
    "requests": ("dcs.consul",),
    "kubernetes": ("dcs.kubernetes",),
    "etcd3": (),
    "sqlite3": ("dcs.local",),
    "inotify_simple": ("dcs.local",),
    "flask": ("haagent.api",),
    "werkzeug": ("haagent.api",),
    "prometheus_client": ("haagent.api",),
    "click": ("haagent.ctl", "haagent.demo", "haagent.__main__"),
    "rich": ("haagent.ctl", "haagent.demo", "haagent.__main__"),
    "yaml": ("haagent.config", "haagent.ctl", "haagent.demo"),
}
ADAPTERS = ("local", "memory", "etcd3", "zookeeper", "consul", "kubernetes")


# --- reading the code -----------------------------------------------------------------------------


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Every imported module by its absolute name; `from a import b` gives both a and a.b."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield origin, node
            yield from ((f"{origin}.{alias.name}", node) for alias in node.names if alias.name != "*")


def inside(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def none_of(violations: Iterable[str]) -> None:
    found = sorted(set(violations))
    assert not found, "\n  ".join(["violations:", *found])


# --- haagent/core is pure -------------------------------------------------------------------------


def core_import_violations(path: Path) -> Iterator[str]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = _core_origins(path, node)
        else:
            continue
        yield from (f"{where(path, node)} imports {name}" for name in names if not _core_may_import(name))


def _core_origins(path: Path, node: ast.ImportFrom) -> list[str]:
    if node.level:
        return [name for name, at in imports(path) if at is node][:1]
    module = node.module or ""
    # A package is judged by what is taken out of it: `from dcs import api` is an import of dcs.api.
    return (
        [f"{module}.{alias.name}" for alias in node.names]
        if module in ("dcs", "postgres_ctl", "haagent")
        else [module]
    )


def _core_may_import(name: str) -> bool:
    if name in ("haagent.__version__", "haagent.COMPATIBLE_VERSION"):
        return True
    return name in CORE_MAY_IMPORT or inside(name, ["haagent.core"])


def test_core_imports_only_data_types() -> None:
    none_of(v for path in files("haagent/core") for v in core_import_violations(path))


def test_core_calls_nothing_that_reaches_outside() -> None:
    def violations(path: Path) -> Iterator[str]:
        for node in ast.walk(tree(path)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in CORE_MAY_NOT_CALL
            ):
                yield f"{where(path, node)} calls {node.func.id}()"
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global):
                yield f"{where(path, node)} {type(node).__name__}"

    none_of(v for path in files("haagent/core") for v in violations(path))


# --- roles and leadership are decided in core only ------------------------------------------------


def role_comparisons(path: Path) -> Iterator[ast.AST]:
    """`==`, `!=`, `in`, `not in` and match patterns on role words, or on things named role or leader."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Compare):
            by_value = any(isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for op in node.ops)
            if by_value and _about_roles([node.left, *node.comparators]):
                yield node
        elif isinstance(node, ast.MatchValue) and _is_role_word(node.value):
            yield node


def _about_roles(sides: list[ast.expr]) -> bool:
    """A role word, or a name like `leader` against anything but a constant; `role == "rewind"` is no such."""
    flat = [part for side in sides for part in (side.elts if isinstance(side, _LITERALS) else [side])]
    if any(_is_role_word(part) for part in flat):
        return True
    others = [part for part in flat if not _is_role_name(part)]
    return len(others) < len(flat) and not (others and all(isinstance(part, ast.Constant) for part in others))


_LITERALS = (ast.Tuple, ast.List, ast.Set)


def _is_role_word(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in ROLE_WORDS


def _is_role_name(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr in ROLE_NAMES
    return isinstance(node, ast.Name) and node.id in ROLE_NAMES


def _source_line(path: Path, node: ast.AST) -> str:
    line = path.read_text().splitlines()[getattr(node, "lineno", 1) - 1].strip()
    return f"{path.relative_to(ROOT)}: {line}"


def test_roles_and_leadership_are_compared_only_in_core() -> None:
    core = set(files("haagent/core"))
    found = {
        _source_line(path, node): where(path, node)
        for path in files(*PRODUCTION)
        if path not in core
        for node in role_comparisons(path)
    }
    none_of(f"{place}: {line}" for line, place in found.items() if line not in ROLE_COMPARISONS)
    none_of(f"allowed but gone: {line}" for line in ROLE_COMPARISONS if line not in found)
    assert all(reason.strip() for reason in ROLE_COMPARISONS.values())
    assert len(ROLE_COMPARISONS) <= MOST_ROLE_COMPARISONS


# --- layers ---------------------------------------------------------------------------------------


def test_dcs_and_postgres_ctl_stand_alone() -> None:
    others = {"dcs": ("haagent", "postgres_ctl", "tests"), "postgres_ctl": ("haagent", "dcs", "tests")}
    none_of(
        f"{where(path, node)} imports {name}"
        for folder, forbidden in others.items()
        for path in files(folder)
        for name, node in imports(path)
        if inside(name, forbidden)
    )


def test_production_code_imports_no_tests() -> None:
    none_of(
        f"{where(path, node)} imports {name}"
        for path in files(*PRODUCTION)
        for name, node in imports(path)
        if inside(name, ("tests", "pytest", "hypothesis", "unittest"))
    )


def test_client_libraries_stay_in_their_place() -> None:
    none_of(
        f"{where(path, node)} imports {name}"
        for path in files(*PRODUCTION)
        for name, node in imports(path)
        for library, places in CLIENT_LIBRARIES.items()
        if inside(name, [library]) and not inside(_home(path), places)
    )


def test_third_party_imports_are_declared() -> None:
    """What production code imports must be a dependency: else a fresh install lacks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"]]
    for name, extra in project["optional-dependencies"].items():
        declared += extra if name not in ("test", "lint") else []
    declared_names = {re.split(r"[^\w.-]", entry)[0].lower().replace("_", "-") for entry in declared}
    none_of(
        f"{where(path, node)} imports {name}"
        for path in files(*PRODUCTION)
        for name, node in imports(path)
        if (top := name.split(".")[0]) not in (*sys.stdlib_module_names, *PRODUCTION)
        and not declared_names & _distributions(top)
    )


@functools.cache
def _distributions(package: str) -> set[str]:
    """Names that a dependency on this package may have; werkzeug and jinja2 are Flask's interface,
    requests is py-consul's."""
    known = {"werkzeug": "flask", "jinja2": "flask", "markupsafe": "flask", "requests": "py-consul"}
    found = importlib.metadata.packages_distributions().get(package, [package])
    return {known.get(name.lower(), name.lower().replace("_", "-")) for name in found}


def _home(path: Path) -> str:
    """The module, or for a helper of an adapter that adapter."""
    adapter = _adapter(module_name(path))
    return f"dcs.{adapter}" if adapter else module_name(path)


def _adapter(module: str) -> str | None:
    """dcs.etcd3 and its helpers dcs.etcd3_… or dcs.etcd3.… are one adapter."""
    second = module.split(".")[1] if module.startswith("dcs.") else ""
    return next((name for name in ADAPTERS if second == name or second.startswith(f"{name}_")), None)


def test_adapters_do_not_import_each_other() -> None:
    none_of(
        f"{where(path, node)} imports {name}"
        for path in files("dcs")
        for name, node in imports(path)
        if _adapter(module_name(path)) and _adapter(name) not in (None, _adapter(module_name(path)))
    )


# --- no sleeping, no mocks ------------------------------------------------------------------------


def sleeps(path: Path) -> Iterator[ast.AST]:
    modules = {"time", "asyncio"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and isinstance(node.value, ast.Name):
            yield from [node] if node.value.id in modules else []
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            yield from [node] if any(alias.name == "sleep" for alias in node.names) else []


def test_nothing_sleeps() -> None:
    none_of(where(path, node) for path in files(*PRODUCTION, "tests") for node in sleeps(path))


def test_no_mocks() -> None:
    none_of(
        f"{where(path, node)} imports {name}"
        for path in files("tests")
        for name, node in imports(path)
        if inside(name, ("unittest.mock", "mock", "pytest_mock"))
    )


# --- the rules can fail ---------------------------------------------------------------------------


Rule = Callable[[Path], Iterator[object]]


@pytest.mark.parametrize(
    ("rule", "code", "violations"),
    [
        (core_import_violations, "import time", 1),
        (core_import_violations, "import os.path", 1),
        (core_import_violations, "from dcs import api", 1),
        (core_import_violations, "from dcs.api import Ok", 1),
        (core_import_violations, "from haagent import log", 1),
        (core_import_violations, "from haagent.config import schema", 1),
        (core_import_violations, "def late():\n    import random", 1),
        (core_import_violations, "from dcs.records import Leader\nfrom haagent.core import model", 0),
        (core_import_violations, "from haagent import COMPATIBLE_VERSION", 0),
        (role_comparisons, "a == 'primary'", 1),
        (role_comparisons, "a in ('replica', x)", 1),
        (role_comparisons, "a.role != b", 1),
        (role_comparisons, "cluster.leader == name", 1),
        (role_comparisons, "match a:\n    case 'demoted': pass", 1),
        (role_comparisons, "role in ('', None)", 0),
        (role_comparisons, "role == 'replication'", 0),
        (role_comparisons, "cluster.leader is None", 0),
        (role_comparisons, "leader.epoch == epoch", 0),
        (sleeps, "import time\ntime.sleep(1)", 1),
        (sleeps, "from time import sleep", 1),
        (sleeps, "condition.wait(1)", 0),
    ],
)  # fmt: skip
def test_rules_see_what_they_are_for(
    rule: Rule, code: str, violations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.unit.test_architecture.ROOT", tmp_path)
    path = tmp_path / "haagent" / "core" / "sample.py"
    path.parent.mkdir(parents=True)
    path.write_text(code)
    assert len(list(rule(path))) == violations
