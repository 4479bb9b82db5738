"""What a server reads from its files, and what it shows of itself to SQL."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from postgres_ctl.config_files import RecoveryConfig, ServerConfig, primary_conninfo
from postgres_ctl.facts import InstanceSample, Lsn, Slot, WalSender
from tests.simulation.engine import WALL_S
from tests.simulation.replication import sync_states
from tests.simulation.wal import DataDir, lsn_at

if TYPE_CHECKING:
    from tests.simulation.postgres import Server

SERVER_VERSION = 150004


@dataclass(frozen=True)
class Settings:
    """The settings in force that matter here."""

    upstream: tuple[str, int] | None = None
    slot: str | None = None
    conninfo: str | None = None
    application_name: str = "walreceiver"
    sync_names: str = ""
    #: At the start of the server: what a reload cannot change.
    protected: tuple[tuple[str, str], ...] = ()
    pending_restart: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def read(cls, dd: DataDir, old: Settings, first: bool) -> Settings:
        """The files of `dd`; `first` at the start of a server."""
        server, recovery = dd.server, dd.recovery
        wanted = tuple(sorted(server.protected.items())) if server is not None else ()
        protected = wanted if first else old.protected
        new = dict(wanted)
        pending = tuple((k, v, new[k]) for k, v in protected if k in new and new[k] != v)
        primary = recovery.primary if recovery is not None else None
        if recovery is None or primary is None:
            return cls(sync_names=_sync_names(server), protected=protected, pending_restart=pending)
        return cls(
            upstream=(primary.host, primary.port),
            slot=recovery.slot_name,
            conninfo=_conninfo(recovery),
            application_name=recovery.application_name,
            sync_names=_sync_names(server),
            protected=protected,
            pending_restart=pending,
        )


def _sync_names(server: ServerConfig | None) -> str:
    """Later sources win (`ServerConfig.gucs`)."""
    if server is not None:
        for source in (server.managed, server.protected, server.parameters):
            if "synchronous_standby_names" in source:
                return source["synchronous_standby_names"]
    return ""


_last_conninfo: tuple[RecoveryConfig | None, str] = (None, "")


def _conninfo(recovery: RecoveryConfig) -> str:
    """Computed once per change of the files: every sample shows it."""
    global _last_conninfo
    if _last_conninfo[0] is not recovery:
        _last_conninfo = (recovery, primary_conninfo(recovery))
    return _last_conninfo[1]


def start_time(true_s: float) -> str:
    """As pg_postmaster_start_time() prints it."""
    started = datetime.fromtimestamp(WALL_S + true_s, UTC)
    return f"{started:%Y-%m-%d %H:%M:%S.%f}+00:00"


def build_sample(server: Server) -> InstanceSample:
    """One query's worth of truth, as `postgres_ctl.queries` reads it; without its time.

    A busy server's sample is built anew for every question: the constructor of a frozen class of this size
    would cost more than all the rest.
    """
    dd, settings, standby = server.dd, server.settings, server.in_recovery
    link = server.receiver.link if standby else None
    streaming = link is not None
    sample = object.__new__(InstanceSample)
    sample.__dict__.update(
        sampled_at=0.0,
        postmaster_start_time=server.start_time,
        server_version=SERVER_VERSION,
        system_identifier=dd.system_id,
        in_recovery=standby,
        timeline=dd.timeline,
        flush_lsn=None if standby else lsn_at(dd.durable),
        receive_lsn=Lsn(server.receive) if standby and server.receive is not None else None,
        replay_lsn=lsn_at(server.replay) if standby else None,
        redo_lsn=lsn_at(dd.control.redo),
        replay_timestamp=None,
        replay_paused=server.replay_paused and standby,
        walreceiver_status="streaming" if streaming else None,
        walreceiver_latest_end_lsn=lsn_at(link.sent) if link is not None and link.sent else None,
        walreceiver_slot=settings.slot if streaming else None,
        walreceiver_conninfo=settings.conninfo if streaming else None,
        startup_waits_for_wal=server.waits_for_wal,
        senders=_senders(server) if server.walsenders else (),
        slots=_slots(server) if dd.slots else (),
        pending_restart=settings.pending_restart,
        primary_conninfo=settings.conninfo,
        primary_slot_name=settings.slot,
        restore_command=None,
        replication_state="streaming" if streaming else None,
        sync_names=settings.sync_names,
    )
    return sample


def _senders(server: Server) -> tuple[WalSender, ...]:
    """By pid, which is the order in which they came."""
    links = server.walsenders
    states = sync_states(server.sessions.sync_rule, links)
    return tuple(link.row(*state) for link, state in zip(links, states, strict=True))


def _slots(server: Server) -> tuple[Slot, ...]:
    active = [link.slot for link in server.walsenders]
    return tuple(slot.row(name, name in active) for name, slot in sorted(server.dd.slots.items()))
