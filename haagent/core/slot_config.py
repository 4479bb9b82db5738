"""`slots` and `ignore_slots` of the dynamic configuration: permanent slots, and slots of others. Pure.

Contract 6.3. What cannot be understood is told as (key, value, what is allowed) and left out. Whoever uses
the rest must know that something is missing: a slot whose definition is unreadable must not be dropped as
unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from postgres_ctl.facts import Slot

PHYSICAL, LOGICAL = "physical", "logical"
TYPES = (PHYSICAL, LOGICAL)
CLUSTER_TYPES = ("primary", "standby")
#: Names of the section of permanent slots; the first that is not empty counts.
SLOT_KEYS = ("permanent_replication_slots", "permanent_slots", "slots")
IGNORE_KEY = "ignore_slots"

_NAME = re.compile(r"[a-z0-9_]{1,63}")
_MATCHED = ("name", "type", "database", "plugin")

#: Key, value, and what would be allowed.
Complaint = tuple[str, object, str]


@dataclass(frozen=True)
class PermanentSlot:
    """One slot that is kept whoever leads. `database` and `plugin` only of a logical one."""

    name: str
    type: str = PHYSICAL
    database: str | None = None
    plugin: str | None = None
    #: "primary": only while this is no standby cluster, "standby": only while it is one; None: always.
    cluster_type: str | None = None

    def is_like(self, slot: Slot) -> bool:
        """The slot that is there can serve as this one."""
        if self.type == PHYSICAL or slot.type == PHYSICAL:
            return self.type == slot.type
        return (self.database, self.plugin) == (slot.database, slot.plugin)


@dataclass(frozen=True)
class SlotMatcher:
    """Slots made and dropped by somebody else: all that is given has to be equal."""

    name: str | None = None
    type: str | None = None
    database: str | None = None
    plugin: str | None = None

    def matches(self, slot: Slot) -> bool:
        return all(getattr(self, part) in (None, getattr(slot, part)) for part in _MATCHED)


def permanent_slots(data: Mapping[str, Any]) -> tuple[dict[str, PermanentSlot], list[Complaint]]:
    """Permanent slots by name, and what of them could not be understood."""
    key = next((k for k in SLOT_KEYS if data.get(k)), None)
    if key is None:
        return {}, []
    section = data[key]
    if not isinstance(section, Mapping):
        return {}, [(key, section, "must be a mapping of slot names")]
    found, complaints = {}, list[Complaint]()
    for name, value in section.items():
        wrong = list(_wrong_slot(f"{key}.{_part(name)}", str(name), value))
        complaints += wrong
        if not wrong:
            found[str(name)] = _slot(str(name), value or {})
    return found, complaints


def _part(name: object) -> str:
    """Of a key, in one line however long it is."""
    text = str(name)
    return text if _NAME.fullmatch(text.lower()) else repr(text)[:70]


def _slot(name: str, value: Mapping[str, Any]) -> PermanentSlot:
    kind = value.get("type") or (LOGICAL if value.get("database") and value.get("plugin") else PHYSICAL)
    if kind == PHYSICAL:
        return PermanentSlot(name, cluster_type=value.get("cluster_type") or None)
    return PermanentSlot(name, kind, value["database"], value["plugin"], value.get("cluster_type") or None)


def _wrong_slot(key: str, name: str, value: object) -> Iterator[Complaint]:
    if not _NAME.fullmatch(name):
        yield key, "", "is no name of a slot: lower case letters, digits and _, 63 at most"
    if not value:
        return
    if not isinstance(value, Mapping):
        yield key, value, "must be a mapping with type, database, plugin, cluster_type"
        return
    kind = value.get("type")
    if kind is not None and kind not in TYPES:
        yield f"{key}.type", kind, "must be physical or logical"
    if kind == LOGICAL:
        yield from (
            (f"{key}.{part}", value.get(part), "must be a name: a logical slot needs database and plugin")
            for part in ("database", "plugin")
            if not (isinstance(value.get(part), str) and value[part])
        )
    elif kind is None:
        yield from (
            (f"{key}.{part}", value[part], "must be a name")
            for part in ("database", "plugin")
            if value.get(part) is not None and not isinstance(value[part], str)
        )
    cluster_type = value.get("cluster_type")
    if cluster_type is not None and cluster_type not in CLUSTER_TYPES:
        yield f"{key}.cluster_type", cluster_type, "must be primary or standby"


def ignored_slots(data: Mapping[str, Any]) -> tuple[tuple[SlotMatcher, ...], list[Complaint]]:
    """Matchers of slots that are left alone, and what of them could not be understood."""
    rows = data.get(IGNORE_KEY)
    if not rows:
        return (), []
    if not isinstance(rows, list):
        return (), [(IGNORE_KEY, rows, f"must be a list of mappings with {', '.join(_MATCHED)}")]
    found, complaints = [], list[Complaint]()
    for number, row in enumerate(rows):
        wrong = list(_wrong_matcher(f"{IGNORE_KEY}[{number}]", row))
        complaints += wrong
        if not wrong:
            found.append(SlotMatcher(**{part: row[part] for part in _MATCHED if row.get(part) is not None}))
    return tuple(found), complaints


def _wrong_matcher(key: str, row: object) -> Iterator[Complaint]:
    if not isinstance(row, Mapping) or not row:
        yield key, row, f"must be a mapping with any of {', '.join(_MATCHED)}"
        return
    for part, value in row.items():
        if part not in _MATCHED:
            yield f"{key}.{_part(part)}", value, f"is not known: a matcher has {', '.join(_MATCHED)}"
        elif value is not None and not isinstance(value, str):
            yield f"{key}.{part}", value, "must be a text"
    if row.get("type") is not None and row["type"] not in TYPES:
        yield f"{key}.type", row["type"], "must be physical or logical"
