"""Which member of a cluster a person means: leader, role filters, candidates, the missing ones. Pure.

Theory. `haagentctl` asks, shows and forwards; it never decides. Everything it must know about roles and
leadership to do so is here, as functions over the snapshot of the store, so that no other part of the
program compares roles or leader names. What a member *may* do is decided by the agents; these functions
only prepare prompts, tables and the lists of members a request is sent to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dcs.records import ClusterSnapshot, Discard, HistoryRow, Member
from haagent.core import roles
from haagent.core.cluster_view import LEADER, STANDBY_LEADER
from postgres_ctl.facts import Lsn, slot_name

#: Values of `--role` (contract 4.1).
ROLES = ("leader", "primary", "standby-leader", "replica", "standby", "any")
#: Patroni refuses a shorter ttl; all members must agree while one of them is Patroni's (design section 3).
PATRONI_MINIMUM_TTL_S = 20.0

#: Roles of contract 3.5 that hold the leader key.
_LEADING_ROWS = frozenset({LEADER, STANDBY_LEADER})


# --- leader -------------------------------------------------------------------------------------


def leader_name(snapshot: ClusterSnapshot) -> str | None:
    """Name in the leader key, None when nobody holds it."""
    return snapshot.leader.name if snapshot.leader else None


def leader_member(snapshot: ClusterSnapshot) -> Member | None:
    """The member that holds the leader key; None without holder or when its member key is gone."""
    return snapshot.member(snapshot.leader.name) if snapshot.leader else None


def is_leader(snapshot: ClusterSnapshot, name: str) -> bool:
    """True when `name` holds the leader key."""
    return snapshot.leader is not None and snapshot.leader.name == name


def has_same_leader(before: ClusterSnapshot, now: ClusterSnapshot) -> bool:
    """True when nobody else has taken the leader key in between, nor given it back."""
    return leader_name(before) == leader_name(now)


def leads_standby_cluster(snapshot: ClusterSnapshot) -> bool:
    """True when the holder of the key follows another cluster."""
    member = leader_member(snapshot)
    return member is not None and roles.is_standby_leader(member.role)


def runs_as_standby_cluster(snapshot: ClusterSnapshot) -> bool:
    """True when the holder of the key follows another cluster, and PostgreSQL runs."""
    member = leader_member(snapshot)
    return member is not None and roles.is_standby_leader(member.role) and roles.is_running(member.state)


def runs_on_its_own(snapshot: ClusterSnapshot) -> bool:
    """True when the holder of the key is a running primary."""
    member = leader_member(snapshot)
    return member is not None and roles.is_primary(member.role) and roles.is_running(member.state)


def row_leads(row: Mapping[str, Any]) -> bool:
    """True for the row of the leader in a cluster view (contract 3.5)."""
    return row.get("role") in _LEADING_ROWS


def foreign_leader(snapshot: ClusterSnapshot) -> str | None:
    """Name of a leader that is not haagent's in a cluster that has haagent members (hazard H21)."""
    member = leader_member(snapshot)
    if member is None or member.is_haagent:
        return None
    return member.name if any(m.is_haagent for m in snapshot.members) else None


# --- selections ---------------------------------------------------------------------------------


def with_role(snapshot: ClusterSnapshot, role: str) -> tuple[str, ...]:
    """Sorted names of the members that `--role <role>` means. Raises ValueError for an unknown role."""
    if role not in ROLES:
        raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
    return tuple(sorted(m.name for m in snapshot.members if _has_role(snapshot, m, role)))


def _has_role(snapshot: ClusterSnapshot, member: Member, role: str) -> bool:
    leads = is_leader(snapshot, member.name)
    if role == "any":
        return True
    if role == "primary":
        return leads and roles.is_primary(member.role)
    if role == "standby-leader":
        return leads and roles.is_standby_leader(member.role)
    return leads if role == "leader" else not leads


def session_kind(snapshot: ClusterSnapshot, role: str) -> str:
    """What a session on a member of `role` must find: "primary", "standby" or "any" server.

    The store tells who leads; that the server really is what it should be, only the server itself tells.
    """
    if role == "any":
        return "any"
    follows = role in ("replica", "standby", "standby-leader") or leads_standby_cluster(snapshot)
    return "standby" if follows else "primary"


def candidates(snapshot: ClusterSnapshot) -> tuple[str, ...]:
    """Sorted names that a switchover or failover may name: not the leader, not `nofailover`."""
    names = (m.name for m in snapshot.members if not m.tags.nofailover)
    return tuple(sorted(name for name in names if not is_leader(snapshot, name)))


def leader_first(snapshot: ClusterSnapshot, then: str | None = None) -> tuple[Member, ...]:
    """Members with an API address in the order to ask them: the leader, `then`, the others by name."""

    def place(member: Member) -> tuple[bool, bool, str]:
        return not is_leader(snapshot, member.name), member.name != then, member.name

    return tuple(sorted((m for m in snapshot.members if m.api_url), key=place))


def risks_acknowledged_writes(snapshot: ClusterSnapshot, candidate: str) -> bool:
    """True when the store lists synchronous standbys and `candidate` is not among them."""
    sync = snapshot.sync
    if sync is None or sync.leader is None:
        return False
    known = {name.lower() for name in (sync.leader, *sync.standbys)}
    return candidate.lower() not in known


# --- topology -----------------------------------------------------------------------------------


def as_tree(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """(depth, row) of a cluster view: the leader at depth 0, the others below whom they follow.

    A member whose `replicatefrom` names nobody present follows the leader; members that name each other
    in a circle are put below the leader too, so that each one appears exactly once.
    """
    by_name = {str(row["name"]): row for row in rows}
    roots = [name for name, row in by_name.items() if row_leads(row)]
    children: dict[str, list[str]] = {}
    for name, row in by_name.items():
        source = (row.get("tags") or {}).get("replicatefrom")
        source = source if source in by_name and source != name else ""
        if name not in roots:
            children.setdefault("" if source in roots else str(source), []).append(name)
    placed: list[tuple[int, Mapping[str, Any]]] = [(0, by_name[name]) for name in roots]
    _place_below("", 1, children, by_name, placed)
    seen = {str(row["name"]) for _, row in placed}
    placed.extend((1, row) for name, row in sorted(by_name.items()) if name not in seen)
    return placed


def _place_below(
    source: str,
    depth: int,
    children: Mapping[str, Sequence[str]],
    by_name: Mapping[str, Mapping[str, Any]],
    placed: list[tuple[int, Mapping[str, Any]]],
) -> None:
    for name in sorted(children.get(source, ())):
        placed.append((depth, by_name[name]))
        _place_below(name, depth + 1, children, by_name, placed)


# --- pause --------------------------------------------------------------------------------------


def not_yet(snapshot: ClusterSnapshot, names: Collection[str], paused: bool) -> tuple[str, ...]:
    """Those of `names` that still have a member key and have not published this pause state."""
    return tuple(sorted(m.name for m in snapshot.members if m.name in names and m.pause is not paused))


def vanished(snapshot: ClusterSnapshot) -> tuple[str, ...]:
    """Members the store remembers but that have no member key now, as far as it can be known (H20).

    Sources: `failsafe`, the slots kept for members seen lately, and the last owner of the leader key when
    nobody holds it. A slot is shown by its slot name, for the member's own name is not recoverable.
    """
    present = {m.name for m in snapshot.members}
    present_slots = {slot_name(name) for name in present}
    gone = set(snapshot.failsafe or ()) - present
    gone_slots = {slot_name(name) for name in gone}
    retained = snapshot.status.retain_slots if snapshot.status else None
    gone |= {slot for slot in retained or () if slot not in present_slots | gone_slots}
    if snapshot.leader is None and snapshot.history:
        last_owner = snapshot.history[-1].new_leader
        if last_owner and last_owner not in present and slot_name(last_owner) not in gone:
            gone.add(last_owner)
    return tuple(sorted(gone))


# --- history ------------------------------------------------------------------------------------


def history_note(snapshot: ClusterSnapshot, row: HistoryRow) -> str | None:
    """What the promotion that ended this timeline said about its loss: from the row, or its claim."""
    if row.note:
        return row.note
    began = [r.timeline for r in snapshot.history or () if r.timeline > row.timeline]
    claims = [c for c in snapshot.claims if c.timeline > row.timeline and c.name == row.new_leader]
    made = (c for c in reversed(claims) if not began or c.timeline == began[0])
    return next((c.note for c in made), None)


def discards_of(snapshot: ClusterSnapshot, row: HistoryRow) -> tuple[Discard, ...]:
    """WAL that members discarded, and that had left the cluster's line on this timeline."""
    return tuple(d for d in snapshot.discards if _row_of(snapshot, d) == row)


def discards_elsewhere(snapshot: ClusterSnapshot) -> tuple[Discard, ...]:
    """Those that belong to no row: unknown, or from the timeline that goes on."""
    return tuple(d for d in snapshot.discards if _row_of(snapshot, d) is None)


def _row_of(snapshot: ClusterSnapshot, discard: Discard) -> HistoryRow | None:
    """The first timeline that ended where the discarded WAL began, or later."""
    rows = snapshot.history or ()
    return next((r for r in rows if discard.start is not None and r.lsn >= discard.start), None)


def discard_text(discard: Discard) -> str:
    """One line for people: who threw away what, and where it lies."""
    if discard.start is None or discard.end is None:
        return f"{discard.name} discarded WAL ({discard.how}, {discard.at}): {discard.note}"
    count = discard.transactions
    transactions = "an unknown number of transactions" if count is None else f"{count} transactions"
    kept = f"WAL kept on {discard.name} in {discard.kept}" if discard.kept else "no WAL kept"
    some = f", but for {discard.left_out} segments" if discard.left_out else ""
    note = f"; {discard.note}" if discard.note else ""
    size, start, end = max(0, discard.end - discard.start), Lsn(discard.start), Lsn(discard.end)
    return (
        f"{discard.name} discarded {size} bytes of WAL from {start} to {end}, {transactions}"
        f" ({discard.how}, {discard.at}); {kept}{some}{note}"
    )


def discard_json(discard: Discard) -> dict[str, Any]:
    """The same for programs; null is unknown."""
    return {
        "member": discard.name,
        "from_lsn": None if discard.start is None else str(Lsn(discard.start)),
        "to_lsn": None if discard.end is None else str(Lsn(discard.end)),
        "transactions": discard.transactions,
        "how": discard.how,
        "at": discard.at,
        "kept_in": discard.kept,
        "kept_bytes": discard.kept_bytes,
        "segments_left_out": discard.left_out,
        "note": discard.note,
    }


# --- configuration ------------------------------------------------------------------------------


def minimum_ttl_s(snapshot: ClusterSnapshot, backend_minimum_s: float) -> float:
    """Shortest ttl in seconds every member accepts: Patroni's while one of its agents is present."""
    if any(not member.is_haagent for member in snapshot.members):
        return max(backend_minimum_s, PATRONI_MINIMUM_TTL_S)
    return backend_minimum_s


# --- explain ------------------------------------------------------------------------------------


def explain_from_store(snapshot: ClusterSnapshot, member: Member, cause: str) -> dict[str, Any]:
    """What the store alone tells about `member` taking over; the rest is unknown (None).

    `cause` says in one line why the member was not asked or could not answer.
    """
    leads = is_leader(snapshot, member.name)
    may_lead: bool | None = None
    rules: list[dict[str, Any]] = [{"id": "member.answers", "passed": False, "detail": cause}]
    if member.tags.nofailover:
        rules.append({"id": "tag.nofailover", "passed": False, "detail": "its tags say it may never lead"})
        may_lead = False
    if member.cannot_lead:
        said = f"it last said: {member.cannot_lead}"
        rules.append({"id": "member.published", "passed": False, "detail": said})
        may_lead = False
    rules.append({"id": "member.others", "passed": None, "detail": "only the member itself can tell"})
    return {
        "name": member.name,
        "role": LEADER if leads else member.role,
        "leads": leads,
        "can_lead": may_lead,
        "rules": rules,
        "expected_loss_bytes": None,
        "expected_loss_text": "unknown",
        "answered": False,
    }


def explain_answered(snapshot: ClusterSnapshot, answer: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The answer of a member to `GET /explain`, with what every entry carries."""
    leads = is_leader(snapshot, name)
    role = LEADER if leads else answer.get("role")
    return {**answer, "name": name, "role": role, "leads": leads, "answered": True}
