"""Server parameters: which exist, which the agent protects, and what a standby may not start below.

The knowledge comes from the server's own binary (`postgres --describe-config`), never from tables written
by hand. Every function returns its warnings as values; the caller logs them.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from postgres_ctl.api import run_tool, tool
from postgres_ctl.errors import ToolFailed
from postgres_ctl.facts import ControlData

DESCRIBE_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Guc:
    """One line of `postgres --describe-config`. Bounds only for numbers, in the parameter's own unit."""

    name: str
    context: str
    type: str
    minimum: float | None
    maximum: float | None


def describe_gucs(bin_dir: str, program: str = "postgres") -> Mapping[str, Guc]:
    """All parameters that belong into a configuration file; cached until the binary changes.

    Raises ToolFailed.
    """
    binary = tool(bin_dir, program)
    return _describe(binary, _version(binary))


@functools.lru_cache(maxsize=4)
def _describe(binary: str, version: tuple[int, int]) -> Mapping[str, Guc]:
    output = run_tool([binary, "--describe-config"], DESCRIBE_DEADLINE_S, keep_stdout=True).stdout
    found = {}
    for line in output.splitlines():
        fields = line.split("\t")
        if len(fields) >= 7:
            name, context, _, kind, _, low, high = fields[:7]
            found[name.lower()] = Guc(name, context, kind, _number(low), _number(high))
    return MappingProxyType(found)


def guc_exists(bin_dir: str, name: str, program: str = "postgres") -> bool:
    """Does the server know a parameter that --describe-config leaves out (developer options)?"""
    binary = tool(bin_dir, program)
    return _exists(binary, _version(binary), name)


@functools.lru_cache(maxsize=256)
def _exists(binary: str, version: tuple[int, int], name: str) -> bool:
    argv = [binary, "-D", "/", "--config-file=/dev/null", "-C", name]
    try:
        return run_tool(argv, DESCRIBE_DEADLINE_S, check=False).returncode == 0
    except ToolFailed:
        return False


def _version(binary: str) -> tuple[int, int]:
    try:
        found = os.stat(binary)
    except OSError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


# --- parameters from the configuration ------------------------------------------------------------

_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*$")
#: PostgreSQL takes any unambiguous prefix; the YAML loader gives True and False as text already.
_BOOLEANS = frozenset({"on", "off", "true", "false", "yes", "no", "1", "0", "t", "f", "y", "n"})


def check_parameters(
    parameters: Mapping[str, str],
    known: Mapping[str, Guc],
    exists: Callable[[str], bool],
    section: str = "parameters",
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Drop unknown names and impossible values, clamp numbers. Returns (parameters, warnings).

    Names with a dot belong to extensions and pass. `exists` is asked for names that are not in `known`;
    `section` of `postgresql` is where the parameters stand, for the warnings.
    """
    kept: dict[str, str] = {}
    warnings: list[str] = []
    for name, value in parameters.items():
        guc = known.get(name.lower())
        if not _NAME.match(name) or (guc is None and "." not in name and not exists(name)):
            warnings.append(f"postgresql.{section}.{name}: unknown parameter, ignored")
            continue
        checked, warning = _check_value(guc, value) if guc else (value, None)
        if warning:
            warnings.append(f"postgresql.{section}.{name}: {warning}")
        if checked is not None:
            kept[name] = checked
    return kept, tuple(warnings)


def _check_value(guc: Guc, value: str) -> tuple[str | None, str | None]:
    """(value to use or None, warning or None)."""
    if guc.type == "BOOLEAN" and value.lower() not in _BOOLEANS:
        return None, f"{value!r} is not a boolean, ignored"
    number = _number(value)
    if guc.type not in ("INTEGER", "REAL") or number is None:
        # Values with a unit are left to the server: --describe-config does not tell the base unit.
        return value, None
    if guc.minimum is not None and number < guc.minimum:
        return f"{guc.minimum:g}" if guc.type == "REAL" else str(
            int(guc.minimum)
        ), f"{value} raised to the minimum"
    if guc.maximum is not None and number > guc.maximum:
        return f"{guc.maximum:g}" if guc.type == "REAL" else str(
            int(guc.maximum)
        ), f"{value} cut to the maximum"
    return value, None


# --- protected parameters (contract 5.4) ----------------------------------------------------------


def _at_least(minimum: int) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        try:
            return str(int(value)) if int(value) >= minimum else None
        except ValueError:
            return None

    return check


def _boolean(value: str) -> str | None:
    if value.lower() in ("on", "true", "yes", "1"):
        return "on"
    return "off" if value.lower() in ("off", "false", "no", "0") else None


def _only_on(value: str) -> str | None:
    return "on" if _boolean(value) == "on" else None


def _wal_level(value: str) -> str | None:
    """`hot_standby` is the old name of `replica`."""
    if value.lower() in ("hot_standby", "replica"):
        return "replica"
    return "logical" if value.lower() == "logical" else None


_MEBIBYTES = {"kb": 1 / 1024, "mb": 1, "gb": 1024, "tb": 1024 * 1024, "b": 1 / (1024 * 1024), "": 1}


def _keep_size(value: str) -> str | None:
    """At least 16MB; a number without unit counts megabytes, as the server does."""
    match = re.match(r"^(\d+(?:\.\d+)?)\s*([kKmMgGtT]?[bB])?$", value.strip())
    if match is None or float(match[1]) * _MEBIBYTES[(match[2] or "").lower()] < 16:
        return None
    return value.strip() if match[2] else f"{value.strip()}MB"


#: name -> (default, check: the value to use, or None when it is not allowed)
PROTECTED: Mapping[str, tuple[str, Callable[[str], str | None]]] = MappingProxyType(
    {
        "max_connections": ("100", _at_least(25)),
        "max_worker_processes": ("8", _at_least(2)),
        "max_prepared_transactions": ("0", _at_least(0)),
        "max_locks_per_transaction": ("64", _at_least(32)),
        "max_wal_senders": ("10", _at_least(3)),
        "max_replication_slots": ("10", _at_least(4)),
        "wal_level": ("replica", _wal_level),
        "track_commit_timestamp": ("off", _boolean),
        "wal_log_hints": ("on", _boolean),
        "hot_standby": ("on", _only_on),
        "wal_keep_size": ("128MB", _keep_size),
    }
)
#: Set by the agent from `listen` and `scope`; nobody else may.
AGENT_OWNED = frozenset({"listen_addresses", "port", "cluster_name"})
#: Protected in older versions only; meaningless since 13.
OBSOLETE = frozenset({"wal_keep_segments"})
_STANDBY_MINIMA = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
)
_SEGMENT_MIB = 16


def protected_parameters(dynamic: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Values of all protected parameters from the dynamic configuration only. Returns (values, warnings).

    `wal_keep_segments` is converted when `wal_keep_size` is not given.
    """
    given = dict(dynamic)
    segments = _at_least(1)(given.get("wal_keep_segments", ""))
    if segments and "wal_keep_size" not in given:
        given["wal_keep_size"] = f"{int(segments) * _SEGMENT_MIB}MB"
    values: dict[str, str] = {}
    warnings: list[str] = []
    for name, (default, check) in PROTECTED.items():
        value = check(given[name]) if name in given else default
        if value is None:
            warnings.append(f"postgresql.parameters.{name}: {given[name]!r} is not allowed, using {default}")
        values[name] = default if value is None else value
    return values, tuple(warnings)


def raise_to_standby_minima(values: Mapping[str, str], control: ControlData) -> dict[str, str]:
    """`values` such that a standby of this data directory can start: never below pg_control's."""
    minima = {name: int(getattr(control, name)) for name in _STANDBY_MINIMA}
    return {
        name: str(max(int(value), minima[name])) if name in minima else value
        for name, value in values.items()
    }
