"""Every rule id the core can return is reached by a test that names it."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RULES = HERE.parent.parent / "haagent" / "core" / "rules"


@functools.cache
def rule_ids() -> dict[str, str]:
    """Id -> file, from the calls `Decision("id", …)` and `wait("id", …)` in the rules."""
    found = {}
    for path in sorted(RULES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", None)
            first = node.args[0] if isinstance(node, ast.Call) and node.args else None
            if name in ("Decision", "wait") and isinstance(first, ast.Constant):
                found[str(first.value)] = path.name
    return found


@functools.cache
def named_in_tests() -> set[str]:
    """Every text in the tests of the rules."""
    texts: set[str] = set()
    for path in HERE.glob("test_rules_*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        texts |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return texts


@pytest.mark.parametrize("rule", sorted(rule_ids()))
def test_rule_is_reached_by_a_test(rule: str) -> None:
    assert rule in named_in_tests(), f"{rule} of {rule_ids()[rule]} has no test"


def test_there_are_rules() -> None:
    assert len(rule_ids()) > 80
