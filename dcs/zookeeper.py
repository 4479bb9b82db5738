"""ZooKeeper (3.5 and newer) by way of kazoo.

Theory. `leader` and the member key are ephemeral nodes of our session, its id as decimal text. The epoch of
`leader` is the node's czxid. What proves life is an answer to a request that the ensemble had to commit: a
transaction that only checks. It changes nothing and wakes nobody, but needs the majority, while a ping, a
read and `sync` may be answered by a server that has lost it (hazard H2). Reads follow such a transaction on
the same connection, so they see at least what was committed before they were asked for; a view of many keys
is read until two readings agree.

The version of a key is its mzxid, which never repeats; ZooKeeper's own count begins anew with every node.
An ephemeral node cannot change its session, so a leader keeps its session when ttl changes.
Deadlines and outcomes are ours: kazoo's connection state proves nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from kazoo import exceptions as zk
from kazoo.client import KazooClient
from kazoo.handlers.threading import KazooTimeoutError
from kazoo.security import make_acl

from dcs import zookeeper_session as sessions
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
from dcs.bounded import BoundedCalls, TimedOut
from dcs.codec import LEADER, MEMBERS, STATUS, SYNC, RawKey, build_snapshot, printable
from dcs.errors import DcsError, DcsLoginRefused, DcsUnavailable
from dcs.records import ClusterSnapshot
from dcs.zookeeper_options import ZooKeeperOptions, options_from_section
from dcs.zookeeper_watch import ZooKeeperWatch

__all__ = ["ZooKeeperDcs", "ZooKeeperOptions", "options_from_section"]

T = TypeVar("T")

#: Session of a client that only reads and writes plain keys, seconds.
READER_TTL_S = 10.0
#: A view is read so often before the store counts as too busy to be read.
READINGS = 8
_NOT_DONE = (
    zk.NodeExistsError, zk.NoNodeError, zk.BadVersionError, zk.NotEmptyError, zk.RolledBackError,
    zk.RuntimeInconsistency, zk.NoAuthError, zk.InvalidACLError,
)  # fmt: skip


class ZooKeeperDcs:
    """Client of one cluster in ZooKeeper; see `dcs.api.Dcs`. `snapshot` and `open_session` also raise
    DcsLoginRefused; writes and renewals answer Unknown then."""

    backend = "zookeeper"
    #: Twice the usual tick: the server takes none shorter.
    minimum_ttl_s = 4.0
    moves_leader = False

    def __init__(self, options: ZooKeeperOptions) -> None:
        self._options = options
        self._base = options.base_path.rstrip("/")
        self._lock = threading.Lock()
        #: The connection, and the event that says it stands.
        self._reader: tuple[KazooClient, Any] | None = None
        self._closed = False
        self._watches: list[ZooKeeperWatch] = []
        self._calls = BoundedCalls("zookeeper")

    def watch(self, on_event: Callable[[WatchEvent], None]) -> ZooKeeperWatch:
        """See `dcs.api.Dcs`. The first event is a WatchGap when the watch stands."""
        watch = ZooKeeperWatch(self._client(READER_TTL_S, None), self._base, on_event)
        self._watches.append(watch)
        return watch

    def close(self) -> None:
        """See `dcs.api.Dcs`: sessions live on as long as they are renewed."""
        for watch in self._watches:
            watch.close()
        with self._lock:
            reader, self._reader, self._closed = self._reader, None, True
        if reader is not None:
            sessions.stop_in_background(reader[0])
        self._calls.close()

    # --- clients ----------------------------------------------------------------------------------

    def _client(self, ttl_s: float, known: tuple[int, bytes] | None) -> KazooClient:
        o = self._options
        acls = [_acl(*entry) for entry in o.acls] or None
        return KazooClient(
            hosts=o.hosts,
            timeout=ttl_s,
            client_id=known,
            default_acl=acls,
            auth_data=list(o.auth_data),
            use_ssl=o.use_ssl,
            ca=o.cacert,
            certfile=o.cert,
            keyfile=o.key,
            keyfile_password=o.key_password,
            verify_certs=o.verify,
            check_hostname=o.use_ssl and o.verify,
            connection_retry={"max_tries": -1, "delay": 0.1, "backoff": 2, "max_delay": 1.0},
            command_retry={"max_tries": 0},
        )

    def _reading(self, until: float) -> KazooClient:
        """The connection for plain keys. Raises KazooTimeoutError while there is none."""
        with self._lock:
            if self._closed:
                raise zk.ConnectionClosedError("closed")
            if self._reader is None:
                client = self._client(READER_TTL_S, None)
                self._reader = (client, client.start_async())
            reader, connected = self._reader
        if not connected.wait(_left(until)):
            raise KazooTimeoutError("not connected")
        return reader

    def _session(self, text: str, until: float) -> sessions.Session | None:
        """None when it is gone. Raises KazooTimeoutError while one to be continued has no connection."""
        return sessions.find_or_continue(text, self._client, until)

    def sealed(self, session: str) -> str:
        """See `dcs.api.Dcs`: with the password, without which nobody continues a session."""
        return sessions.sealed(session)

    def unsealed(self, sealed: str) -> str:
        """See `dcs.api.Dcs`."""
        return sessions.unsealed(sealed)

    # --- reading ----------------------------------------------------------------------------------

    def snapshot(self, deadline_s: float) -> ClusterSnapshot:
        until = boottime() + deadline_s
        try:
            client = self._reading(until)
            _commit(client, [("check", "/", -1)], until)
            before: dict[str, RawKey] | None = None
            for _ in range(READINGS):
                raw, quiet = self._read_all(client, until)
                if quiet or raw == before:
                    return build_snapshot(raw, _zxid(client))
                before = raw
        except zk.NoAuthError as error:
            raise DcsLoginRefused(f"zookeeper: {_cause(error)}") from None
        except (zk.KazooException, KazooTimeoutError, OSError) as error:
            raise DcsUnavailable(f"zookeeper: {_cause(error)}") from None
        raise DcsUnavailable("zookeeper: the keys change faster than they can be read")

    def _read_all(self, client: KazooClient, until: float) -> tuple[dict[str, RawKey], bool]:
        """Every key, and whether nothing at all was committed meanwhile."""
        began = _zxid(client)
        top = client.get_children_async(self._base)
        below = client.get_children_async(f"{self._base}/members")
        optime = client.get_children_async(f"{self._base}/optime")
        folders = {"members", "optime"}
        names = [name for name in _children(top, until) if name not in folders]
        names += [f"{MEMBERS}{name}" for name in _children(below, until)]
        names += [f"optime/{name}" for name in _children(optime, until)]
        asked = {name: client.get_async(f"{self._base}/{name}") for name in sorted(names)}
        found = {name: held for name, one in asked.items() if (held := _held(one, until)) is not None}
        return found, _zxid(client) == began

    def _read(self, client: KazooClient, key: str, until: float) -> RawKey | None:
        """One key as it is after all that was committed before this call."""
        barrier = _begin(client, [("check", "/", -1)])
        asked = client.get_async(f"{self._base}/{key}")
        _raise_failed(barrier.get(timeout=_left(until)))
        return _held(asked, until)

    # --- sessions ---------------------------------------------------------------------------------

    @staticmethod
    def guaranteed_s(ttl_s: float) -> float:
        """See `dcs.api.Dcs`."""
        return sessions.life_s(ttl_s)

    def open_session(self, ttl_s: float, deadline_s: float) -> str:
        until = boottime() + deadline_s
        session = self._bounded(lambda: sessions.open_session(self._client, ttl_s, until), deadline_s)
        assert session is not None  # only a known one may be gone
        return session.text

    def _bounded(self, work: Callable[[], T], deadline_s: float) -> T:
        try:
            return self._calls.run(work, deadline_s + 0.2)
        except TimedOut:
            raise DcsUnavailable(f"zookeeper: no answer within {deadline_s:.1f} s") from None
        except (zk.KazooException, KazooTimeoutError, OSError) as error:
            raise DcsUnavailable(f"zookeeper: {_cause(error)}") from None

    def renew_session(self, session: str, deadline_s: float) -> RenewOutcome:
        return self._renew(session, deadline_s, lambda client, until: None)

    def renew_leader(self, handle: LeaseHandle, name: str, deadline_s: float) -> RenewOutcome:
        def look(client: KazooClient, until: float) -> str | None:
            return _not_ours(_held(client.get_async(self._path(LEADER)), until), handle, name)

        return self._renew(handle.session, deadline_s, look)

    def _renew(
        self, text: str, deadline_s: float, why_not: Callable[[KazooClient, float], str | None]
    ) -> RenewOutcome:
        """A committed transaction of this session, then a look at what it is to prove."""
        sent_at = boottime()
        until = sent_at + deadline_s
        try:
            session = self._session(text, until)
            if session is None:
                return Refused("the session is gone")
            session.renewed()
            _commit(session.client, [("check", "/", -1)], until)
            lost = why_not(session.client, until)
        except zk.SessionExpiredError:
            return Refused("the session is gone")
        except (zk.KazooException, KazooTimeoutError, OSError) as error:
            return Unknown(f"zookeeper: {_cause(error)}")
        if session.dead:
            return Refused("the session is gone")
        return Refused(lost) if lost else Renewed(sent_at, session.life_s)

    def close_session(self, session: str, deadline_s: float) -> WriteOutcome:
        try:
            found = self._session(session, boottime() + deadline_s)
            sure = found is None or self._bounded(found.end, deadline_s)
        except (DcsError, KazooTimeoutError) as error:
            return Unknown(str(error))
        return Ok() if sure else Unknown("zookeeper: not connected")

    # --- the leader key ---------------------------------------------------------------------------

    def take_leader(self, session: str, name: str, deadline_s: float) -> TakeOutcome:
        outcome = self.create(LEADER, name, deadline_s, session)
        return Taken(LeaseHandle(session, outcome.version)) if isinstance(outcome, Ok) else outcome

    def move_leader(self, handle: LeaseHandle, session: str, name: str, deadline_s: float) -> TakeOutcome:
        return Conflict("an ephemeral node cannot change its session")

    def release_leader(
        self, handle: LeaseHandle, name: str, deadline_s: float, status: str | None = None
    ) -> WriteOutcome:
        def operations(client: KazooClient, until: float, held: RawKey) -> list[tuple[Any, ...]]:
            writes = [] if status is None else self._put_operations(client, STATUS, status, until)
            return [*writes, ("delete", self._path(LEADER), -1)]

        outcome = self._as_leader(handle, name, operations, deadline_s)
        return Ok() if isinstance(outcome, Ok) else outcome

    def put_if_leader(
        self, handle: LeaseHandle, name: str, key: str, value: str, deadline_s: float
    ) -> WriteOutcome:
        return self._as_leader(
            handle,
            name,
            lambda client, until, held: self._put_operations(client, key, value, until),
            deadline_s,
        )

    def _as_leader(
        self,
        handle: LeaseHandle,
        name: str,
        operations: Callable[[KazooClient, float, RawKey], list[tuple[Any, ...]]],
        deadline_s: float,
    ) -> WriteOutcome:
        """One transaction on our own session, which cannot outlive the key, right after a look at the key.

        Nothing in ZooKeeper checks a czxid: between look and transaction somebody could delete the key by
        hand and another take it; no session that runs out can do that."""

        def write(until: float) -> WriteOutcome:
            session = self._session(handle.session, until)
            if session is None:
                return Conflict("the session is gone")
            client = session.client
            held = self._read(client, LEADER, until)
            lost = _not_ours(held, handle, name)
            if lost or held is None:
                return Conflict(lost or "leader is absent")
            guarded = [("check", self._path(LEADER), -1), *operations(client, until, held)]
            return _done(client, guarded, until)

        return self._written(write, deadline_s)

    # --- other keys -------------------------------------------------------------------------------

    def put_member(self, session: str, name: str, value: str, deadline_s: float) -> WriteOutcome:
        key = MEMBERS + name

        def write(until: float) -> WriteOutcome:
            found = self._session(session, until)
            if found is None:
                return Conflict("the session is gone")
            client, path = found.client, self._path(key)
            held = self._read(client, key, until)
            if held is not None and held.session == session:
                return _done(client, [("set", path, value, -1)], until)
            if held is None:
                return self._create(client, key, value, until, session)
            # A namesake's that has not run out yet, or one without a session.
            return _done(client, [("delete", path, -1), ("create", path, value, True)], until)

        return self._written(write, deadline_s)

    def create(self, key: str, value: str, deadline_s: float, session: str | None = None) -> WriteOutcome:
        def write(until: float) -> WriteOutcome:
            if session is None:
                return self._create(self._reading(until), key, value, until, None)
            found = self._session(session, until)
            if found is None:
                return Conflict("the session is gone")
            return self._create(found.client, key, value, until, session)

        return self._written(write, deadline_s)

    def _create(
        self, client: KazooClient, key: str, value: str, until: float, session: str | None
    ) -> WriteOutcome:
        path = self._path(key)

        def make() -> Any:
            made = client.create_async(
                path, _encoded(value), ephemeral=session is not None, include_data=True
            )
            return made.get(timeout=_left(until))[1]

        try:
            try:
                stat = make()
            except zk.NoNodeError:
                self._make_folder(client, path.rpartition("/")[0], until)
                stat = make()
        except zk.NodeExistsError:
            held = _held(client.get_async(path), until)
            return Conflict(_held_by(held) if key == LEADER else f"{key} exists")
        if session is not None and str(stat.ephemeralOwner) != session:
            # kazoo had lost the session and opened another just now.
            client.delete_async(path).get(timeout=_left(until))
            return Conflict("the session is gone")
        return Ok(int(stat.czxid))

    def _make_folder(self, client: KazooClient, folder: str, until: float) -> None:
        client.ensure_path_async(folder).get(timeout=_left(until))

    def put(self, key: str, value: str, deadline_s: float) -> WriteOutcome:
        def write(until: float) -> WriteOutcome:
            client = self._reading(until)
            return _done(client, self._put_operations(client, key, value, until), until)

        return self._written(write, deadline_s)

    def _put_operations(
        self, client: KazooClient, key: str, value: str, until: float
    ) -> list[tuple[Any, ...]]:
        """Write `key` whether it is there or not, and without a session."""
        path, held = self._path(key), self._read(client, key, until)
        if held is None:
            self._make_folder(client, path.rpartition("/")[0], until)
            return [("create", path, value, False)]
        if held.session is not None:
            return [("delete", path, -1), ("create", path, value, False)]
        return [("set", path, value, -1)]

    def compare_and_set(self, key: str, value: str, version: int, deadline_s: float) -> WriteOutcome:
        if version == 0:
            return self.create(key, value, deadline_s)

        def write(until: float) -> WriteOutcome:
            client = self._reading(until)
            stat = self._stat_at(client, key, version, until)
            if isinstance(stat, Conflict):
                return stat
            return _done(client, [("set", self._path(key), value, stat.version)], until)

        return self._written(write, deadline_s)

    def _stat_at(self, client: KazooClient, key: str, version: int, until: float) -> Any:
        """ZooKeeper's stat of `key` when it is at our `version` (mzxid), else the Conflict."""
        barrier = _begin(client, [("check", "/", -1)])
        asked = client.exists_async(self._path(key))
        _raise_failed(barrier.get(timeout=_left(until)))
        stat = asked.get(timeout=_left(until))
        found = 0 if stat is None else int(stat.mzxid)
        return stat if found == version else Conflict(f"{key} is at version {found}, not {version}")

    def delete(self, key: str, deadline_s: float, version: int | None = None) -> WriteOutcome:
        def write(until: float) -> WriteOutcome:
            client, expected = self._reading(until), -1
            if version is not None:
                stat = self._stat_at(client, key, version, until)
                if isinstance(stat, Conflict):
                    return Ok() if self._read(client, key, until) is None else stat
                expected = stat.version
            try:
                if key == SYNC:
                    # Peers expect the node to stay, and to say nothing (contract 1.3).
                    client.set_async(self._path(key), b"{}", expected).get(timeout=_left(until))
                else:
                    client.delete_async(self._path(key), expected).get(timeout=_left(until))
            except zk.NoNodeError:
                pass
            return Ok()

        return self._written(write, deadline_s)

    def delete_cluster(self, deadline_s: float) -> WriteOutcome:
        def write(until: float) -> WriteOutcome:
            client = self._reading(until)
            raw, _ = self._read_all(client, until)
            folders = {key.rpartition("/")[0] for key in raw if "/" in key} | {"members", "optime"}
            for name in [*raw, *sorted(folders)]:
                try:
                    client.delete_async(self._path(name)).get(timeout=_left(until))
                except zk.NoNodeError:
                    continue
            return Ok()

        return self._written(write, deadline_s)

    # --- inside -----------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        return f"{self._base}/{key}"

    def _written(self, write: Callable[[float], WriteOutcome], deadline_s: float) -> WriteOutcome:
        try:
            return write(boottime() + deadline_s)
        except _NOT_DONE as error:
            return Conflict(f"zookeeper refused: {_cause(error)}")
        except (zk.KazooException, KazooTimeoutError, OSError) as error:
            return Unknown(f"zookeeper: {_cause(error)}")


# --- requests and answers ---------------------------------------------------------------------------


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "replace")


def _left(until: float) -> float:
    return max(0.001, until - boottime())


def _begin(client: KazooClient, operations: Iterable[tuple[Any, ...]]) -> Any:
    """Send one transaction; its result is to be asked for."""
    transaction = client.transaction()
    for verb, path, *rest in operations:
        if verb == "check":
            transaction.check(path, rest[0])
        elif verb == "set":
            transaction.set_data(path, _encoded(rest[0]), rest[1])
        elif verb == "create":
            transaction.create(path, _encoded(rest[0]), ephemeral=rest[1])
        else:
            transaction.delete(path, rest[0])
    return transaction.commit_async()


def _commit(client: KazooClient, operations: Iterable[tuple[Any, ...]], until: float) -> list[Any]:
    """All of them or none. Raises kazoo's exceptions."""
    results = _begin(client, operations).get(timeout=_left(until))
    _raise_failed(results)
    return list(results)


def _raise_failed(results: Iterable[Any]) -> None:
    """The failure of a transaction: of its operations one says why, the others only that it was not done."""
    failed = [result for result in results if isinstance(result, Exception)]
    if failed:
        said = [f for f in failed if not isinstance(f, zk.RolledBackError | zk.RuntimeInconsistency)]
        raise (said or failed)[0]


def _done(client: KazooClient, operations: list[tuple[Any, ...]], until: float) -> Ok:
    """Commit, and the version of the key written last. Raises kazoo's exceptions.

    To make a key in a transaction tells no version: it is asked for, and may be of a write after ours."""
    stat = _commit(client, operations, until)[-1]
    if not hasattr(stat, "mzxid"):
        stat = client.exists_async(operations[-1][1]).get(timeout=_left(until))
    return Ok(int(getattr(stat, "mzxid", 0)))


def _children(asked: Any, until: float) -> list[str]:
    try:
        return list(asked.get(timeout=_left(until)))
    except zk.NoNodeError:
        return []


def _held(asked: Any, until: float) -> RawKey | None:
    try:
        value, stat = asked.get(timeout=_left(until))
    except zk.NoNodeError:
        return None
    return RawKey(value or b"", int(stat.mzxid), int(stat.czxid), sessions.shown(stat.ephemeralOwner))


def _zxid(client: KazooClient) -> int:
    return int(client.last_zxid)


def _held_by(held: RawKey | None) -> str:
    if held is None:
        return "leader was held"
    return f"leader is held by {printable(held.value.decode('utf-8', 'replace'), 63)!r}"


def _not_ours(held: RawKey | None, handle: LeaseHandle, name: str) -> str | None:
    """Why the leader key is not ours under this very handle; None when it is."""
    if held is None:
        return "leader is absent"
    if held.value != _encoded(name):
        return _held_by(held)
    if held.session != handle.session or held.create_revision != handle.epoch:
        return "leader carries our name but not our session and epoch"
    return None


def _acl(scheme: str, principal: str, permissions: tuple[str, ...]) -> Any:
    wanted = {name.lower(): True for name in permissions}
    return make_acl(scheme, principal, **wanted)


def _cause(error: Exception) -> str:
    """One line: kazoo's exceptions often say nothing but their name."""
    text = printable(str(error), 120)
    if isinstance(error, KazooTimeoutError):
        return "no answer in time"
    name = type(error).__name__
    return f"{name}: {text}" if text and text != "()" else name
