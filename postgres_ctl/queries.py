"""The agent's SQL: one sample of everything in one round trip, and the few commands it gives.

Theory. `Session` keeps one connection and makes a new one when the last was lost; it never retries a
command. Every call ends within its `deadline_s` seconds whatever the server does (see `libpq`). A sample
takes "in recovery" once and derives everything from that one value, so that a promotion in the middle
cannot mix the two roles.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import ProgrammingError

from postgres_ctl.api import ConnectionTarget, boottime, format_conninfo
from postgres_ctl.controldata import parse_history
from postgres_ctl.errors import PostgresUnavailable, QueryFailed
from postgres_ctl.facts import InstanceSample, Lsn, Slot, TimelineSwitch, WalSender
from postgres_ctl.libpq import Connection, Row

#: Contract 5.5: the agent's own sessions.
CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_MS = 2000
#: A command whose own work is long (CHECKPOINT) gets this much more than its deadline on the server, ms.
_SERVER_SLACK_MS = 1000

#: recovery_target* are left out of the pending restarts: a promoted server's file does not name them any
#: more, and they mean nothing to a primary.
#: A standby without a walreceiver is on the newest timeline among the segments that hold its end of WAL:
#: pg_control learns of a switch only at the next restartpoint.
_SAMPLE = """
with r as materialized (select pg_is_in_recovery() as rec),
wr as materialized (select * from pg_stat_get_wal_receiver() where pid is not null),
st as materialized (
  select name, setting, boot_val, pending_restart from pg_settings
  where pending_restart or name in ('primary_conninfo', 'primary_slot_name', 'restore_command')),
at as materialized (select
  greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) - '0/0'::pg_lsn as bytes,
  (select setting::bigint from pg_settings where name = 'wal_segment_size') as size),
seg as materialized (select
  lpad(upper(to_hex(trunc((bytes - 1) / 4294967296)::bigint)), 8, '0') ||
  lpad(upper(to_hex(trunc((bytes - 1) % 4294967296 / size)::bigint)), 8, '0') as name16 from at),
s as (select
  pg_postmaster_start_time()::text as postmaster_start_time,
  current_setting('server_version_num')::int as server_version,
  (select system_identifier::text from pg_control_system()) as system_identifier,
  r.rec as in_recovery,
  case when not r.rec then pg_walfile_name(pg_current_wal_insert_lsn()) end as wal_file,
  case when not r.rec then pg_current_wal_flush_lsn() end as flush_lsn,
  case when r.rec then coalesce(
    (select received_tli from wr),
    greatest((select timeline_id from pg_control_checkpoint()),
             (select min_recovery_end_timeline from pg_control_recovery()),
             (select max(('x' || left(name, 8))::bit(32)::int) from pg_ls_waldir(), seg
              where name ~ '^[0-9A-F]{24}$' and right(name, 16) = seg.name16))) end as standby_timeline,
  case when r.rec then greatest(pg_last_wal_receive_lsn(), (select flushed_lsn from wr),
                                (select written_lsn from wr)) end as receive_lsn,
  case when r.rec then pg_last_wal_replay_lsn() end as replay_lsn,
  (select redo_lsn from pg_control_checkpoint()) as redo_lsn,
  case when r.rec then pg_last_xact_replay_timestamp()::text end as replay_timestamp,
  case when r.rec then pg_is_wal_replay_paused() else false end as replay_paused,
  case when r.rec then (select row_to_json(wr) from wr) end as walreceiver,
  case when r.rec then exists (
    select from pg_stat_get_activity(null) a
    where a.backend_type = 'startup'
      and a.wait_event in ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval')) else false end as waits,
  (select json_agg(json_build_object('pid', pid, 'usename', usename, 'application_name', application_name,
     'client_addr', host(client_addr), 'state', state, 'sync_state', sync_state,
     'sync_priority', sync_priority, 'sent_lsn', sent_lsn, 'write_lsn', write_lsn,
     'flush_lsn', flush_lsn, 'replay_lsn', replay_lsn) order by pid)
   from pg_stat_replication) as senders,
  (select json_agg(row_to_json(p) order by p.slot_name) from pg_replication_slots p) as slots,
  (select json_agg(json_build_array(st.name, current_setting(st.name), coalesce(
     (select f.setting from pg_file_settings f where f.name = st.name order by f.seqno desc limit 1),
     st.boot_val)) order by st.name)
   from st where st.pending_restart and left(st.name, 15) <> 'recovery_target') as pending_restart,
  (select setting from st where name = 'primary_conninfo') as primary_conninfo,
  (select setting from st where name = 'primary_slot_name') as primary_slot_name,
  (select setting from st where name = 'restore_command') as restore_command,
  current_setting('synchronous_standby_names') as sync_names
from r)
select row_to_json(s) from s
"""

#: SQLSTATE of "recovery is not in progress": the server was promoted while it answered.
_PROMOTED_MEANWHILE = "55000"


class Session:
    """The agent's connection to a server, made when needed. For one thread at a time."""

    def __init__(
        self,
        target: ConnectionTarget,
        application_name: str,
        statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
    ):
        self._target = target
        self._keywords = _session_keywords(application_name, statement_timeout_ms)
        self._connection: Connection | None = None

    def aim(self, target: ConnectionTarget) -> None:
        """Connect there from the next time on; an open connection lives on. Any thread may call this."""
        self._target = target

    def query(self, sql: str, deadline_s: float, params: tuple[str | None, ...] = ()) -> list[Row]:
        """Rows as text. Connects when needed. Raises PostgresUnavailable, QueryFailed."""
        end = boottime() + deadline_s
        connection = self._connected(end)
        return connection.query(sql, max(0.0, end - boottime()), params)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self, end: float) -> Connection:
        if self._connection is None or not self._connection.is_open:
            self.close()
            wait_s = min(CONNECT_TIMEOUT_S, end - boottime())
            self._connection = Connection.open(self._target, wait_s, **self._keywords)
        return self._connection

    # --- facts ------------------------------------------------------------------------------------

    def sample(self, deadline_s: float) -> InstanceSample:
        """Everything about the server in one round trip. Raises PostgresUnavailable, QueryFailed."""
        end = boottime() + deadline_s
        self._connected(end)
        sampled_at = boottime()
        try:
            rows = self.query(_SAMPLE, end - boottime())
        except QueryFailed as e:
            if e.sqlstate != _PROMOTED_MEANWHILE:
                raise
            sampled_at = boottime()
            rows = self.query(_SAMPLE, end - boottime())
        return _sample(sampled_at, json.loads(rows[0][0] or "{}"))

    def settings(self, names: tuple[str, ...], deadline_s: float) -> dict[str, str]:
        """Values in force, with units (`SHOW`); unknown names are left out."""
        sql = "select name, current_setting(name) from pg_settings where name = any($1::text[])"
        rows = self.query(sql, deadline_s, ("{" + ",".join(map(_array_element, names)) + "}",))
        return {str(name): str(value) for name, value in rows}

    def pending_restart(self, deadline_s: float) -> tuple[tuple[str, str, str], ...]:
        """(GUC, value in force, value after a restart) for each that waits for a restart."""
        return self.sample(deadline_s).pending_restart

    # --- commands ---------------------------------------------------------------------------------

    def checkpoint(self, deadline_s: float) -> None:
        """CHECKPOINT; returns when it is done. Use a session of its own: it may take minutes."""
        self._long("checkpoint", deadline_s)

    def resume_replay(self, deadline_s: float) -> None:
        """End a pause of replay. A server that is not in recovery is left alone."""
        self.query("select case when pg_is_in_recovery() then pg_wal_replay_resume() end", deadline_s)

    def create_physical_slot(self, name: str, deadline_s: float, reserve: bool = True) -> None:
        """Create a slot; with `reserve` WAL is kept from now on. An existing slot is left alone."""
        sql = (
            "select pg_create_physical_replication_slot($1, $2::bool)"
            " where not exists (select from pg_replication_slots where slot_name = $1)"
        )
        with _ignore_sqlstate("42710"):  # duplicate_object: somebody else was faster
            self.query(sql, deadline_s, (name, "true" if reserve else "false"))

    def drop_slot(self, name: str, deadline_s: float) -> None:
        """Drop a slot; an absent one is fine. Raises QueryFailed when it is in use."""
        sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1"
        with _ignore_sqlstate("42704"):  # undefined_object
            self.query(sql, deadline_s, (name,))

    def advance_slot(self, name: str, lsn: Lsn, deadline_s: float) -> None:
        """Move an inactive slot forward to `lsn`, at most to what this server has. Never backwards."""
        sql = (
            "select pg_replication_slot_advance(slot_name, least($2::pg_lsn, case when pg_is_in_recovery()"
            " then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end))"
            " from pg_replication_slots where slot_name = $1 and not active and restart_lsn < $2::pg_lsn"
        )
        self.query(sql, deadline_s, (name, str(lsn)))

    def create_logical_slot(self, name: str, plugin: str, deadline_s: float) -> None:
        """Create a slot in this session's database; waits for all transactions that run. An existing slot is
        left alone."""
        sql = (
            "select pg_create_logical_replication_slot($1, $2)"
            " where not exists (select from pg_replication_slots where slot_name = $1)"
        )
        with _ignore_sqlstate("42710"):
            self._long(sql, deadline_s, (name, plugin))

    def advance_logical_slot(self, name: str, lsn: Lsn, deadline_s: float) -> None:
        """Move an inactive slot of this session's database forward, at most to what this standby replayed.

        Reads all WAL up to there. Never backwards; a primary's slots belong to their consumers."""
        sql = (
            "select pg_replication_slot_advance(slot_name, least($2::pg_lsn, pg_last_wal_replay_lsn()))"
            " from pg_replication_slots where slot_name = $1 and not active and pg_is_in_recovery()"
            " and confirmed_flush_lsn < $2::pg_lsn"
        )
        self._long(sql, deadline_s, (name, str(lsn)))

    def _long(self, command: str, deadline_s: float, params: tuple[str | None, ...] = ()) -> None:
        end = boottime() + deadline_s
        limit_ms = int(deadline_s * 1000) + _SERVER_SLACK_MS
        self.query(f"set statement_timeout = {limit_ms}", deadline_s)
        try:
            self.query(command, end - boottime(), params)
        finally:
            if self._connection is not None and self._connection.is_open:
                with contextlib.suppress(PostgresUnavailable, QueryFailed):
                    self.query("reset statement_timeout", CONNECT_TIMEOUT_S)


@contextlib.contextmanager
def _ignore_sqlstate(sqlstate: str) -> Any:
    try:
        yield
    except QueryFailed as e:
        if e.sqlstate != sqlstate:
            raise


def _session_keywords(application_name: str, statement_timeout_ms: int) -> dict[str, str]:
    return {
        "application_name": application_name,
        "options": (
            f"-c statement_timeout={statement_timeout_ms} -c search_path=pg_catalog -c datestyle=ISO"
            " -c synchronous_commit=local -c pg_stat_statements.track=none"
        ),
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
    }


def _array_element(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


# --- parsing a sample -----------------------------------------------------------------------------


def _sample(sampled_at: float, row: Mapping[str, Any]) -> InstanceSample:
    receiver = row["walreceiver"] or {}
    in_recovery = bool(row["in_recovery"])
    timeline = row["standby_timeline"] if in_recovery else int(row["wal_file"][:8], 16)
    return InstanceSample(
        sampled_at=sampled_at,
        postmaster_start_time=_timestamp(row["postmaster_start_time"]) or "",
        server_version=row["server_version"],
        system_identifier=row["system_identifier"],
        in_recovery=in_recovery,
        timeline=timeline,
        flush_lsn=parse_lsn(row["flush_lsn"]),
        receive_lsn=parse_lsn(row["receive_lsn"]),
        replay_lsn=parse_lsn(row["replay_lsn"]),
        redo_lsn=parse_lsn(row["redo_lsn"]),
        replay_timestamp=_timestamp(row["replay_timestamp"]),
        replay_paused=row["replay_paused"],
        walreceiver_status=receiver.get("status"),
        walreceiver_latest_end_lsn=parse_lsn(receiver.get("latest_end_lsn")),
        walreceiver_slot=receiver.get("slot_name") or None,
        walreceiver_conninfo=without_password(receiver.get("conninfo")),
        startup_waits_for_wal=row["waits"],
        senders=tuple(_sender(sender) for sender in row["senders"] or ()),
        slots=tuple(_slot(slot) for slot in row["slots"] or ()),
        pending_restart=tuple(
            cast(tuple[str, str, str], tuple(item)) for item in row["pending_restart"] or ()
        ),
        primary_conninfo=without_password(row["primary_conninfo"]),
        primary_slot_name=row["primary_slot_name"] or None,
        restore_command=row["restore_command"] or None,
        replication_state=_replication_state(in_recovery, receiver.get("status"), row["restore_command"]),
        sync_names=row["sync_names"] or "",
    )


def _replication_state(
    in_recovery: bool, receiver_status: str | None, restore_command: str | None
) -> str | None:
    if not in_recovery:
        return None
    if receiver_status == "streaming":
        return "streaming"
    return "in archive recovery" if restore_command else None


def _sender(row: Mapping[str, Any]) -> WalSender:
    positions = {name: parse_lsn(row[name]) for name in ("sent_lsn", "write_lsn", "flush_lsn", "replay_lsn")}
    return WalSender(
        pid=row["pid"],
        usename=row["usename"] or "",
        application_name=row["application_name"] or "",
        client_addr=row["client_addr"],
        state=row["state"] or "",
        sync_state=row["sync_state"] or "",
        sync_priority=row["sync_priority"] or 0,
        **positions,
    )


def _slot(row: Mapping[str, Any]) -> Slot:
    return Slot(
        name=row["slot_name"],
        type=row["slot_type"],
        active=row["active"],
        restart_lsn=parse_lsn(row["restart_lsn"]),
        confirmed_flush_lsn=parse_lsn(row["confirmed_flush_lsn"]),
        xmin_set=row["xmin"] is not None,
        wal_status=row["wal_status"],
        temporary=row["temporary"],
        database=row["database"],
        plugin=row["plugin"],
        catalog_xmin=int(row["catalog_xmin"]) if row["catalog_xmin"] is not None else None,
        conflicting=bool(row.get("conflicting")),
        failover=bool(row.get("failover")),
        synced=bool(row.get("synced")),
    )


def _timestamp(text: str | None) -> str | None:
    """`2030-01-01 10:00:00.5+00` as the server prints it -> `2030-01-01 10:00:00.500000+00:00`."""
    return str(datetime.datetime.fromisoformat(text)) if text else None


def parse_lsn(text: str | None) -> Lsn | None:
    """None for null and for 0/0, which PostgreSQL uses for "nothing yet"."""
    lsn = Lsn.parse(text) if text else None
    return lsn if lsn and lsn.value else None


def without_password(conninfo: str | None) -> str | None:
    """Conninfo text without passwords; None when empty. What cannot be parsed may hold one: hidden."""
    if not conninfo:
        return None
    if "password" not in conninfo:
        # The usual case, and independent of which keywords our own libpq knows.
        return conninfo
    try:
        words = conninfo_to_dict(conninfo)
    except ProgrammingError:
        return "(not a valid conninfo)"
    hidden = [name for name in ("password", "sslpassword") if name in words]
    if not hidden:
        return conninfo
    return format_conninfo({name: str(value) for name, value in words.items() if name not in hidden})


# --- replication protocol -------------------------------------------------------------------------


@dataclass(frozen=True)
class SystemIdentity:
    """Answer of IDENTIFY_SYSTEM: whose data, which timeline, how far its WAL is flushed."""

    system_identifier: str
    timeline: int
    flush_lsn: Lsn


def identify_system(target: ConnectionTarget, deadline_s: float) -> SystemIdentity:
    """Ask a server (a standby too: its received WAL) who it is. Raises PostgresUnavailable, QueryFailed."""
    row = _replication_command(target, "IDENTIFY_SYSTEM", deadline_s)
    return SystemIdentity(_decode(row[0]), int(_decode(row[1])), Lsn.parse(_decode(row[2])))


def is_in_recovery(target: ConnectionTarget, deadline_s: float) -> bool:
    """A standby, told over the replication protocol. Raises PostgresUnavailable, QueryFailed."""
    return _decode(_replication_command(target, "SHOW in_hot_standby", deadline_s)[0]) == "on"


def checkpoint_timeline(target: ConnectionTarget, deadline_s: float) -> int:
    """Timeline of the last checkpoint in its pg_control. Raises PostgresUnavailable, QueryFailed."""
    end = boottime() + deadline_s
    connection = Connection.open(target, deadline_s, application_name="haagent")
    try:
        sql = "select timeline_id from pg_control_checkpoint()"
        rows = connection.query(sql, max(0.0, end - boottime()))
    finally:
        connection.close()
    return int(rows[0][0] or 0)


def timeline_history(
    target: ConnectionTarget, timeline: int, deadline_s: float
) -> tuple[TimelineSwitch, ...]:
    """History of `timeline` as that server knows it; () for timeline 1.

    Raises PostgresUnavailable, QueryFailed (it does not know that timeline, or sent nonsense).
    """
    if timeline <= 1:
        return ()
    row = _replication_command(target, f"TIMELINE_HISTORY {timeline:d}", deadline_s)
    try:
        return parse_history(_decode(row[1]))
    except ValueError as e:
        raise QueryFailed(f"history of timeline {timeline} cannot be understood: {e}") from None


def _replication_command(
    target: ConnectionTarget, command: str, deadline_s: float
) -> tuple[bytes | None, ...]:
    end = boottime() + deadline_s
    connection = Connection.open(target, deadline_s, replication="true", application_name="haagent")
    try:
        rows = connection.query_bytes(command, max(0.0, end - boottime()))
    finally:
        connection.close()
    if not rows:
        raise QueryFailed(f"{command} returned nothing")
    return rows[0]


def _decode(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
