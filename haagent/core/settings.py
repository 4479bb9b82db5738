"""The dynamic configuration of a cluster, parsed: contract 5.3 in, frozen `Settings` out. Pure.

Theory. What the DCS holds under `config` is any JSON; every agent of the cluster must read the same
numbers out of it, so parsing never fails. A value that cannot be read falls back to its default, one
below its minimum is raised, and timings that do not fit into the ttl are adjusted by the one formula of
contract 2.1. Each of these leaves a warning that names key and value.

What a person sends (PATCH, PUT, `bootstrap.dcs`) goes through `validate_dynamic` first: a mode that cannot
be read is refused there, because to take it for "off" would be to promise less than was meant.

Timings. `loop_wait + 2 * retry_timeout <= ttl` and every minimum hold for all `Settings` parsed here; the
lease keeper's interval, attempts and stop budget (hazard H7) are derived from them by `core.lease.timings`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from haagent.core import standby_cluster
from haagent.core.slot_config import (
    IGNORE_KEY,
    SLOT_KEYS,
    PermanentSlot,
    SlotMatcher,
    ignored_slots,
    permanent_slots,
)
from haagent.core.standby_cluster import StandbyCluster

Scalar = str | int | float | bool

_EMPTY: Mapping[str, Any] = MappingProxyType({})

#: Shortest ttl that leaves room for loop_wait 1 and two attempts of retry_timeout 1.
LOWEST_TTL_S = 3
LOWEST_LOOP_WAIT_S = 1
LOWEST_RETRY_TIMEOUT_S = 1
#: Patroni's minima, kept while one of its members is in the cluster so that all nodes agree.
PATRONI_TTL_S, PATRONI_LOOP_WAIT_S, PATRONI_RETRY_TIMEOUT_S = 20, 1, 3
#: Nothing in this file has a use for more; beyond it floats stop being exact.
_LARGEST = 2**53
#: Longest time that is one. Far below what threads can wait for.
LONGEST_S = 2**31 - 1
#: The same for what a socket may be waited for: poll(2) counts milliseconds in an int.
LONGEST_TIMING_S = LONGEST_S // 1000


# --- values with units --------------------------------------------------------------------------

_NUMBER = re.compile(r"^\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*$")
_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_TRUE, _FALSE = ("on", "true", "yes", "1"), ("off", "false", "no", "0")


def _split(value: object) -> tuple[float, str] | None:
    """Number and unit of a JSON scalar; None when it is neither, or not finite."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return (float(value), "") if abs(value) <= _LARGEST else None
    if isinstance(value, float):
        return (value, "") if math.isfinite(value) and abs(value) <= _LARGEST else None
    match = _NUMBER.match(value) if isinstance(value, str) else None
    if match is None:
        return None
    number = float(match[1])
    return (number, match[2]) if math.isfinite(number) and abs(number) <= _LARGEST else None


def parse_int(value: object) -> int | None:
    """A whole number without a unit (fractions are rounded), None when it is not one."""
    split = _split(value)
    return round(split[0]) if split is not None and not split[1] else None


def parse_duration_s(value: object, unit: str = "s") -> float | None:
    """Seconds of `30`, `'30min'`, `'500ms'`; a bare number counts in `unit`.

    None when unreadable or beyond LONGEST_S.
    """
    split = _split(value)
    factor = _DURATION_S.get(split[1] or unit) if split is not None else None
    if split is None or factor is None or abs(split[0] * factor) > LONGEST_S:
        return None
    return split[0] * factor


def parse_bytes(value: object, unit: str = "B") -> int | None:
    """Bytes of `1048576`, `'128MB'`, `'16kB'`; a bare number counts in `unit`. None when unreadable."""
    split = _split(value)
    factor = _BYTES.get(split[1] or unit) if split is not None else None
    return None if split is None or factor is None else round(split[0] * factor)


def parse_bool(value: object) -> bool | None:
    """on/off, true/false, yes/no, 1/0 in any case; None when it is none of them."""
    text = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
    return True if text in _TRUE else False if text in _FALSE else None


def is_scalar(value: object) -> bool:
    """True for what may be the value of a PostgreSQL parameter."""
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


# --- the record ---------------------------------------------------------------------------------


class SyncMode(Enum):
    """`synchronous_mode` (contract 6.1)."""

    OFF = "off"
    #: `on`: all of the standbys picked by priority have each acknowledged commit.
    PRIORITY = "on"
    #: Any so many of all standbys have it.
    QUORUM = "quorum"


def parse_sync_mode(value: object) -> SyncMode | None:
    """on, off or quorum; None when it is none of them."""
    if isinstance(value, str) and value.strip().lower() == SyncMode.QUORUM.value:
        return SyncMode.QUORUM
    flag = parse_bool(value)
    return None if flag is None else SyncMode.PRIORITY if flag else SyncMode.OFF


@dataclass(frozen=True)
class Settings:
    """Dynamic configuration in force (contract 5.3). Times in seconds, sizes in bytes."""

    ttl_s: float = 30
    loop_wait_s: float = 10
    retry_timeout_s: float = 10
    maximum_lag_on_failover_bytes: int = 1048576
    check_timeline: bool = False
    #: Crash recovery may take this long before the primary fails over; 0 = at once.
    primary_start_timeout_s: float = 300
    #: 0 = off.
    primary_stop_timeout_s: float = 0
    primary_race_backoff_s: float = 0
    synchronous_mode: SyncMode = SyncMode.OFF
    #: Commits wait while there is no synchronous standby, instead of going on without one.
    synchronous_mode_strict: bool = False
    synchronous_node_count: int = 1
    #: A standby further behind than this is not waited for; below 1 = no limit.
    maximum_lag_on_syncnode_bytes: int = -1
    #: Rows of `history` to keep; 0 = all.
    max_timelines_history: int = 0
    member_slots_ttl_s: float = 1800
    pause: bool = False
    #: The primary goes on without the DCS while every member promises not to take its place.
    failsafe_mode: bool = False
    use_slots: bool = True
    #: Slots that are kept whoever leads, and those that are somebody else's (contract 6.3).
    permanent_slots: Mapping[str, PermanentSlot] = field(default_factory=lambda: _EMPTY)
    ignore_slots: tuple[SlotMatcher, ...] = ()
    #: Part of these two could not be read: no slot is called unknown then.
    slots_unclear: bool = False
    use_pg_rewind: bool = False
    remove_data_directory_on_rewind_failure: bool = False
    remove_data_directory_on_diverged_timelines: bool = False
    #: GUCs of `postgresql.parameters`.
    parameters: Mapping[str, Scalar] = field(default_factory=lambda: _EMPTY)
    #: The `postgresql` section as it stands in the DCS.
    postgresql: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    #: The cluster follows another one (contract 6.7); None: it does not.
    standby_cluster: StandbyCluster | None = None
    #: Safety keys that are switched on but not built here: this member must not promise them.
    unsupported: tuple[str, ...] = ()

    @classmethod
    def default(cls) -> Settings:
        """What holds when the DCS has no configuration and there is none to bootstrap with."""
        return cls()


@dataclass(frozen=True)
class Problem:
    """One refused value: where, what, and what would be allowed."""

    key: str
    value: object
    allowed: str

    def __str__(self) -> str:
        """`postgresql.listen 'x' must be …`; a problem without a value has "" there."""
        value = f" {show(self.value)}" if self.value != "" else ""
        return f"{self.key}{value} {self.allowed}"


def show(value: object) -> str:
    """`value` as one short line."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) <= _LARGEST else "a number of that size"
    text = repr(value) if isinstance(value, (str, float)) or value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


# --- parsing ------------------------------------------------------------------------------------


class _Reader:
    """Reads one mapping key by key and notes what it had to correct."""

    def __init__(self, data: Mapping[str, Any], warnings: list[str], prefix: str = "") -> None:
        self._data, self._warnings, self._prefix = data, warnings, prefix

    def _fallback(self, key: str, default: object, expected: str) -> None:
        value = show(self._data[key])
        self._warnings.append(f"{self._prefix}{key}: {value} is not {expected}: using {show(default)}")

    def whole(
        self, key: str, default: int, minimum: int, unit: str | None = None, maximum: int = LONGEST_S
    ) -> int:
        """A whole number not below `minimum`; with `unit`, seconds that may carry one."""
        if key not in self._data:
            return default
        seconds = parse_duration_s(self._data[key], unit) if unit else None
        number = (None if seconds is None else round(seconds)) if unit else parse_int(self._data[key])
        if number is None:
            self._fallback(key, default, "a number of seconds" if unit else "a whole number")
            return default
        if number > maximum:
            self._fallback(key, default, f"a number up to {maximum}")
            return default
        return self.raised(key, number, minimum)

    def raised(self, key: str, number: int, minimum: int) -> int:
        if number >= minimum:
            return number
        self._warnings.append(f"{self._prefix}{key}: {number} is below the minimum: using {minimum}")
        return minimum

    def flag(self, key: str, default: bool) -> bool:
        if self._data.get(key) is None:
            return default
        value = parse_bool(self._data[key])
        if value is None:
            self._fallback(key, default, "on or off")
        return default if value is None else value

    def sync_mode(self, key: str) -> SyncMode:
        if self._data.get(key) is None:
            return SyncMode.OFF
        value = parse_sync_mode(self._data[key])
        if value is None:
            self._fallback(key, SyncMode.OFF.value, "on, off or quorum")
        return value or SyncMode.OFF

    def section(self, key: str) -> Mapping[str, Any]:
        value = self._data.get(key)
        if isinstance(value, Mapping):
            return value
        if value is not None:
            self._fallback(key, "nothing", "a mapping")
        return _EMPTY

    def first_of(self, key: str, old_key: str) -> str:
        """`key`, unless only its name of former releases is there."""
        return old_key if key not in self._data and old_key in self._data else key


def parse_settings(
    data: Mapping[str, Any], minimum_ttl_s: float, patroni_in_cluster: bool
) -> tuple[Settings, tuple[str, ...]]:
    """Settings in force for the `config` key `data`, and one warning per correction. Never raises.

    `minimum_ttl_s` is what the backend can keep (`Dcs.minimum_ttl_s`).
    """
    warnings: list[str] = []
    top = _Reader(data, warnings)
    postgresql = top.section("postgresql")
    inner = _Reader(postgresql, warnings, "postgresql.")
    timings = _timings(top, _minima(minimum_ttl_s, patroni_in_cluster), warnings)
    wrong_slots = _slot_problems(data)
    warnings.extend(f"{problem}: ignored" for problem in wrong_slots)
    followed, _ = standby_cluster.parse(data.get("standby_cluster"))
    settings = Settings(
        ttl_s=timings[0],
        loop_wait_s=timings[1],
        retry_timeout_s=timings[2],
        maximum_lag_on_failover_bytes=top.whole("maximum_lag_on_failover", 1048576, 0, maximum=_LARGEST),
        check_timeline=top.flag("check_timeline", False),
        primary_start_timeout_s=top.whole(
            top.first_of("primary_start_timeout", "master_start_timeout"), 300, 0
        ),
        primary_stop_timeout_s=top.whole(top.first_of("primary_stop_timeout", "master_stop_timeout"), 0, 0),
        primary_race_backoff_s=top.whole("primary_race_backoff", 0, 0),
        synchronous_mode=_off_in(followed, top.sync_mode("synchronous_mode")),
        synchronous_mode_strict=top.flag("synchronous_mode_strict", False),
        synchronous_node_count=top.whole("synchronous_node_count", 1, 1),
        maximum_lag_on_syncnode_bytes=top.whole("maximum_lag_on_syncnode", -1, -1, maximum=_LARGEST),
        max_timelines_history=top.whole("max_timelines_history", 0, 0),
        member_slots_ttl_s=top.whole("member_slots_ttl", 1800, 0, unit="s"),
        pause=top.flag("pause", False),
        failsafe_mode=top.flag("failsafe_mode", False),
        use_slots=inner.flag("use_slots", True),
        permanent_slots=MappingProxyType(permanent_slots(data)[0]),
        ignore_slots=ignored_slots(data)[0],
        slots_unclear=bool(wrong_slots),
        use_pg_rewind=inner.flag("use_pg_rewind", False),
        remove_data_directory_on_rewind_failure=inner.flag("remove_data_directory_on_rewind_failure", False),
        remove_data_directory_on_diverged_timelines=inner.flag(
            "remove_data_directory_on_diverged_timelines", False
        ),
        parameters=_parameters(inner.section("parameters"), warnings),
        postgresql=MappingProxyType(dict(postgresql)),
        standby_cluster=followed,
        unsupported=tuple(problem.key for problem in _no_section(data)),
    )
    warnings.extend(f"{problem}: ignored" for problem in _standby_cluster_problems(data))
    return settings, tuple(warnings)


def _slot_problems(data: Mapping[str, Any]) -> list[Problem]:
    return [Problem(*said) for said in (*permanent_slots(data)[1], *ignored_slots(data)[1])]


def _minima(minimum_ttl_s: float, patroni_in_cluster: bool) -> tuple[int, int, int]:
    ttl_s = max(LOWEST_TTL_S, math.ceil(minimum_ttl_s))
    if patroni_in_cluster:
        return max(ttl_s, PATRONI_TTL_S), PATRONI_LOOP_WAIT_S, PATRONI_RETRY_TIMEOUT_S
    return ttl_s, LOWEST_LOOP_WAIT_S, LOWEST_RETRY_TIMEOUT_S


def _timings(top: _Reader, minima: tuple[int, int, int], warnings: list[str]) -> tuple[int, int, int]:
    """ttl, loop_wait, retry_timeout: raised to their minima, then made to fit (contract 2.1)."""
    ttl = top.whole("ttl", 30, minima[0], maximum=LONGEST_TIMING_S)
    loop_wait = top.whole("loop_wait", 10, minima[1], maximum=LONGEST_TIMING_S)
    retry = top.whole("retry_timeout", 10, minima[2], maximum=LONGEST_TIMING_S)
    if loop_wait + 2 * retry <= ttl:
        return ttl, loop_wait, retry
    asked = f"loop_wait {loop_wait} + 2 * retry_timeout {retry} > ttl {ttl}"
    if LOWEST_LOOP_WAIT_S + 2 * retry > ttl:
        loop_wait, retry = LOWEST_LOOP_WAIT_S, (ttl - LOWEST_LOOP_WAIT_S) // 2
    else:
        loop_wait = ttl - 2 * retry
    warnings.append(f"{asked}: using loop_wait {loop_wait}, retry_timeout {retry}")
    return ttl, loop_wait, retry


def _parameters(data: Mapping[str, Any], warnings: list[str]) -> Mapping[str, Scalar]:
    parameters: dict[str, Scalar] = {}
    for name, value in data.items():
        if is_scalar(value):
            parameters[str(name)] = value
        elif value is not None:
            warnings.append(f"postgresql.parameters.{name}: {show(value)} is not a single value: ignored")
    return MappingProxyType(parameters)


# --- what people send ---------------------------------------------------------------------------

_TIMING_KEYS = ("ttl", "loop_wait", "retry_timeout")
#: Keys this agent acts on.
KNOWN_DYNAMIC = (
    *_TIMING_KEYS, "maximum_lag_on_failover", "check_timeline", "pause", "postgresql", "primary_race_backoff",
    "primary_start_timeout", "master_start_timeout", "primary_stop_timeout", "master_stop_timeout",
    "max_timelines_history", "member_slots_ttl", "synchronous_mode", "synchronous_mode_strict",
    "synchronous_node_count", "maximum_lag_on_syncnode", "failsafe_mode", "standby_cluster", *SLOT_KEYS,
    IGNORE_KEY,
)  # fmt: skip


def _unreadable_modes(data: Mapping[str, Any]) -> list[Problem]:
    """What is read as "off" although somebody meant to promise something is refused."""
    kinds: tuple[tuple[str, Callable[[object], object], str], ...] = (
        ("synchronous_mode", parse_sync_mode, "must be on, off or quorum"),
        ("synchronous_mode_strict", parse_bool, "must be on or off"),
        ("failsafe_mode", parse_bool, "must be on or off"),
    )
    return [
        Problem(key, data[key], allowed)
        for key, parse, allowed in kinds
        if data.get(key) is not None and parse(data[key]) is None
    ]


def _off_in(followed: StandbyCluster | None, mode: SyncMode) -> SyncMode:
    """Nothing is committed in a standby cluster (contract 6.1)."""
    return mode if followed is None else SyncMode.OFF


def _standby_cluster_problems(data: Mapping[str, Any]) -> list[Problem]:
    _, faults = standby_cluster.parse(data.get("standby_cluster"))
    return [
        Problem(f"standby_cluster.{key}" if key else "standby_cluster", value, allowed)
        for key, value, allowed in faults
    ]


def _no_section(data: Mapping[str, Any]) -> list[Problem]:
    """Whether this is meant to be a standby cluster cannot be told: nobody is promoted meanwhile."""
    return [problem for problem in _standby_cluster_problems(data) if problem.key == "standby_cluster"]


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name that `name` most likely was meant to be; None when none is close."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.7)
    return found[0] if found else None


def unknown_key(key: str, name: object, known: Iterable[str]) -> str:
    """The warning for an unknown key; `key` is its full path, `name` its last part."""
    hint = nearest(name, known)
    return f"{key}: unknown key, ignored" + (f" (did you mean {hint}?)" if hint else "")


def validate_dynamic(
    data: Mapping[str, Any], minimum_ttl_s: float, timings_must_fit: bool = False
) -> tuple[list[Problem], list[str]]:
    """Judge a dynamic configuration somebody wants to set: (refusals, warnings). Never raises.

    `timings_must_fit`: a local file whose timings break the rules is refused; what comes through the
    DCS is adjusted like every agent does, with a warning.
    """
    wrong_values = _slot_problems(data) + _standby_cluster_problems(data)
    problems = _unreadable_modes(data) + wrong_values
    settings, parse_warnings = parse_settings(data, minimum_ttl_s, patroni_in_cluster=False)
    said = {str(problem) for problem in problems} | {f"{problem}: ignored" for problem in wrong_values}
    warnings = [w for w in parse_warnings if w not in said]
    timing_problems = _timing_problems(data, settings, minimum_ttl_s) if timings_must_fit else []
    if timing_problems:
        warnings = [w for w in warnings if not w.startswith(_TIMING_KEYS)]
    return problems + timing_problems, warnings + _unknown_dynamic(data)


def _unknown_dynamic(data: Mapping[str, Any]) -> list[str]:
    known = KNOWN_DYNAMIC
    return [
        *(unknown_key(str(key), key, known) for key in data if key not in known),
        *(
            unknown_key(f"standby_cluster.{name}", name, standby_cluster.KNOWN)
            for name in standby_cluster.unknown(data.get("standby_cluster"))
        ),
    ]


def _timing_problems(data: Mapping[str, Any], settings: Settings, minimum_ttl_s: float) -> list[Problem]:
    """The timings of a local file that would not be taken as they stand."""
    minima = dict(zip(_TIMING_KEYS, _minima(minimum_ttl_s, False), strict=True))
    problems = []
    for key, minimum in minima.items():
        number = parse_int(data[key]) if key in data else minimum
        if number is None or not minimum <= number <= LONGEST_TIMING_S:
            problems.append(Problem(key, data[key], f"must be a whole number of seconds, {minimum} or more"))
    if not problems:
        ttl, loop_wait, retry = (
            parse_int(data.get(k, d)) for k, d in zip(_TIMING_KEYS, (30, 10, 10), strict=True)
        )
        if (ttl, loop_wait, retry) != (settings.ttl_s, settings.loop_wait_s, settings.retry_timeout_s):
            problems.append(
                Problem("ttl", ttl, f"must be at least loop_wait {loop_wait} + 2 * retry_timeout {retry}")
            )
    return problems
