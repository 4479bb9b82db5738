"""Where the local configuration comes from: YAML files and environment variables, as one plain tree.

Precedence (contract 5.1): environment variables win over the file; the files of a directory are merged in
name order, later ones win, null deletes. The environment is read once, when the process starts, and what
was read is taken out of it, so that secrets do not reach PostgreSQL or any hook. `HAAGENT_X` wins over
`PATRONI_X`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from haagent.config import values as v
from haagent.config.dynamic import merge_patch
from haagent.config.schema import BACKENDS_LATER, BACKENDS_REFUSED, KEYS, Key
from haagent.config.types import ConfigErrors
from haagent.core.settings import Problem, nearest

PREFIXES = ("PATRONI_", "HAAGENT_")  # the later one wins
#: Deeper is a mistake (an alias that contains itself).
_DEEPEST = 30
#: PyYAML quotes the text itself in these, which may be a password.
_QUOTING = ("found undefined alias", "found duplicate anchor", "could not determine a constructor")


@dataclass
class Tree:
    """A configuration as read: plain dicts, and where each value stands."""

    data: dict[str, Any] = field(default_factory=dict)
    #: Path -> "haagent.yml line 12" or the name of the variable.
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def problem(name: str, allowed: str) -> ConfigErrors:
    return ConfigErrors((Problem(name, "", allowed),))


# --- YAML ---------------------------------------------------------------------------------------


def read_path(path: str) -> Tree:
    """A file, or every *.yml and *.yaml of a directory. Raises ConfigErrors."""
    if not os.path.isdir(path):
        return read_yaml(_read(path), os.path.basename(path))
    names = sorted(n for n in os.listdir(path) if n.endswith((".yml", ".yaml")))
    if not names:
        raise problem(path, "has no *.yml file")
    merged = Tree()
    for name in names:
        tree = read_yaml(_read(os.path.join(path, name)), name)
        merged.data = merge_patch(merged.data, tree.data)
        merged.origins |= tree.origins
        merged.problems += tree.problems
    return merged


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode("utf-8")
    except OSError as e:
        raise problem(path, f"cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise problem(path, f"is not UTF-8 text: byte {e.start}") from None


def read_yaml(text: str, name: str) -> Tree:
    """One document. Duplicate keys are problems. Raises ConfigErrors for what is not a YAML mapping."""
    tree = Tree()
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            _look_at(node, "", name, tree, 0)
        data = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as e:
        raise problem(name, _syntax_error(e)) from None
    except (RecursionError, ValueError) as e:
        raise problem(name, f"is not usable YAML: {type(e).__name__}") from None
    if not isinstance(data, Mapping):
        raise problem(name, "is empty" if data is None else "is not a mapping of keys")
    tree.data = _plain(data)
    return tree


def _syntax_error(error: yaml.YAMLError) -> str:
    """`YAML syntax: …, line 3, column 5`, without quoting the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = str(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable")
    for quoting in _QUOTING:
        what = quoting if what.startswith(quoting) else what
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"YAML syntax: {what}{where}"


def _look_at(node: yaml.Node, path: str, name: str, tree: Tree, depth: int) -> None:
    """Note the line of every key, and every key that stands twice in one mapping."""
    if depth > _DEEPEST:
        raise problem(name, f"is nested too deep, line {node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _look_at(item, path, name, tree, depth + 1)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else ""
        line = key_node.start_mark.line + 1
        full = f"{path}.{key}" if path else key
        if key in seen and key != "<<":
            allowed = f"stands twice: line {seen[key]} and line {line} of {name}"
            tree.problems.append(Problem(full, "", allowed))
        seen.setdefault(key, line)
        tree.origins.setdefault(full, f"{name} line {line}")
        _look_at(value_node, full, name, tree, depth + 1)


def _plain(value: Any) -> Any:
    """Text keys everywhere; `on:` as a key is text, too."""
    if isinstance(value, Mapping):
        return {_key(k): _plain(inner) for k, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _key(key: object) -> str:
    return ("on" if key else "off") if isinstance(key, bool) else str(key)


# --- environment --------------------------------------------------------------------------------

_RENAMED = (
    (re.compile(r"^postgresql\.authentication\.(\w+)\."), r"\1_"),
    (re.compile(r"^(restapi|ctl)\.authentication\."), r"\1_"),
    (re.compile(r"^postgresql\.bin_name\."), "postgresql_bin_"),
)
#: Names of former releases.
_OLD_NAMES = {"LOGLEVEL": "log.level", "LOGFORMAT": "log.format", "LOG_DATEFMT": "log.dateformat"}
#: Sections whose keys cannot be set by variables.
_NO_VARIABLES = ("bootstrap", "watchdog", "tags", "local")
_POSTGRESQL_VARIABLES = (
    "listen",
    "connect_address",
    "proxy_address",
    "config_dir",
    "data_dir",
    "pgpass",
    "bin_dir",
)


def variable(key: Key) -> str | None:
    """Name of the variable for `key` without its prefix; None when there is none."""
    top = key.path.split(".")[0]
    if top in _NO_VARIABLES or top in ("ttl", "loop_wait", "retry_timeout"):
        return None
    if key.section == "postgresql" and key.name not in _POSTGRESQL_VARIABLES:
        return None
    name = key.path
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name.replace(".", "_").upper()


VARIABLES: dict[str, str] = _OLD_NAMES | {
    name: key.path for key in KEYS.values() for name in [variable(key)] if name is not None
}


@dataclass(frozen=True)
class Environment:
    """What the environment said about the configuration, once. May hold secrets."""

    #: Path -> (text, name of the variable).
    values: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    #: A whole configuration as YAML; every other variable is ignored then.
    document: str | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    def overlay(self, tree: Tree) -> None:
        """Put the variables over what a file said."""
        tree.warnings += self.warnings
        for path, (text, name) in self.values.items():
            if _put(tree.data, path, _from_text(KEYS[path], text)):
                tree.origins[path] = name
            else:
                section = path.rpartition(".")[0]
                tree.problems.append(Problem(section, "", f"must be a mapping ({name} is set)"))


def take_environment(environ: MutableMapping[str, str]) -> Environment:
    """Read every variable that configures the agent, and remove it from `environ`."""
    found: dict[str, tuple[str, str]] = {}
    document: str | None = None
    warnings: list[str] = []
    for name, prefix, short in list(_ours(environ)):
        text = environ[name]
        if short == "CONFIGURATION":
            document = text.strip() or document
        elif short in VARIABLES:
            if text.strip():
                found[VARIABLES[short]] = (text, name)
        elif prefix == "PATRONI_" or short.split("_")[0] in ("RESTAPI", "POSTGRESQL", "ETCD3"):
            warnings += _unknown_variable(name, prefix, short)
        else:
            continue
        del environ[name]
    if document is not None:
        return Environment(document=document)
    return Environment(_complete(found), warnings=tuple(warnings))


def _ours(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """(name, prefix, rest), in the order in which later ones win."""
    for prefix in PREFIXES:
        for name in sorted(environ):
            if name.startswith(prefix):
                yield name, prefix, name.removeprefix(prefix)


def _unknown_variable(name: str, prefix: str, short: str) -> list[str]:
    section = short.split("_")[0].lower()
    if section in (*BACKENDS_LATER, *BACKENDS_REFUSED):
        return [f"{name}: the section {section} is not built: ignored"]
    hint = nearest(short, VARIABLES)
    return [f"{name}: unknown variable, ignored" + (f" (did you mean {prefix}{hint}?)" if hint else "")]


def _complete(found: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """etcd's login counts only beside another variable of the section (contract 5.7)."""
    login = {"etcd3.username", "etcd3.password"}
    if {path for path in found if path.startswith("etcd3.")} <= login:
        return {path: value for path, value in found.items() if path not in login}
    return found


def _from_text(key: Key, text: str) -> object:
    """What a file would have given for `text`: YAML lists, also without brackets when quoted (`'a:1','b:1'`),
    and mappings, `k: v` pairs; else the text."""
    if key.type not in (v.STRINGS, v.ENDPOINTS, v.TEXTS, v.SCALARS, v.ANY):
        return text
    wants_mapping = key.type in (v.TEXTS, v.SCALARS)
    source = "{" + text + "}" if wants_mapping and not text.lstrip().startswith("{") else text
    if key.type in (v.STRINGS, v.ENDPOINTS) and text.lstrip().startswith(("'", '"')):
        source = "[" + text + "]"
    try:
        parsed = yaml.safe_load(source)
    except (yaml.YAMLError, RecursionError, ValueError):
        return text
    if isinstance(parsed, list) or wants_mapping:
        return parsed
    return text


def _put(tree: dict[str, Any], path: str, value: object) -> bool:
    *parents, last = path.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if inner is None:
            inner = tree[parent] = {}
        if not isinstance(inner, dict):
            return False
        tree = inner
    tree[last] = value
    return True
