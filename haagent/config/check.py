"""A tree of raw values against the table of keys: typed values, every problem, every warning.

Nothing is raised and nothing is decided here about how values belong together; that is `load`'s part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from haagent.config import values as v
from haagent.config.schema import BACKENDS_LATER, BACKENDS_REFUSED, KEYS, SECTIONS, Key, Status, children
from haagent.config.sources import Tree
from haagent.core.settings import Problem, unknown_key

#: Shown for a secret, whatever it is.
MASK = "***"
#: What a generated file has where only people know the value.
FIXME = "#FIXME"
_LOGIN_IN_URL = re.compile(r"//[^/@\s]*@")


@dataclass
class Checked:
    """What the table made of a tree."""

    values: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    origins: Mapping[str, str] = field(default_factory=dict)
    #: Top-level names that have a value.
    tops: frozenset[str] = frozenset()
    #: Paths of sections that another source than the one looked at names as methods.
    methods: frozenset[str] = frozenset()

    def get(self, path: str) -> Any:
        """The value, or the key's default in the same typed form."""
        if path in self.values:
            return self.values[path]
        key = KEYS[path]
        return None if key.default is None else key.type.parse(key.default)

    def refuse(self, path: str, value: object, allowed: str) -> None:
        """Note a problem; a secret's value is masked, and the line or variable is named."""
        origin = self.origins.get(path)
        key = KEYS.get(path)
        shown = MASK if key is not None and key.secret and value != "" else value
        if isinstance(shown, str):
            shown = without_login(shown)
        self.problems.append(Problem(path, shown, allowed + (f" ({origin})" if origin else "")))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def without_login(text: str) -> str:
    """`text` with the login of every URL in it masked."""
    return _LOGIN_IN_URL.sub(f"//{MASK}@", text)


def check(tree: Tree) -> Checked:
    """Every value of `tree` that the table knows, typed."""
    data = {name: value for name, value in tree.data.items() if value is not None}
    checked = Checked(
        problems=list(tree.problems),
        warnings=list(tree.warnings),
        origins=tree.origins,
        tops=frozenset(data),
    )
    check_section(data, "", checked)
    for path, key in KEYS.items():
        if key.required and path not in checked.values:
            _missing(key, checked)
    return checked


def _missing(key: Key, checked: Checked) -> None:
    """A required key that is not there; one that is there with a bad value is a problem already."""
    told = (key.path, *(p for p in SECTIONS if p and key.path.startswith(p + ".")))
    if not any(problem.key in told for problem in checked.problems):
        checked.refuse(key.path, "", f"is missing: must be {key.type.allowed}")


def check_section(data: Mapping[str, Any], section: str, checked: Checked) -> None:
    """Look at everything in `section` ("" = top) and below."""
    methods = _methods(data, section)
    for name, value in data.items():
        path = f"{section}.{name}" if section else name
        if value is None:
            continue
        if path in KEYS:
            _check_value(KEYS[path], value, checked)
        elif path in SECTIONS:
            if isinstance(value, Mapping):
                check_section(value, path, checked)
            else:
                checked.refuse(path, "", "must be a mapping")
        elif name in methods or path in checked.methods or _is_method(section, value):
            _note_method(path, value, checked)
        elif section or name not in (*BACKENDS_LATER, *BACKENDS_REFUSED):
            checked.warn(unknown_key(path, name, children(section)))


def _note_method(path: str, value: object, checked: Checked) -> None:
    """The section of a method: what is in it is judged by `methods`, once it is known to be used."""
    if isinstance(value, Mapping):
        checked.values[path] = {str(k): inner for k, inner in value.items() if inner is not None}
    else:
        checked.refuse(path, "", "must be a mapping")


def _is_method(section: str, value: object) -> bool:
    """Perhaps only a standby cluster uses it, whose section stands in the store."""
    return section == "postgresql" and isinstance(value, Mapping) and "command" in value


def method_paths(section: str, *named: object) -> frozenset[str]:
    """Paths of the sections in `section` that values of `create_replica_methods` or `method` name."""
    return frozenset(
        f"{section}.{name}"
        for value in named
        for name in (v.strings(value) if isinstance(value, str | list | tuple) else ())
    )


def _methods(data: Mapping[str, Any], section: str) -> frozenset[str]:
    """Names of sections that people have chosen: the value of a key says so."""
    keys = {"postgresql": ("create_replica_methods", "create_replica_method"), "bootstrap": ("method",)}
    named = [data.get(key) for key in keys.get(section, ())]
    try:
        return frozenset(path.partition(".")[2] for path in method_paths(section, *named))
    except ValueError:
        return frozenset()  # refused as a value


def _check_value(key: Key, value: object, checked: Checked) -> None:
    if isinstance(value, (str, list)) and FIXME in str(value):
        checked.warn(f"{key.path}: still has {FIXME}: the right value must be put there")
    try:
        parsed = key.type.parse(value)
    except (ValueError, TypeError, RecursionError, OverflowError):
        checked.refuse(key.path, value, f"must be {key.type.allowed}")
        return
    unbuilt = key.status is Status.REFUSED and not _in(parsed, key.harmless)
    if unbuilt or _in(parsed, key.refused):
        checked.refuse(key.path, value, key.hint)
    elif key.status is Status.LATER and not _in(parsed, key.harmless):
        special = key.hint != Key.hint
        checked.warn(f"{key.path}: {key.hint if special else 'not supported yet: ignored'}")
    checked.values[key.path] = parsed


def _in(value: object, values: tuple[object, ...]) -> bool:
    return any(type(value) is type(other) and value == other for other in values)


def allowed_options(checked: Checked, path: str, forbidden: Collection[str]) -> tuple[str, ...]:
    """Arguments of `path` without those only the agent may set (contract 5.6, 6.4); each is a problem."""
    allowed = []
    for argument in checked.get(path):
        name, _, value = argument.removeprefix("--").partition("=")
        if name in forbidden and not (name == "compress" and value.startswith("server-")):
            checked.refuse(path, name, "is an option only the agent may set")
        else:
            allowed.append(argument)
    return tuple(allowed)
