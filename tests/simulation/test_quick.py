"""Quick records are the same records: constructor, defaults, equality, refusal to change, `replace`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import pytest

from haagent.core.model import JobResult, Memory, Observation
from tests.simulation import quick
from tests.simulation.run import run_seed

FROZEN = sorted(quick._quick, key=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


@dataclasses.dataclass(frozen=True)
class Plain:
    """What `dataclasses` itself makes, to compare with."""

    a: int
    b: str = "b"
    c: Mapping[str, int] = dataclasses.field(default_factory=dict)
    d: int = dataclasses.field(default=4, kw_only=True)


def _twin() -> Any:
    twin: Any = dataclasses.make_dataclass(
        "Plain",
        [("a", int), ("b", str, "b"), ("c", Mapping[str, int], dataclasses.field(default_factory=dict)),
         ("d", int, dataclasses.field(default=4, kw_only=True))],
        frozen=True,
    )  # fmt: skip
    twin.__init__ = quick._constructor(twin)
    return twin


def test_records_of_the_agent_are_quick() -> None:
    assert callable(run_seed)  # importing the simulator made them so
    assert {Observation, Memory, JobResult} <= set(FROZEN)


@pytest.mark.parametrize("cls", FROZEN, ids=lambda cls: cls.__qualname__)
def test_the_constructor_takes_what_it_took(cls: type[Any]) -> None:
    params = cls.__dict__["__dataclass_params__"]
    annotations = {field.name: field.type for field in dataclasses.fields(cls)}
    fields = [(f.name, f.type, _like(f)) for f in dataclasses.fields(cls)]
    original = dataclasses.make_dataclass("Original", fields, frozen=params.frozen)
    mine, its = inspect.signature(cls), inspect.signature(original)
    assert list(mine.parameters) == list(its.parameters) == list(annotations)
    for one, other in zip(mine.parameters.values(), its.parameters.values(), strict=True):
        assert (one.kind, one.default is one.empty) == (other.kind, other.default is other.empty)


def _like(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=field.default_factory, kw_only=field.kw_only)
    if field.default is not dataclasses.MISSING:
        return dataclasses.field(default=field.default, kw_only=field.kw_only)
    return dataclasses.field(kw_only=field.kw_only)


def test_values_defaults_and_factories() -> None:
    twin = _twin()
    good: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((1,), {}), ((1, "x"), {"d": 7}), ((), {"a": 2, "c": {"k": 1}}),
    ]  # fmt: skip
    for args, words in good:
        assert dataclasses.asdict(twin(*args, **words)) == dataclasses.asdict(Plain(*args, **words))
    assert twin(1).c is not twin(1).c
    bad: list[tuple[tuple[Any, ...], dict[str, Any]]] = [((), {}), ((1, "b", {}, 4), {}), ((1,), {"e": 1})]
    for args, words in bad:
        with pytest.raises(TypeError):
            twin(*args, **words)


def test_they_cannot_be_changed_and_compare_by_value() -> None:
    result = JobResult("stop", True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.ok = False  # type: ignore[misc]
    assert result == JobResult("stop", True, "", {})
    assert result != JobResult("stop", False)
    assert repr(result) == "JobResult(kind='stop', ok=True, reason='', data={})"


def test_replaced_is_replace() -> None:
    before = Memory(last_epoch=3, note="x")
    after = quick.replaced(before, note=None)
    assert after == dataclasses.replace(before, note=None)
    assert (before.note, after.last_epoch, type(after)) == ("x", 3, Memory)
    with pytest.raises(TypeError):
        quick.replaced(before, no_such_field=1)
