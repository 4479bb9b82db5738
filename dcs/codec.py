"""The JSON and text shapes of one cluster's keys, decoded into records and encoded back.

Theory. The store is shared with other agents, other versions and people, so every byte of it is hostile.
Each key is decoded on its own; one that cannot be understood becomes a `Broken` in the snapshot and never
hides the others, never raises, and never turns into a half-guessed record. Values are bounded while they
are parsed (depth, size of integers, no NaN, no lone surrogates), so that nothing later in the process can
trip over one. Encoding is compact and keeps the field order that the peers of contract 1.3 write.

Pure: no I/O, no clock. Causes of `Broken` name fields and types but never repeat a value: a configuration
may hold secrets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

from dcs.records import (
    Broken,
    ClusterSnapshot,
    ConfigRecord,
    Discard,
    FailoverRequest,
    HistoryRow,
    Json,
    Leader,
    Member,
    OperationOutcome,
    Status,
    SyncState,
    Tags,
    TimelineClaim,
    Unfenced,
)

INITIALIZE = "initialize"
CONFIG = "config"
LEADER = "leader"
STATUS = "status"
LEGACY_OPTIME = "optime/leader"
SYNC = "sync"
FAILOVER = "failover"
HISTORY = "history"
FAILSAFE = "failsafe"
#: Ours; peers ignore keys they do not know.
CLAIMS = "haagent_claims"
OUTCOME = "haagent_outcome"
UNFENCED = "haagent_unfenced"
DISCARDS = "haagent_discards"
MEMBERS = "members/"

#: Deepest nesting taken from the store: real configurations need about 6, and everything that walks a
#: value later may use several frames per level of a 1000-frame stack.
MAX_DEPTH = 32
#: LSNs are unsigned 64 bit; a larger integer anywhere would break float() and struct in later code.
MAX_INT = 2**64 - 1
MAX_TIMELINE = 2**32 - 1
#: Decoded keys that are kept for the next snapshot.
KEPT_RECORDS = 256

T = TypeVar("T")


class RawKey(NamedTuple):
    """One key as the store has it. `version` is what compare-and-set needs (etcd: mod revision)."""

    value: bytes
    version: int
    create_revision: int
    session: str | None = None


class _Bad(ValueError):
    """This value cannot be understood; the text is the cause, one line."""


# --- decoding ---------------------------------------------------------------------------------------


def build_snapshot(raw: Mapping[str, RawKey], revision: int) -> ClusterSnapshot:
    """All keys (relative to the cluster: "leader", "members/pg0") at one `revision`. Never raises."""
    reader = _Reader(raw)
    failover, claims, sync = raw.get(FAILOVER), raw.get(CLAIMS), raw.get(SYNC)
    discards = raw.get(DISCARDS)
    return ClusterSnapshot(
        revision=revision,
        initialize=reader.take(INITIALIZE),
        config=reader.take(CONFIG),
        leader=reader.take(LEADER),
        members=reader.members(),
        status=reader.take(STATUS if STATUS in raw else LEGACY_OPTIME),
        failover=reader.take(FAILOVER),
        failover_version=failover.version if failover else 0,
        sync=reader.take(SYNC),
        sync_version=sync.version if sync else 0,
        history=reader.take(HISTORY),
        claims=reader.take(CLAIMS) or (),
        claims_version=claims.version if claims else 0,
        failsafe=reader.take(FAILSAFE),
        outcome=reader.take(OUTCOME),
        unfenced=reader.take(UNFENCED),
        discards=reader.take(DISCARDS) or (),
        discards_version=discards.version if discards else 0,
        broken=tuple(reader.broken),
    )


@dataclass
class _Reader:
    raw: Mapping[str, RawKey]
    broken: list[Broken] = field(default_factory=list)

    def take(self, key: str) -> Any:
        """The record of `key`; None when it is absent, or broken and noted as such."""
        found = self.raw.get(key)
        if found is None:
            return None
        record = _decoded(key, found)
        if isinstance(record, Broken):
            self.broken.append(record)
            return None
        return record

    def members(self) -> tuple[Member, ...]:
        taken = (self.take(key) for key in sorted(self.raw) if key.startswith(MEMBERS))
        return tuple(member for member in taken if member is not None)


@lru_cache(maxsize=KEPT_RECORDS)
def _decoded(key: str, found: RawKey) -> Any:
    """The record, or `Broken`. Kept: most of a snapshot is as it was in the one before."""
    try:
        if key.startswith(MEMBERS):
            return _member(key[len(MEMBERS) :], found)
        return _DECODERS[key](found)
    except _Bad as error:
        cause = str(error)
    except Exception as error:
        # A hole in our own checks must not take the snapshot down (hazard H12).
        cause = f"unexpected {type(error).__name__}"
    return Broken(printable(key), cause)


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line without control characters, cut at `limit` characters."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else shown[:limit] + "…"


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _Bad("not UTF-8") from None


def _line(text: str, what: str) -> str:
    if not text.isprintable():
        raise _Bad(f"{what} contains control characters")
    return text


def _name(value: object, what: str) -> str:
    if not isinstance(value, str):
        _wrong(what, "a name", value)
    if not value:
        raise _Bad(f"{what} is empty")
    return _line(value, what)


def _opt_name(data: Mapping[str, Json], field_name: str) -> str | None:
    value = data.get(field_name)
    return None if value is None or value == "" else _name(value, field_name)


def _wrong(what: str, wanted: str, value: object) -> NoReturn:
    raise _Bad(f"{what} is {type(value).__name__} where {wanted} belongs")


def _parse_int(text: str) -> int:
    # The length first: converting a million digits takes quadratic time.
    if len(text) > 21 or not -MAX_INT <= (number := int(text)) <= MAX_INT:
        raise _Bad("an integer is out of range")
    return number


def _parse_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _Bad("a number is out of range")
    return number


def _reject_constant(text: str) -> NoReturn:
    raise _Bad(f"{text} is not JSON")


#: Made once: making one costs as much as reading a member key.
_DECODER = json.JSONDecoder(parse_int=_parse_int, parse_float=_parse_float, parse_constant=_reject_constant)


def _json(value: bytes) -> Json:
    text = _text(value)
    try:
        parsed = _DECODER.decode(text)
    except RecursionError:
        raise _Bad("nested too deeply") from None
    except _Bad:
        raise
    except ValueError as error:
        raise _Bad(f"not JSON: {error}") from None
    if text.count("{") + text.count("[") >= MAX_DEPTH:
        _check_depth(parsed)
    if "\\u" in text:
        _check_encodable(parsed)
    return parsed


def _check_depth(value: Json) -> None:
    level: list[Json] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise _Bad("nested too deeply")


def _check_encodable(value: Json) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _Bad("contains half a surrogate pair") from None


def _object(value: bytes) -> dict[str, Json]:
    parsed = _json(value)
    if not isinstance(parsed, dict):
        _wrong("value", "an object", parsed)
    return parsed


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _lsn(value: object, what: str) -> int:
    if not _is_int(value):
        _wrong(what, "an integer", value)
    assert isinstance(value, int)
    if not 0 <= value <= MAX_INT:
        raise _Bad(f"{what} is out of range")
    return value


def _timeline(value: object, what: str = "timeline") -> int:
    number = _lsn(value, what)
    if not 0 < number <= MAX_TIMELINE:
        raise _Bad(f"{what} is out of range")
    return number


def _opt(data: Mapping[str, Json], name: str, decode: Callable[[object, str], T]) -> T | None:
    """The decoded field; None when it is absent or null."""
    value = data.get(name)
    return None if value is None else decode(value, name)


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        _wrong(what, "a text", value)
    return value


def _bool(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        _wrong(what, "true or false", value)
    return value


def _dict(value: object, what: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        _wrong(what, "an object", value)
    return value


def _list(value: object, what: str) -> list[Json]:
    if not isinstance(value, list):
        _wrong(what, "a list", value)
    return value


def _config(raw: RawKey) -> ConfigRecord:
    return ConfigRecord(data=_object(raw.value), version=raw.version)


def _leader(raw: RawKey) -> Leader:
    name = _name(_text(raw.value), "value")
    return Leader(name=name, session=raw.session or "", epoch=raw.create_revision)


def _status(raw: RawKey) -> Status:
    parsed = _json(raw.value)
    if _is_int(parsed):
        return Status(optime=_lsn(parsed, "value"))
    data = _dict(parsed, "value")
    slots = _opt(data, "slots", _dict)
    retain = _opt(data, "retain_slots", _list)
    return Status(
        optime=_lsn(data.get("optime"), "optime"),
        slots=None if slots is None else {name: _lsn(lsn, "a slot") for name, lsn in slots.items()},
        retain_slots=None if retain is None else tuple(_string(n, "retain_slots") for n in retain),
        final_timeline=_opt(data, "haagent_final_timeline", _timeline),
    )


def _sync(raw: RawKey) -> SyncState:
    data = _object(raw.value)
    standbys = _opt(data, "sync_standby", _string) or ""
    names = [name.strip() for name in standbys.split(",")]
    return SyncState(
        # No leader, null or "" all mean that synchronous mode is not active.
        leader=_opt_name(data, "leader"),
        standbys=tuple(_name(name, "sync_standby") for name in names if name),
        quorum=_opt(data, "quorum", _lsn) or 0,
        version=raw.version,
    )


def _failover(raw: RawKey) -> FailoverRequest | None:
    text = _text(raw.value).strip()
    if not text:
        return None
    try:
        data = _object(raw.value)
    except _Bad:
        data = _legacy_failover(text)
    leader, candidate = _opt_name(data, "leader"), _opt_name(data, "member")
    if leader is None and candidate is None:
        return None
    at = _opt(data, "scheduled_at", _scheduled_at)
    return FailoverRequest(
        leader=leader,
        candidate=candidate,
        scheduled_at=at[0] if at is not None else None,
        version=raw.version,
        due_at=at[1] if at is not None else None,
    )


def _legacy_failover(text: str) -> dict[str, Json]:
    """`leader:member` of very old tools. Anything that looks like broken JSON is not taken for it."""
    if text.count(":") != 1 or any(sign in text for sign in '{}[]"'):
        raise _Bad("neither a JSON object nor leader:member")
    leader, _, candidate = text.partition(":")
    return {"leader": leader.strip(), "member": candidate.strip()}


def _scheduled_at(value: object, what: str) -> tuple[str, float]:
    """The text as it is, and as Unix time."""
    text = _string(value, what)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Bad(f"{what} is not a time in ISO 8601") from None
    if moment.tzinfo is None:
        raise _Bad(f"{what} has no time zone")
    return text, moment.timestamp()


def _history(raw: RawKey) -> tuple[HistoryRow, ...]:
    return tuple(_history_row(row) for row in _list(_json(raw.value), "value"))


def _history_row(row: object) -> HistoryRow:
    cells = _list(row, "a row")
    if len(cells) < 3:
        raise _Bad("a row has fewer than 3 columns")
    cells = [*cells, None, None]
    return HistoryRow(
        timeline=_timeline(cells[0]),
        lsn=_lsn(cells[1], "lsn"),
        reason=_string(cells[2], "reason"),
        timestamp=None if cells[3] is None else _string(cells[3], "timestamp"),
        new_leader=None if cells[4] is None else _string(cells[4], "new leader"),
    )


def _claims(raw: RawKey) -> tuple[TimelineClaim, ...]:
    return tuple(_claim(_dict(item, "an item")) for item in _list(_json(raw.value), "value"))


def _claim(data: dict[str, Json]) -> TimelineClaim:
    return TimelineClaim(
        timeline=_timeline(data.get("timeline")),
        name=_name(data.get("name"), "name"),
        epoch=_lsn(data.get("epoch"), "epoch"),
        note=_opt(data, "note", _string),
    )


def _outcome(raw: RawKey) -> OperationOutcome:
    data = _object(raw.value)
    return OperationOutcome(
        version=_lsn(data.get("version"), "version"),
        status=_lsn(data.get("status"), "status"),
        text=_string(data.get("text"), "text"),
    )


def _unfenced(raw: RawKey) -> Unfenced | None:
    data = _object(raw.value)
    if not data:
        return None
    return Unfenced(_name(data.get("name"), "name"), _lsn(data.get("epoch"), "epoch"))


def _discards(raw: RawKey) -> tuple[Discard, ...]:
    return tuple(_discard(_dict(item, "an item")) for item in _list(_json(raw.value), "value"))


def _discard(data: dict[str, Json]) -> Discard:
    return Discard(
        name=_name(data.get("name"), "name"),
        start=_opt(data, "start", _lsn),
        end=_opt(data, "end", _lsn),
        transactions=_opt(data, "transactions", _lsn),
        how=_string(data.get("how"), "how"),
        at=_string(data.get("at"), "at"),
        kept=_opt(data, "kept", _string),
        kept_bytes=_opt(data, "kept_bytes", _lsn) or 0,
        left_out=_opt(data, "left_out", _lsn) or 0,
        note=_opt(data, "note", _string),
    )


def _failsafe(raw: RawKey) -> Mapping[str, str]:
    return {name: _string(url, "an address") for name, url in _object(raw.value).items()}


def _member(name: str, raw: RawKey) -> Member:
    if "/" in name:
        raise _Bad("the member name contains a slash")
    data = _object(raw.value)
    role = _opt(data, "role", _string) or "replica"
    return Member(
        name=_name(name, "the member name"),
        conn_url=_opt(data, "conn_url", _string),
        api_url=_opt(data, "api_url", _string),
        state=_opt(data, "state", _string) or "unknown",
        # The older word for the same role, still accepted from peers.
        role="primary" if role == "master" else role,
        version=_opt(data, "version", _string) or "",
        agent=_opt(data, "agent", _string),
        xlog_location=_opt(data, "xlog_location", _lsn),
        replay_lsn=_opt(data, "replay_lsn", _lsn),
        receive_lsn=_opt(data, "receive_lsn", _lsn),
        replication_state=_opt(data, "replication_state", _string),
        timeline=_opt(data, "timeline", _timeline),
        tags=Tags(_opt(data, "tags", _dict) or {}),
        pause=_opt(data, "pause", _bool) or False,
        checkpoint_after_promote=_opt(data, "checkpoint_after_promote", _bool),
        pending_restart=_opt(data, "pending_restart", _bool) or False,
        pending_restart_reason=_opt(data, "pending_restart_reason", _restart_reason) or {},
        scheduled_restart=_opt(data, "scheduled_restart", _dict),
        proxy_url=_opt(data, "proxy_url", _string),
        cannot_lead=_opt(data, "cannot_lead", _string),
        note=_opt(data, "note", _string),
        session=raw.session,
    )


def _restart_reason(value: object, what: str) -> Mapping[str, tuple[str, str]]:
    return {guc: _change(_dict(change, what)) for guc, change in _dict(value, what).items()}


def _change(change: Mapping[str, Json]) -> tuple[str, str]:
    """(old, new) of one changed GUC; numbers and booleans, seen from some writers, become their text."""
    old, new = (change.get(side) for side in ("old_value", "new_value"))
    for value in (old, new):
        if not isinstance(value, str | int | float):
            _wrong("pending_restart_reason", "a text", value)
    return str(old), str(new)


def _initialize(raw: RawKey) -> str:
    return _line(_text(raw.value), "value")


_DECODERS: Mapping[str, Callable[[RawKey], object]] = {
    INITIALIZE: _initialize,
    CONFIG: _config,
    LEADER: _leader,
    STATUS: _status,
    LEGACY_OPTIME: _status,
    FAILOVER: _failover,
    SYNC: _sync,
    HISTORY: _history,
    CLAIMS: _claims,
    FAILSAFE: _failsafe,
    OUTCOME: _outcome,
    UNFENCED: _unfenced,
    DISCARDS: _discards,
}


# --- encoding ---------------------------------------------------------------------------------------


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dumps(value: Json) -> str:
    """Compact JSON in ASCII, so that any text inside survives any store. ValueError on NaN."""
    return _ENCODER.encode(value)


def _filled(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in pairs if value is not None}


def encode_member(member: Member) -> str:
    """The value of `members/<name>`; absent facts are left out."""
    reasons = {
        guc: {"old_value": old, "new_value": new} for guc, (old, new) in member.pending_restart_reason.items()
    }
    return dumps(
        _filled(
            (
                ("conn_url", member.conn_url),
                ("api_url", member.api_url),
                ("state", member.state),
                ("role", member.role),
                ("version", member.version),
                ("proxy_url", member.proxy_url),
                # Readers look at presence: absent means that rewinding from this member is safe.
                ("checkpoint_after_promote", False if member.checkpoint_after_promote is False else None),
                ("tags", dict(member.tags.values) or None),
                ("pending_restart", member.pending_restart or None),
                ("pending_restart_reason", reasons or None),
                ("xlog_location", member.xlog_location),
                ("replay_lsn", member.replay_lsn),
                ("receive_lsn", member.receive_lsn),
                ("replication_state", member.replication_state),
                ("timeline", member.timeline),
                ("scheduled_restart", _plain(member.scheduled_restart)),
                ("pause", member.pause or None),
                ("agent", member.agent),
                ("cannot_lead", member.cannot_lead),
                ("note", member.note),
            )
        )
    )


def _plain(mapping: Mapping[str, Json] | None) -> dict[str, Json] | None:
    return None if mapping is None else dict(mapping)


def encode_config(data: Mapping[str, Json]) -> str:
    """The value of `config`."""
    return dumps(dict(data))


def encode_status(status: Status) -> str:
    """The value of `status`; empty `slots` and `retain_slots` are left out."""
    return dumps(
        _filled(
            (
                ("optime", status.optime),
                ("slots", dict(status.slots) if status.slots else None),
                ("retain_slots", list(status.retain_slots) if status.retain_slots else None),
                ("haagent_final_timeline", status.final_timeline),
            )
        )
    )


def encode_sync(leader: str | None, standbys: Iterable[str], quorum: int = 0) -> str:
    """The value of `sync`: all three fields always, names sorted."""
    names = ",".join(sorted(standbys))
    return dumps({"leader": leader, "quorum": quorum, "sync_standby": names or None})


def encode_failover(
    leader: str | None = None, candidate: str | None = None, scheduled_at: str | None = None
) -> str:
    """The value of `failover`; without arguments "{}", which clears the request."""
    return dumps(_filled((("leader", leader), ("member", candidate), ("scheduled_at", scheduled_at))))


def encode_history(rows: Iterable[HistoryRow]) -> str:
    """The value of `history`: rows of 5 columns, 3 while timestamp and new leader are unknown."""
    return dumps([_row(row) for row in rows])


def _row(row: HistoryRow) -> list[Json]:
    cells: list[Json] = [row.timeline, row.lsn, row.reason, row.timestamp, row.new_leader]
    while cells[-1] is None:
        cells.pop()
    return cells


def encode_failsafe(addresses: Mapping[str, str]) -> str:
    """The value of `failsafe`: member name to api_url."""
    return dumps(dict(addresses))


def encode_outcome(outcome: OperationOutcome) -> str:
    """The value of `haagent_outcome`."""
    return dumps({"version": outcome.version, "status": outcome.status, "text": outcome.text})


def encode_unfenced(owner: Unfenced | None) -> str:
    """The value of `haagent_unfenced`; "{}" for nobody."""
    return "{}" if owner is None else dumps({"name": owner.name, "epoch": owner.epoch})


def encode_discards(discards: Iterable[Discard]) -> str:
    """The value of `haagent_discards`."""
    return dumps([_filled(vars(d).items()) for d in discards])


def decode_discards(text: str) -> tuple[Discard, ...]:
    """The same from a file of ours. ValueError when it cannot be understood."""
    return _discards(RawKey(text.encode(errors="replace"), 0, 0))


def encode_claims(claims: Iterable[TimelineClaim]) -> str:
    """The value of `haagent_claims`."""
    return dumps(
        [
            _filled((("timeline", c.timeline), ("name", c.name), ("epoch", c.epoch), ("note", c.note)))
            for c in claims
        ]
    )
