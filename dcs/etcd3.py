"""etcd v3 through its JSON gateway (etcd 3.4 and newer).

Theory. A session is a lease, its id as decimal text; one lease carries the member key and, when we lead,
the leader key. The epoch of `leader` is its create revision, so every guard is a comparison etcd does
itself inside one transaction: create revision and lease together are ownership, the value (our name) is
compared as well. A keepalive proves only the lease, and a deposed etcd leader may answer it (hazard H1):
`renew_leader` therefore follows it with a linearizable read at the same server, and promises the ttl that
stood in the answer, counted from before the keepalive was sent.

Reads, keepalives, grants and revokes may be repeated at another server; transactions and puts are sent
once, and one whose answer was lost is `Unknown`. Why not a library: docs/decisions/0001-etcd-client.md.
"""

from __future__ import annotations

import math
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
from dcs.errors import DcsError, DcsUnavailable
from dcs.etcd3_connect import Server
from dcs.etcd3_http import NOT_FOUND, Body, Gateway, Limits, NoAnswer, Rejected
from dcs.etcd3_options import Etcd3Options, options_from_section
from dcs.etcd3_watch import Etcd3Watch, b64, key_text, unb64
from dcs.records import ClusterSnapshot

__all__ = ["Etcd3Dcs", "Etcd3Options", "options_from_section"]

_RANGE = "/v3/kv/range"
_TXN = "/v3/kv/txn"


class Etcd3Dcs:
    """Client of one cluster in etcd; see `dcs.api.Dcs`. Raises DcsConfigError.

    `snapshot` and `open_session` also raise DcsLoginRefused; writes and renewals answer Unknown then.
    """

    backend = "etcd3"
    minimum_ttl_s = 3.0
    moves_leader = True

    def __init__(self, options: Etcd3Options) -> None:
        self._gateway = Gateway(options)
        self._prefix = options.base_path.rstrip("/") + "/"
        # The first key after everything that starts with the prefix, which ends with a slash.
        self._prefix_end = self._prefix[:-1] + "0"
        self._watches: list[Etcd3Watch] = []

    def watch(self, on_event: Callable[[WatchEvent], None]) -> Etcd3Watch:
        """See `dcs.api.Dcs`. The first event is a WatchGap when the watch stands."""
        watch = Etcd3Watch(self._gateway, self._prefix, self._prefix_end, on_event)
        self._watches.append(watch)
        return watch

    def close(self) -> None:
        """See `dcs.api.Dcs`."""
        for watch in self._watches:
            watch.close()
        self._gateway.close()

    # --- reading ----------------------------------------------------------------------------------

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        body = {"key": b64(self._prefix), "range_end": b64(self._prefix_end)}
        try:
            answer = self._gateway.ask(_RANGE, body, deadline_s, repeatable=True)
            raw = {key[len(self._prefix) :]: held for key, held in _keys(answer).items()}
        except (Rejected, NoAnswer) as error:
            raise DcsUnavailable(f"etcd: {error}") from None
        return build_snapshot(raw, _number(answer["header"], "revision"))

    # --- sessions ---------------------------------------------------------------------------------

    @staticmethod
    def guaranteed_s(ttl_s: float) -> float:
        return ttl_s

    @staticmethod
    def sealed(session: str) -> str:
        return session

    @staticmethod
    def unsealed(sealed: str) -> str:
        return sealed

    def open_session(self, ttl_s: float, deadline_s: float) -> str:
        # Repeatable: a lease whose id got lost carries no key and runs out.
        body = {"TTL": str(math.ceil(ttl_s))}
        try:
            answer = self._gateway.ask("/v3/lease/grant", body, deadline_s, repeatable=True)
            lease = _number(answer, "ID")
        except (Rejected, NoAnswer) as error:
            raise DcsUnavailable(f"etcd: {error}") from None
        if not lease:
            raise DcsUnavailable("etcd: a lease without id")
        return str(lease)

    def renew_session(self, session: str, deadline_s: float) -> RenewOutcome:
        return self._renewal(lambda server, limits: self._keepalive(server, session, limits), deadline_s)

    def renew_leader(self, handle: LeaseHandle, name: str, deadline_s: float) -> RenewOutcome:
        def renew(server: Server, limits: Limits) -> RenewOutcome:
            outcome = self._keepalive(server, handle.session, limits)
            if not isinstance(outcome, Renewed):
                return outcome
            body = {"key": b64(self._prefix + LEADER)}
            answer = self._gateway.exchange(server, _RANGE, body, limits)
            lost = _not_ours(_first(answer), handle, name)
            return Refused(lost) if lost else outcome

        return self._renewal(renew, deadline_s)

    def close_session(self, session: str, deadline_s: float) -> WriteOutcome:
        # Repeatable: an id is never used twice, and revoking what is gone changes nothing.
        return self._written(
            lambda: self._gateway.ask(
                "/v3/lease/revoke", {"ID": _lease(session)}, deadline_s, repeatable=True
            ),
            gone=Ok(),
        )

    def _keepalive(self, server: Server, session: str, limits: Limits) -> RenewOutcome:
        sent_at = boottime()
        body = {"ID": _lease(session)}
        answer = self._gateway.exchange(server, "/v3/lease/keepalive", body, limits)
        result = answer.get("result")
        if not isinstance(result, dict):
            raise NoAnswer("a keepalive without result")
        # An unknown lease is answered without ttl.
        ttl_s = _number(result, "TTL")
        return Renewed(sent_at, float(ttl_s)) if ttl_s > 0 else Refused("the lease is gone")

    def _renewal(self, work: Callable[[Server, Limits], RenewOutcome], deadline_s: float) -> RenewOutcome:
        try:
            return self._gateway.rotate(work, deadline_s, repeatable=True)
        except Rejected as error:
            return Refused(str(error)) if error.code == NOT_FOUND else Unknown(f"etcd: {error}")
        except DcsError as error:
            return Unknown(str(error))

    # --- the leader key ---------------------------------------------------------------------------

    def take_leader(self, session: str, name: str, deadline_s: float) -> TakeOutcome:
        key = self._prefix + LEADER
        outcome = self._transaction([_absent(key)], [_put(key, name, session)], key, deadline_s, _held_by)
        return Taken(LeaseHandle(session, outcome.version)) if isinstance(outcome, Ok) else outcome

    def move_leader(self, handle: LeaseHandle, session: str, name: str, deadline_s: float) -> TakeOutcome:
        outcome = self._as_leader(handle, name, [_put(self._prefix + LEADER, name, session)], deadline_s)
        return Taken(LeaseHandle(session, handle.epoch)) if isinstance(outcome, Ok) else outcome

    def release_leader(
        self, handle: LeaseHandle, name: str, deadline_s: float, status: str | None = None
    ) -> WriteOutcome:
        writes = [] if status is None else [_put(self._prefix + STATUS, status)]
        outcome = self._as_leader(handle, name, [*writes, _delete(self._prefix + LEADER)], deadline_s)
        return Ok() if isinstance(outcome, Ok) else outcome

    def put_if_leader(
        self, handle: LeaseHandle, name: str, key: str, value: str, deadline_s: float
    ) -> WriteOutcome:
        return self._as_leader(handle, name, [_put(self._prefix + key, value)], deadline_s)

    def _as_leader(
        self, handle: LeaseHandle, name: str, operations: list[Body], deadline_s: float
    ) -> WriteOutcome:
        """`operations` in one transaction with the proof that `leader` is ours under this handle."""
        key = self._prefix + LEADER
        guards = [
            _compare(key, "CREATE", "create_revision", str(handle.epoch)),
            _compare(key, "LEASE", "lease", _lease(handle.session)),
            _compare(key, "VALUE", "value", b64(name)),
        ]
        return self._transaction(
            guards, operations, key, deadline_s, lambda held: _not_ours(held, handle, name)
        )

    # --- other keys -------------------------------------------------------------------------------

    def put_member(self, session: str, name: str, value: str, deadline_s: float) -> WriteOutcome:
        return self._put(MEMBERS + name, value, deadline_s, session)

    def put(self, key: str, value: str, deadline_s: float) -> WriteOutcome:
        return self._put(key, value, deadline_s)

    def create(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        path = self._prefix + key
        return self._transaction(
            [_absent(path)], [_put(path, value, session)], path, deadline_s, lambda _: f"{key} exists"
        )

    def compare_and_set(self, key: str, value: str, version: int, deadline_s: float) -> WriteOutcome:
        path = self._prefix + key
        return self._transaction(
            [_at_version(path, version)],
            [_put(path, value)],
            path,
            deadline_s,
            lambda held: _other_version(key, held, version),
        )

    def delete(self, key: str, deadline_s: float, version: int | None = None) -> WriteOutcome:
        path = self._prefix + key
        if version is None:
            return self._delete_range({"key": b64(path)}, deadline_s)
        outcome = self._transaction(
            [_at_version(path, version)],
            [_delete(path)],
            path,
            deadline_s,
            # None: already absent, which is what was wanted.
            lambda held: None if held is None else _other_version(key, held, version),
        )
        return Ok() if isinstance(outcome, Ok) else outcome

    def delete_cluster(self, deadline_s: float) -> WriteOutcome:
        body = {"key": b64(self._prefix), "range_end": b64(self._prefix_end)}
        return self._delete_range(body, deadline_s)

    # --- inside -----------------------------------------------------------------------------------

    def _put(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        body = _put(self._prefix + key, value, session)["requestPut"]
        return self._written(lambda: self._gateway.ask("/v3/kv/put", body, deadline_s, repeatable=False))

    def _delete_range(self, body: Body, deadline_s: float) -> WriteOutcome:
        outcome = self._written(
            lambda: self._gateway.ask("/v3/kv/deleterange", body, deadline_s, repeatable=False)
        )
        return Ok() if isinstance(outcome, Ok) else outcome

    def _transaction(
        self,
        guards: list[Body],
        operations: list[Body],
        key: str,
        deadline_s: float,
        why_not: Callable[[RawKey | None], str | None],
    ) -> WriteOutcome:
        """`operations` if all `guards` hold, else Conflict with what `why_not` says of `key` as it was
        found in the same transaction; where that is None, Ok."""
        body = {
            "compare": guards,
            "success": operations,
            "failure": [{"requestRange": {"key": b64(key)}}],
        }
        found: list[RawKey | None] = []

        def send() -> Body:
            answer = self._gateway.ask(_TXN, body, deadline_s, repeatable=False)
            if not answer.get("succeeded"):
                found.append(_first((answer.get("responses") or [{}])[0].get("response_range") or {}))
            return answer

        outcome = self._written(send)
        if not found or not isinstance(outcome, Ok):
            return outcome
        reason = why_not(found[0])
        return Ok() if reason is None else Conflict(reason)

    def _written(self, send: Callable[[], Body], gone: WriteOutcome | None = None) -> WriteOutcome:
        """The outcome of a write; `gone` is what an unknown lease means."""
        try:
            return Ok(_number(send()["header"], "revision"))
        except Rejected as error:
            if error.code == NOT_FOUND:
                return gone or Conflict("the session is gone")
            return Conflict(f"etcd refused: {error}")  # definite: nothing was written
        except NoAnswer as error:
            return Unknown(f"etcd: {error}")
        except DcsError as error:
            return Unknown(str(error))
        except (KeyError, IndexError, AttributeError, TypeError):
            return Unknown("etcd: an answer of unknown shape")


# --- requests ---------------------------------------------------------------------------------------


def _lease(session: str | None) -> str:
    """A lease id for a request; "0" (no lease) where there is none. What is no number matches nothing."""
    if session is None:
        return "0"
    return session if session.isascii() and session.isdigit() and len(session) < 20 else "1"


def _put(key: str, value: str, session: str | None = None) -> Body:
    return {"requestPut": {"key": b64(key), "value": b64(value), "lease": _lease(session)}}


def _delete(key: str) -> Body:
    return {"requestDeleteRange": {"key": b64(key)}}


def _compare(key: str, target: str, field: str, value: str) -> Body:
    return {"key": b64(key), "target": target, "result": "EQUAL", field: value}


def _absent(key: str) -> Body:
    return _compare(key, "CREATE", "create_revision", "0")


def _at_version(key: str, version: int) -> Body:
    return _compare(key, "MOD", "mod_revision", str(version))


# --- answers ----------------------------------------------------------------------------------------


def _number(data: Any, field: str) -> int:
    """An integer of an answer, 0 when it is left out. Raises NoAnswer when it is none."""
    try:
        return int(data.get(field) or 0)
    except (ValueError, TypeError, AttributeError):
        raise NoAnswer(f"an answer with a strange {field}") from None


def _keys(answer: Body) -> dict[str, RawKey]:
    """The keys of a range. Raises NoAnswer when it has another shape."""
    try:
        return {key_text(unb64(item["key"])): _raw_key(item) for item in answer.get("kvs") or ()}
    except (KeyError, TypeError, AttributeError):
        raise NoAnswer("a range of unknown shape") from None


def _raw_key(item: Body) -> RawKey:
    lease = _number(item, "lease")
    return RawKey(
        value=unb64(item.get("value")),
        version=_number(item, "mod_revision"),
        create_revision=_number(item, "create_revision"),
        session=str(lease) if lease else None,
    )


def _first(answer: Body) -> RawKey | None:
    return next(iter(_keys(answer).values()), None)


def _held_by(held: RawKey | None) -> str:
    if held is None:
        return "leader was held"
    return f"leader is held by {printable(held.value.decode('utf-8', 'replace'), 63)!r}"


def _not_ours(held: RawKey | None, handle: LeaseHandle, name: str) -> str | None:
    """Why the leader key is not ours under this very handle; None when it is."""
    if held is None:
        return "leader is absent"
    if held.value != name.encode("utf-8", "replace"):
        return _held_by(held)
    if held.session != handle.session or held.create_revision != handle.epoch:
        return "leader carries our name but not our session and epoch"
    return None


def _other_version(key: str, held: RawKey | None, version: int) -> str:
    return f"{key} is at version {held.version if held else 0}, not {version}"
