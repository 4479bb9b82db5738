"""Frozen records that cost little to make: a twelfth of a schedule's time went into writing their fields.

Theory. `@dataclass(frozen=True)` has to write each field through `object.__setattr__`, and `replace` calls
that constructor with every field again. Here the same constructor (same parameters, same defaults) puts all
fields down at once. Only how the fields are written changes: equality, and the refusal to change a record,
stay. What the package's code says is untouched; classes with `__post_init__` or slots are left alone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

_PACKAGES = ("haagent", "dcs", "postgres_ctl")
_new = object.__new__
_write = object.__setattr__
_quick: set[type[Any]] = set()


def quicken() -> None:
    """Every frozen record of the modules of the packages that are loaded by now."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in _PACKAGES:
            continue
        for value in list(vars(module).values()):
            known = isinstance(value, type) and value not in _quick
            if known and value.__module__ == name and _is_plain(value):
                type.__setattr__(value, "__init__", _constructor(value))
                _quick.add(value)
        if vars(module).get("replace") is dataclasses.replace:
            setattr(module, "replace", replaced)  # noqa: B010


def _is_plain(cls: type[Any]) -> bool:
    """A frozen dataclass of its own making, whose fields are all plain parameters."""
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen or not params.init or "__slots__" in cls.__dict__:
        return False
    made_by_dataclasses = cls.__init__.__code__.co_filename == "<string>"
    fields = cls.__dict__["__dataclass_fields__"].values()
    plain = all(field.init and field._field_type is dataclasses._FIELD for field in fields)  # type: ignore[attr-defined]
    return made_by_dataclasses and plain and not hasattr(cls, "__post_init__")


def _constructor(cls: type[Any]) -> Callable[..., None]:
    """`__init__(self, a, b=default, ...)`, as `dataclasses` would have made it."""
    names: dict[str, Any] = {"_write": _write, "_missing": object()}
    parameters, values, keyword_only = ["self"], [], False
    for field in dataclasses.fields(cls):
        parameter, value = field.name, field.name
        if field.kw_only and not keyword_only:
            keyword_only = True
            parameters.append("*")
        if field.default is not dataclasses.MISSING:
            names[f"_default_{field.name}"] = field.default
            parameter = f"{field.name}=_default_{field.name}"
        elif field.default_factory is not dataclasses.MISSING:
            names[f"_make_{field.name}"] = field.default_factory
            parameter = f"{field.name}=_missing"
            value = f"_make_{field.name}() if {field.name} is _missing else {field.name}"
        parameters.append(parameter)
        values.append(f"{field.name!r}: {value}")
    body = f"_write(self, '__dict__', {{{', '.join(values)}}})" if values else "pass"
    exec(f"def __init__({', '.join(parameters)}):\n    {body}", names)
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    made.__annotations__ = dict(cls.__init__.__annotations__)
    return made


def replaced(obj: Any, /, **changes: Any) -> Any:
    """As `dataclasses.replace`."""
    cls = type(obj)
    if cls not in _quick or not changes.keys() <= obj.__dict__.keys():
        return dataclasses.replace(obj, **changes)
    copy = _new(cls)
    _write(copy, "__dict__", obj.__dict__ | changes)
    return copy
