"""Consul (1.4 and newer: transactions with check-not-exists).

Theory. A session of Consul's is ours; `leader` and the member key are locks of it, with behaviour "delete":
they vanish with the session. Consul ends a session after up to twice its TTL, so the contract asks for half
of `ttl`, and the TTL in the answer to a renewal is all that is promised. The epoch of `leader` is its
CreateIndex, which a lock keeps while it changes hands (`unlock` and `lock` in one transaction), and a new
key never repeats. Every guarded write is one transaction; where a guard is about CreateIndex, which no verb
checks, the key is read first and its ModifyIndex checked in the transaction.

Reads that decide ask for `consistent`, whatever `consul.consistency` says: that is for the watch.
Why this client: docs/decisions/0012-consul-client.md.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

from dcs.api import (
    Conflict,
    LeaseHandle,
    Ok,
    Refused,
    Renewed,
    RenewOutcome,
    Taken,
    TakeOutcome,
    Unknown,
    WatchEvent,
    WriteOutcome,
    boottime,
)
from dcs.codec import LEADER, MEMBERS, STATUS, RawKey, build_snapshot, printable
from dcs.consul_http import Answer, ConsulHttp
from dcs.consul_options import ConsulOptions, options_from_section
from dcs.consul_service import ConsulService
from dcs.consul_watch import ConsulWatch
from dcs.errors import DcsError, DcsUnavailable
from dcs.records import ClusterSnapshot

__all__ = ["ConsulDcs", "ConsulOptions", "options_from_section"]

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

Operation = dict[str, dict[str, Any]]


class ConsulDcs:
    """Client of one cluster in Consul; see `dcs.api.Dcs`. `snapshot` and `open_session` also raise
    DcsLoginRefused; writes and renewals answer Unknown then."""

    backend = "consul"
    minimum_ttl_s = 10.0
    moves_leader = True

    def __init__(self, options: ConsulOptions) -> None:
        self._http = ConsulHttp(options)
        self._options = options
        self._prefix = options.base_path.strip("/") + "/"
        self._watches: list[ConsulWatch] = []
        self._service = ConsulService(self._http, options) if options.register_service else None
        self._lock = threading.Lock()
        self._seen_index = 0
        #: TTL of the last session, seconds.
        self._asked_ttl_s = 15.0

    def watch(self, on_event: Callable[[WatchEvent], None]) -> ConsulWatch:
        """See `dcs.api.Dcs`. The first event is a WatchGap when the watch stands."""
        watch = ConsulWatch(self._http, self._prefix, self._options.consistency, on_event)
        self._watches.append(watch)
        return watch

    def close(self) -> None:
        """See `dcs.api.Dcs`."""
        for watch in self._watches:
            watch.close()
        self._http.close()

    # --- reading ----------------------------------------------------------------------------------

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        answer = self._http.get(f"/v1/kv/{self._prefix}", {"recurse": "1", "consistent": "1"}, deadline_s)
        raw = keys_of(answer, self._prefix)
        newest = max((key.version for key in raw.values()), default=0)
        with self._lock:
            # The index of a prefix may go back when Consul forgets what was deleted; time does not.
            self._seen_index = max(self._seen_index, answer.index, newest)
            return build_snapshot(raw, self._seen_index)

    def _read(self, key: str, deadline_s: float) -> RawKey | None:
        answer = self._http.get(f"/v1/kv/{self._prefix}{key}", {"consistent": "1"}, deadline_s)
        return keys_of(answer, self._prefix).get(key)

    # --- sessions ---------------------------------------------------------------------------------

    @staticmethod
    def guaranteed_s(ttl_s: float) -> float:
        """See `dcs.api.Dcs`. A server that takes no session as short as that makes it longer."""
        return ttl_s / 2

    @staticmethod
    def sealed(session: str) -> str:
        return session

    @staticmethod
    def unsealed(sealed: str) -> str:
        return sealed

    def open_session(self, ttl_s: float, deadline_s: float) -> str:
        until = boottime() + deadline_s
        answer = self._create_session(ttl_s / 2, deadline_s)
        shortest_s = _shortest_ttl_s(answer)
        if shortest_s is not None and shortest_s > ttl_s / 2:
            answer = self._create_session(shortest_s, until - boottime())
        self._asked_ttl_s = ttl_s / 2
        session = answer.data.get("ID") if isinstance(answer.data, dict) else None
        if answer.code != 200 or not _is_session(session):
            raise DcsUnavailable(f"consul: no session: {answer.code} {answer.text}")
        return str(session)

    def _create_session(self, ttl_s: float, deadline_s: float) -> Answer:
        body = {
            "Name": self._options.session_name,
            "Behavior": "delete",
            "LockDelay": "1ms",
            "TTL": f"{ttl_s:g}s",
            "Checks": list(self._options.checks),
        }
        return self._http.put("/v1/session/create", {}, body, deadline_s)

    def renew_session(self, session: str, deadline_s: float) -> RenewOutcome:
        if not _is_session(session):
            return Refused("the session is gone")
        sent_at = boottime()
        try:
            answer = self._http.put(f"/v1/session/renew/{session}", {}, {}, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        if answer.code == 404 or answer.data == []:
            return Refused("the session is gone")
        life_s = _session_ttl_s(answer)
        if life_s is None:
            return Unknown(f"consul: an answer of unknown shape: {answer.code} {answer.text}")
        return Renewed(sent_at, life_s)

    def renew_leader(self, handle: LeaseHandle, name: str, deadline_s: float) -> RenewOutcome:
        until = boottime() + deadline_s
        outcome = self.renew_session(handle.session, deadline_s)
        if not isinstance(outcome, Renewed):
            return outcome
        try:
            lost = _not_ours(self._read(LEADER, until - boottime()), handle, name)
        except DcsError as error:
            return Unknown(str(error))
        return Refused(lost) if lost else outcome

    def close_session(self, session: str, deadline_s: float) -> WriteOutcome:
        if not _is_session(session):
            return Ok()
        try:
            answer = self._http.put(f"/v1/session/destroy/{session}", {}, {}, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        return Ok() if answer.code in (200, 404) else Unknown(f"consul: {answer.code} {answer.text}")

    # --- the leader key ---------------------------------------------------------------------------

    def take_leader(self, session: str, name: str, deadline_s: float) -> TakeOutcome:
        operations = [self._op("check-not-exists", LEADER), self._op("lock", LEADER, name, session)]
        outcome = self._transaction(operations, deadline_s, session)
        return Taken(LeaseHandle(session, outcome.version)) if isinstance(outcome, Ok) else outcome

    def move_leader(self, handle: LeaseHandle, session: str, name: str, deadline_s: float) -> TakeOutcome:
        if not _is_session(session):
            return Conflict("the new session is gone")
        moved = [
            self._op("unlock", LEADER, name, handle.session),
            self._op("lock", LEADER, name, session),
        ]
        outcome = self._as_leader(handle, name, moved, deadline_s)
        return Taken(LeaseHandle(session, handle.epoch)) if isinstance(outcome, Ok) else outcome

    def release_leader(
        self, handle: LeaseHandle, name: str, deadline_s: float, status: str | None = None
    ) -> WriteOutcome:
        writes = [] if status is None else [self._op("set", STATUS, status)]
        outcome = self._as_leader(handle, name, [*writes, self._op("delete", LEADER)], deadline_s)
        return Ok() if isinstance(outcome, Ok) else outcome

    def put_if_leader(
        self, handle: LeaseHandle, name: str, key: str, value: str, deadline_s: float
    ) -> WriteOutcome:
        return self._as_leader(handle, name, [self._op("set", key, value)], deadline_s)

    def _as_leader(
        self, handle: LeaseHandle, name: str, operations: list[Operation], deadline_s: float
    ) -> WriteOutcome:
        """`operations` in one transaction with the proof that `leader` is ours under this handle."""
        until = boottime() + deadline_s
        try:
            held = self._read(LEADER, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        lost = _not_ours(held, handle, name)
        if lost or held is None:
            return Conflict(lost or "leader is absent")
        guard = self._op("check-index", LEADER, index=held.version)
        return self._transaction([guard, *operations], until - boottime())

    # --- other keys -------------------------------------------------------------------------------

    def put_member(self, session: str, name: str, value: str, deadline_s: float) -> WriteOutcome:
        until = boottime() + deadline_s
        outcome = self._lock_member(session, name, value, until)
        if self._service is not None and isinstance(outcome, Ok):
            self._service.follow(name, value, self._asked_ttl_s, until - boottime())
        return outcome

    def _lock_member(self, session: str, name: str, value: str, until: float) -> WriteOutcome:
        lock = self._op("lock", MEMBERS + name, value, session)
        outcome = self._transaction([lock], until - boottime(), session)
        if not isinstance(outcome, Conflict) or "lock is already held" not in outcome.reason:
            return outcome
        anew = [self._op("delete", MEMBERS + name), lock]  # a namesake's session that has not run out yet
        return self._transaction(anew, until - boottime(), session)

    def create(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        write = self._op("set", key, value) if session is None else self._op("lock", key, value, session)
        return self._transaction([self._op("check-not-exists", key), write], deadline_s, session)

    def put(self, key: str, value: str, deadline_s: float) -> WriteOutcome:
        until = boottime() + deadline_s
        try:
            held = self._read(key, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        # A plain write would leave the key on its session.
        detach = [self._op("delete", key)] if held is not None and held.session is not None else []
        return self._transaction([*detach, self._op("set", key, value)], until - boottime())

    def compare_and_set(self, key: str, value: str, version: int, deadline_s: float) -> WriteOutcome:
        if version == 0:
            return self.create(key, value, deadline_s)
        write = self._op("cas", key, value, index=version)
        # Consul gives what is written as it was no new version, and a write of before could still arrive.
        # Flags, which nobody reads, make it another value: no key was ever written at this version before.
        write["KV"]["Flags"] = version
        return self._transaction([write], deadline_s)

    def delete(self, key: str, deadline_s: float, version: int | None = None) -> WriteOutcome:
        until = boottime() + deadline_s
        if version is None:
            outcome = self._transaction([self._op("delete", key)], deadline_s)
            return Ok() if isinstance(outcome, Ok) else outcome
        try:
            held = self._read(key, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        if held is None:
            return Ok()
        if held.version != version:
            return Conflict(f"{key} is at version {held.version}, not {version}")
        outcome = self._transaction([self._op("delete-cas", key, index=version)], until - boottime())
        return Ok() if isinstance(outcome, Ok) else outcome

    def delete_cluster(self, deadline_s: float) -> WriteOutcome:
        outcome = self._transaction([self._op("delete-tree", "")], deadline_s)
        return Ok() if isinstance(outcome, Ok) else outcome

    # --- inside -----------------------------------------------------------------------------------

    def _op(
        self,
        verb: str,
        key: str,
        value: str | None = None,
        session: str | None = None,
        index: int | None = None,
    ) -> Operation:
        body: dict[str, Any] = {"Verb": verb, "Key": self._prefix + key}
        if value is not None:
            body["Value"] = base64.b64encode(value.encode("utf-8", "replace")).decode()
        if session is not None:
            body["Session"] = session
        if index is not None:
            body["Index"] = index
        return {"KV": body}

    def _transaction(
        self, operations: list[Operation], deadline_s: float, session: str | None = None
    ) -> WriteOutcome:
        """All of `operations` or none; the version of the last key written. What hangs on `session` is
        refused here when that can be none of Consul's: its answer to such a one is no JSON."""
        if session is not None and not _is_session(session):
            return Conflict("the session is gone")
        try:
            answer = self._http.put("/v1/txn", {}, operations, deadline_s)
        except DcsError as error:
            return Unknown(str(error))
        if answer.code == 200 and isinstance(answer.data, dict):
            return Ok(_last_version(answer.data))
        if 400 <= answer.code < 500:
            return Conflict(_why_not(answer))  # definite: a transaction is applied whole or not at all
        return Unknown(f"consul: an answer of unknown shape: {answer.code} {answer.text}")


# --- answers ----------------------------------------------------------------------------------------


def keys_of(answer: Answer, prefix: str) -> dict[str, RawKey]:
    """The keys of a read, relative to `prefix`. Raises DcsUnavailable when it has another shape."""
    if answer.code == 404:
        return {}
    if answer.code != 200:
        raise DcsUnavailable(f"consul: {answer.code} {answer.text}")
    try:
        found = {str(item["Key"]): _raw_key(item) for item in answer.data}
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise DcsUnavailable("consul: keys of unknown shape") from None
    return {key[len(prefix) :]: held for key, held in found.items() if key.startswith(prefix)}


def _raw_key(item: dict[str, Any]) -> RawKey:
    return RawKey(
        value=base64.b64decode(item.get("Value") or "", validate=True),
        version=int(item["ModifyIndex"]),
        create_revision=int(item["CreateIndex"]),
        session=item.get("Session") or None,
    )


def _last_version(data: dict[str, Any]) -> int:
    """ModifyIndex of the last key that a transaction wrote; 0 when it wrote none."""
    results = data.get("Results") or [{}]
    held = results[-1].get("KV") if isinstance(results[-1], dict) else None
    return int(held.get("ModifyIndex") or 0) if isinstance(held, dict) else 0


def _why_not(answer: Answer) -> str:
    errors = answer.data.get("Errors") if isinstance(answer.data, dict) else None
    told = [str(e.get("What")) for e in errors or () if isinstance(e, dict)]
    return printable("; ".join(told) or f"consul refused: {answer.code} {answer.text}", 200)


def _not_ours(held: RawKey | None, handle: LeaseHandle, name: str) -> str | None:
    """Why the leader key is not ours under this very handle; None when it is."""
    if held is None:
        return "leader is absent"
    if held.value != name.encode("utf-8", "replace"):
        return f"leader is held by {printable(held.value.decode('utf-8', 'replace'), 63)!r}"
    if held.session != handle.session or held.create_revision != handle.epoch:
        return "leader carries our name but not our session and epoch"
    return None


def _is_session(session: object) -> bool:
    try:
        return isinstance(session, str) and str(uuid.UUID(session)) == session
    except ValueError:
        return False


def _session_ttl_s(answer: Answer) -> float | None:
    data = answer.data[0] if isinstance(answer.data, list) and answer.data else None
    return _duration_s(data.get("TTL")) if isinstance(data, dict) else None


def _duration_s(text: object) -> float | None:
    """Seconds of one of Go's durations ("1m30s"); None of anything else."""
    parts = _DURATION.findall(text) if isinstance(text, str) else []
    if not parts or "".join(n + unit for n, unit in parts) != text:
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in parts)


def _shortest_ttl_s(answer: Answer) -> float | None:
    """What a server that refused a session for its TTL would take ("must be between [10s=24h0m0s]")."""
    if answer.code == 200 or "TTL" not in answer.text:
        return None
    match = re.search(r"\[([^=\]]+)=", answer.text)
    return _duration_s(match[1]) if match else None
