"""Rule 4, synchronous modes, as checks over the truth. Part of the invariants; names are listed there.

Theory. `/sync` names who may be promoted: any q + 1 of its voters hold what was promised. So whoever lacks a
promised record is at most one of q voters; that is looked at when a record is acknowledged, and when `/sync`
comes to accept somebody it did not before. The arithmetic between `/sync` and what backends really wait by is
looked at whenever one of the two changes. And whoever is promoted has every promised record.

Nothing is promised while no mode is on, or while `/sync` is not a primary's own; nor what a failover by hand,
a disk that lost what it flushed, or somebody who writes nonsense there takes away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.replication import SyncRule
from tests.simulation.wal import Record

if TYPE_CHECKING:
    from tests.simulation.invariants import Invariants
    from tests.simulation.postgres import Server
    from tests.simulation.world import World

#: A changed setting has reached everybody, and what was decided before it is done, seconds.
SETTLED_S = 60.0
PLACEHOLDER = "__patroni_strict_sync_replica_placeholder__"
#: What was read before a change may be acted upon so long, seconds.
READ_S = 15.0


class Key(NamedTuple):
    """`/sync`, where it says something."""

    leader: str
    names: frozenset[str]
    quorum: int


def parse_key(text: str | None) -> Key | None:
    """None: absent, without a leader, or nonsense."""
    try:
        data = json.loads(text or "{}")
        leader, standbys, quorum = data["leader"], data["sync_standby"] or "", data["quorum"]
        names = [name for name in (leader, *standbys.split(",")) if name]
        return Key(leader.lower(), frozenset(name.lower() for name in names), int(quorum)) if leader else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def mode_of(data: dict[str, Any]) -> str:
    """off, on or quorum, as the configuration has it."""
    value = data.get("synchronous_mode")
    return "quorum" if value == "quorum" else "on" if value is True else "off"


class SyncRules:
    """`off_at` and `changed_at`: when the mode was last off, and when anything about it last changed."""

    def __init__(self, world: World, all_rules: Invariants) -> None:
        self.world, self.rules, self.engine = world, all_rules, world.engine
        self.mode, self.strict, self.count = "off", False, 1
        self.key: Key | None = None
        self.off_at = self.changed_at = self.lax_at = self.engine.now
        #: Promised records, oldest first, that nobody was excused of.
        self.promised: list[Record] = []
        #: Members whose disk lost what it had flushed, or all.
        self.lost: set[str] = set()

    # --- the store --------------------------------------------------------------------------------

    def config_changed(self, data: dict[str, Any]) -> None:
        now, mode, strict = self.engine.now, mode_of(data), data.get("synchronous_mode_strict") is True
        if (mode, strict) != (self.mode, self.strict):
            self.changed_at = now
        if self.mode == "off" or mode == "off":
            self.off_at = now
            self.promised.clear()
        if mode == "off" or not (strict and self.strict):
            self.lax_at = now
        self.mode, self.strict = mode, strict
        self.count = int(data.get("synchronous_node_count", 1))

    def key_changed(self) -> None:
        old, self.key = self.key, parse_key(self.world.store.raw_get("sync"))
        self.changed_at = self.engine.now
        if self.key is None:
            self.promised.clear()
            return
        if not (self._promises() and self._is_of_holder()):
            return
        tighter = old is not None and self.key.quorum - old.quorum >= len(self.key.names - old.names)
        if self.promised and not tighter and not self._excused():
            self._have_everything(self.promised[-1], "may be promoted now")
        self.look(self.world.server_of(self.key.leader))

    # --- servers ----------------------------------------------------------------------------------

    def look(self, server: Server | None) -> None:
        """What backends wait by, or `/sync`, has changed, or the server has become a primary."""
        key = self.key
        if server is None or server.in_recovery or server.gone or key is None or key.leader != server.member:
            return
        if self._promises() and self._is_of_holder() and not _fits(key, server.sessions.sync_in_force):
            text = f"{server.member} waits by {server.sessions.sync_in_force}, and /sync says {key}"
            self.rules.violated("rule4.sync-fits-the-setting", text)

    def acknowledged(self, server: Server, record: Record) -> None:
        key = self.key
        if not self._promises() or key is None or key.leader != server.member:
            return
        self._have_everything(record, "was acknowledged")
        others = [n for n in self.world.nodes.values() if n.name != server.member]
        strict = self.strict and self.engine.now > self.lax_at + SETTLED_S
        if strict and not any(n.host.dd.holds(record) for n in others):
            self.rules.violated("rule4.strict-waits", f"{server.member} acknowledged {record!r} alone")
        self.promised.append(record)

    def _have_everything(self, record: Record, what: str) -> None:
        key = self.key
        assert key is not None
        lacking = [name for name in sorted(key.names) if not self._holds(name, record)]
        if len(lacking) > key.quorum:
            who = f"{', '.join(lacking)} of {sorted(key.names)}, quorum {key.quorum}"
            text = f"{record!r} {what}, and {who}, lack it"
            self.rules.violated("rule4.named-have-everything", text)

    def _holds(self, name: str, record: Record) -> bool:
        node = self.world.nodes.get(name)
        return node is not None and (name in self.lost or node.host.dd.holds(record))

    def taken(self, name: str) -> None:
        """A standby took the key."""
        key, now = self.key, self.engine.now
        if (
            key is None
            or self.mode != "on"
            or key.quorum
            or self._excused()
            or now < self.changed_at + READ_S
        ):
            return
        if name not in key.names:
            self.rules.violated(
                "rule4.member-leads", f"{name} took the key, and /sync names {sorted(key.names)}"
            )

    def promoted(self, server: Server) -> None:
        promised, dd = self.promised, server.dd
        last = len(promised)
        while last and not dd.holds(promised[last - 1]):
            last -= 1
        lost = promised[last:]
        del promised[last:]
        if lost and self.mode != "off" and self.key is not None and not self._excused():
            text = f"{len(lost)} promised records are not on {server.member}, up to {lost[-1]!r}"
            self.rules.violated("rule4.promoted-has-everything", text)
        self.look(server)

    def not_named(self, primary: Server) -> str:
        """Which of a healthy cluster's standbys is missing in `/sync`; "" when none is."""
        if self.mode == "off":
            return ""
        if self.key is None or self.key.leader != primary.member:
            return f"/sync says {self.key}, and {primary.member} leads"
        direct = [link.standby.member for link in primary.walsenders]
        able = [n for n in map(self.world.node, direct) if n.agent_is_up and _may_be_sync(n.tags)]
        named = self.key.names - {primary.member}
        enough = len(named) >= min(self.count, len(able))
        return "" if enough else f"/sync says {self.key}, and {len(able)} standbys stream"

    def is_asked_for(self, name: str) -> bool:
        """A switchover to it makes sense."""
        return self.mode == "off" or self.key is None or name in self.key.names - {self.key.leader}

    def blocks(self, name: str) -> bool:
        """Its WAL may hold up who wants to lead: what nobody in `/sync` has was never acknowledged, nor what
        only the last leader has."""
        if self.mode == "off" or self.key is None or self.engine.now < self.changed_at + READ_S:
            return self.mode == "off" and self.engine.now >= self.changed_at + READ_S
        return name in self.key.names and name != self.key.leader

    # --- what is promised -------------------------------------------------------------------------

    def _promises(self) -> bool:
        return (
            self.mode != "off" and not self.world.key_deleted_by_hand and not self.world.store.early_expiries
        )

    def _is_of_holder(self) -> bool:
        holder = self.rules.holder
        return holder is not None and self.key is not None and holder.name == self.key.leader

    def _excused(self) -> bool:
        """An operator named somebody; a disk lied; the mode was off a moment ago."""
        return (
            self.rules.is_forced()
            or bool(self.lost)
            or self.engine.now < self.off_at + SETTLED_S
            or not self._promises()
        )


def _may_be_sync(tags: Mapping[str, Any]) -> bool:
    return not tags.get("nosync") and tags.get("sync_priority", 1) > 0


def _fits(key: Key, rule: SyncRule | None) -> bool:
    """Any q + 1 voters, and any who have an acknowledged record, have a member in common."""
    others = key.names - {key.leader}
    if len(others) <= key.quorum:
        return True
    waited_for = frozenset(rule.names) if rule is not None else frozenset()
    wanted = rule.wanted if rule is not None else 0
    if "*" in waited_for:
        return False
    if wanted > len(waited_for - {PLACEHOLDER}):
        return True  # nothing is acknowledged at all
    return len(others | waited_for) <= key.quorum + wanted
