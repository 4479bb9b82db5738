"""The job that makes a replica: by the configured methods, in their order, until one has made it (contract
2.10, 6.4).

Rule 7: what is in the directory is given up only once another good copy has been proven, whether it is wiped
or left to a program that works on it (`keep_data`); from then on it counts as incomplete, and is never
started as it was. Whether there is a copy to make is not decided here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from haagent.config.types import PostgresConfig, ReplicaMethod
from haagent.core.actions import Clone, Source
from haagent.core.standby_cluster import RemoteNode
from haagent.instance import LocalInstance
from haagent.jobs_words import IDENTIFY_S, options_of
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.basebackup import CloneSpec
from postgres_ctl.errors import PostgresError, ToolFailed
from postgres_ctl.facts import CopyProgress
from postgres_ctl.methods import MethodSpec

log = logging.getLogger(__name__)

#: Long copies end by themselves or by cancellation, not by this; seconds.
COPY_S = 7 * 24 * 3600.0
#: pg_basebackup is tried so often, with this pause, seconds.
TRIES, PAUSE_S = 2, 5.0

#: Told now and then how far a copy is.
Report = Callable[[CopyProgress], object]
BASEBACKUP = ReplicaMethod("basebackup")


@dataclass(frozen=True)
class Ground:
    """What the job needs of its surroundings."""

    instance: LocalInstance
    #: Host and port of a member. Raises when it has published none.
    upstream: Callable[[Source | None], tuple[str, int] | None]
    #: Stop PostgreSQL for good, the user's program before it, if it runs; raises when cancelled.
    stop: Callable[[Cancellation], None]
    #: Write down what goes, and why, measured against what the leader has.
    note: Callable[[str, Source, Cancellation], None]


def make_replica(
    ground: Ground, wanted: Clone, system_identifier: str | None, copied: Report, cancel: Cancellation
) -> dict[str, Any]:
    """Raises PostgresError: with the reason of every method, when none has made it."""
    pg = ground.instance.effective.config
    address = ground.upstream(wanted.source)
    source = ground.instance.peer_target(*address, "replication") if address is not None else None
    methods = _methods(pg, wanted)
    if not methods:
        raise ToolFailed("no method of create_replica_methods works without a leader")
    if wanted.wipe:
        _give_up_data(ground, wanted, keep=methods[0].keep_data, cancel=cancel)
    if source is not None:
        ground.instance.pg.write_pgpass(pg.pgpass, [source])
    with ground.instance.pg.watch_copy(pg.data_dir, source, copied):
        by = _first_that_works(ground.instance, methods, source, system_identifier, cancel)
    ground.instance.forget_kept()
    for name in ground.instance.pg.restore_backups(ground.instance.server_config(primary=False)):
        log.info("%s brought back from the copy in the data directory", name)
    log.info("replica has been created using %s", by)
    return {"source": wanted.source if by == BASEBACKUP.name else None}


def _methods(pg: PostgresConfig, wanted: Clone) -> tuple[ReplicaMethod, ...]:
    if wanted.from_leader:
        return (BASEBACKUP,)
    if isinstance(wanted.source, RemoteNode):
        return pg.remote_methods or pg.replica_methods
    if wanted.source is None:
        return tuple(method for method in pg.replica_methods if method.no_leader)
    return pg.replica_methods


def _give_up_data(ground: Ground, wanted: Clone, *, keep: bool, cancel: Cancellation) -> None:
    """Rule 7: the leader's server answers now; its key outlives it. Raises PostgresError."""
    instance, data_dir = ground.instance, ground.instance.config.postgresql.data_dir
    assert wanted.leader is not None, "data is given up only while somebody leads"
    leader = ground.upstream(wanted.leader)
    assert leader is not None
    instance.pg.identify_system(instance.peer_target(*leader, "replication"), IDENTIFY_S)
    ground.stop(cancel)
    ground.note("reinitialize" if wanted.asked else "clone", wanted.leader, cancel)
    if keep:
        instance.pg.condemn(data_dir)
    else:
        instance.pg.wipe(data_dir)
    instance.pg.forget_rewind(data_dir)


def _first_that_works(
    instance: LocalInstance,
    methods: tuple[ReplicaMethod, ...],
    source: ConnectionTarget | None,
    system_identifier: str | None,
    cancel: Cancellation,
) -> str:
    faults: list[str] = []
    for method in methods:
        try:
            if method.name == BASEBACKUP.name:
                assert source is not None
                _basebackup(instance, source, cancel)
            else:
                spec = _method_spec(instance, method, source, system_identifier)
                instance.pg.run_method(spec, COPY_S, cancel)
            return method.name
        except PostgresError as fault:
            faults.append(f"{method.name}: {fault}")
            if cancel.is_set():
                break
            log.error("a replica could not be created using %s: %s", method.name, fault)
    raise ToolFailed("; ".join(faults), cancelled=cancel.is_set())


def _basebackup(instance: LocalInstance, source: ConnectionTarget, cancel: Cancellation) -> None:
    pg = instance.effective.config
    spec = CloneSpec(
        data_dir=pg.data_dir,
        bin_dir=pg.bin_dir,
        source=source,
        passfile=pg.pgpass,
        options=options_of(pg.basebackup),
        program=pg.bin_name["pg_basebackup"],
    )
    for left in reversed(range(TRIES)):
        try:
            for warning in instance.pg.clone(spec, COPY_S, cancel):
                log.warning("%s", warning)
            return
        except ToolFailed as fault:
            if not left or fault.cancelled or cancel.is_set():
                raise
            log.error("pg_basebackup is tried again in %g s: %s", PAUSE_S, fault)
        if cancel.wait(PAUSE_S):
            raise ToolFailed("cancelled", cancelled=True)


def _method_spec(
    instance: LocalInstance,
    method: ReplicaMethod,
    source: ConnectionTarget | None,
    system_identifier: str | None,
) -> MethodSpec:
    pg = instance.effective.config
    named = (pg.recovery_conf.get("promote_trigger_file"), pg.parameters.get("promote_trigger_file"))
    return MethodSpec(
        name=method.name,
        data_dir=pg.data_dir,
        bin_dir=pg.bin_dir,
        command=method.command,
        scope=instance.config.scope,
        source=source,
        passfile=pg.pgpass,
        arguments=method.arguments,
        no_params=method.no_params,
        keep_data=method.keep_data,
        system_identifier=system_identifier,
        trigger_files=tuple(str(name) for name in named if name),
        pg_controldata=pg.bin_name["pg_controldata"],
    )
