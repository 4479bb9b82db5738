"""Whatever stands in a file is judged, shown and explained without a fault of ours; no secret shows."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from haagent.config.explain import Dynamic, explain
from haagent.config.load import judge
from haagent.config.schema import DYNAMIC, KEYS, SECTIONS
from haagent.config.shown import as_yaml, masked
from haagent.config.sources import Tree
from tests.unit.test_config_load import MINIMAL

SECRET = "hunter2-secret"
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("#FIXME"),
    st.sampled_from(["127.0.0.1:1", "[::1]:5432", "a:99999", "/x", "10MB", "on", "\0", "http://u:p@h:1"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
paths = st.sampled_from(
    sorted({*KEYS, *SECTIONS, *(f"bootstrap.dcs.{name}" for name in DYNAMIC), "postgresql.x"} - {""})
)


def put(data: dict[str, Any], path: str, value: object) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        inner = data.get(parent)
        data[parent] = inner = inner if isinstance(inner, dict) else {}
        data = inner
    data[last] = value


@given(st.lists(st.tuples(paths, values), max_size=4))
def test_any_values_are_judged_shown_and_explained(changes: list[tuple[str, object]]) -> None:
    data = copy.deepcopy(MINIMAL)
    for path, value in changes:
        put(data, path, value)
    tree = Tree(data)
    _, checked = judge(tree, None)
    assert all("\n" not in str(problem) for problem in checked.problems)
    as_yaml(masked(data))
    dynamic = Dynamic(checked.get("bootstrap.dcs"), "bootstrap.dcs")
    for path, _ in changes:
        assert "hunter2" not in str(explain(path, tree, dynamic))


@given(st.text(max_size=30))
def test_any_key_is_explained_or_unknown(key: str) -> None:
    explain(key, Tree(copy.deepcopy(MINIMAL)), Dynamic({}, "the DCS"))


@given(st.sampled_from(sorted(path for path, key in KEYS.items() if key.secret)), values)
def test_no_secret_is_shown(path: str, other: object) -> None:
    data: dict[str, Any] = {"postgresql": {"x": other}}
    put(data, path, SECRET)
    assert SECRET not in as_yaml(masked(data))
    assert SECRET not in str(explain(path, Tree(data), Dynamic({}, "the DCS")))
