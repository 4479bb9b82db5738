"""Jobs of a standby cluster on the node of the other cluster: are its history and ours one?

The other cluster has no agent of ours and no key in our store: what is known of it, it says itself, over the
replication protocol. A job reports a verdict; `haagent.core.rules.standby_cluster` decides what follows.
"""

from __future__ import annotations

import logging
from typing import Any

from haagent.core.standby_cluster import RemoteNode
from haagent.instance import LocalInstance
from haagent.ports import Postgres
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.archiving import ArchiveSpec
from postgres_ctl.errors import PostgresError
from postgres_ctl.facts import ControlData, ControlState, InstanceSample, Lsn, parting

log = logging.getLogger(__name__)

#: One question to the remote node, seconds.
ASK_S = 3.0
#: The user's archive_command for the last segment, seconds.
ARCHIVE_S = 300.0


class RemoteFault(PostgresError):
    """The remote node is not what is needed of it now; one line says why."""


def require_source(
    pg: Postgres, remote: RemoteNode, target: ConnectionTarget, rewinder: ConnectionTarget
) -> None:
    """pg_rewind reads from a primary only, which has made a checkpoint since its promotion: until then its
    pg_control names the timeline before, and pg_rewind would leave diverged WAL in place.

    Raises PostgresError."""
    if pg.is_in_recovery(target, ASK_S):
        raise RemoteFault(f"the {remote} is in recovery")
    timeline = pg.identify_system(target, ASK_S).timeline
    if pg.checkpoint_timeline(rewinder, ASK_S) != timeline:
        raise RemoteFault(f"the {remote} has made no checkpoint on timeline {timeline} yet")


class RemoteJobs:
    """Bodies of the jobs that ask a remote node, or work for it."""

    def __init__(self, instance: LocalInstance) -> None:
        self.instance, self._pg = instance, instance.pg

    def compare(self, remote: RemoteNode, cancel: Cancellation) -> dict[str, Any]:
        """Is our WAL part of the remote history? `diverged`, with `unseen` where pg_rewind cannot tell, or
        `unknown` when nothing can be said yet; `detail` says why."""
        target = self.instance.peer_target(*remote.address, "replication")
        theirs = self._pg.identify_system(target, ASK_S)
        control = self.instance.control_data()
        if theirs.system_identifier != control.system_identifier:
            raise RemoteFault(
                f"the {remote} belongs to another cluster: system identifier {theirs.system_identifier}, "
                f"here {control.system_identifier}"
            )
        in_recovery = self._pg.is_in_recovery(target, ASK_S)
        mine, position, whole = self._end(control)
        detail, unseen = self._divergence(mine, position, control, theirs.timeline, in_recovery, target)
        if detail is None and whole:
            self._pg.drop_held_timelines(self.instance.config.postgresql.data_dir, mine)
        behind = detail is not None and in_recovery and mine > theirs.timeline
        return {
            "source": remote,
            "diverged": detail is not None and not behind,
            "unseen": unseen,
            "unknown": behind or (detail is None and not whole),
            "whole": whole,
            "detail": detail or "",
        }

    def _end(self, control: ControlData) -> tuple[int, Lsn, bool]:
        """Timeline and end of what this directory has, of a server that answers, else by pg_control; and
        whether that is all: it may have received what it has not read yet."""
        sample = self.instance.sampler.fresh(1.0)
        if isinstance(sample, InstanceSample) and sample.timeline is not None:
            return sample.timeline, sample.replay_lsn or Lsn(0), sample.position_is_proven
        if control.min_recovery_end > control.checkpoint_lsn:
            return control.min_recovery_end_timeline, control.min_recovery_end, False
        clean = control.state is ControlState.SHUT_DOWN
        return control.newest_timeline, control.checkpoint_lsn, clean

    def _divergence(
        self,
        mine: int,
        position: Lsn,
        control: ControlData,
        theirs: int,
        in_recovery: bool,
        target: ConnectionTarget,
    ) -> tuple[str | None, bool]:
        """(why our WAL is no part of theirs, pg_rewind does not see it); (None, False) when it is."""
        if mine == theirs and not in_recovery and control.state is ControlState.SHUT_DOWN:
            return f"both clusters have been primary on timeline {mine}", True
        ours = self._pg.history(self.instance.config.postgresql.data_dir, mine) if mine > 1 else ()
        history = self._pg.timeline_history(target, theirs, ASK_S)
        if ours is None:
            return self._by_number(mine, position, theirs, history), False
        parted_at = parting(ours, mine, history, theirs)
        if parted_at is None or position <= parted_at:
            return None, False
        detail = f"at {position} on timeline {mine}, the remote history left ours at {parted_at}"
        return detail, mine == theirs

    def _by_number(self, mine: int, position: Lsn, theirs: int, history: tuple[Any, ...]) -> str | None:
        """Without the history file of our timeline."""
        if mine == theirs:
            return None
        switch = next((s.switch_lsn for s in history if s.timeline == mine), None)
        if switch is not None and position <= switch:
            return None
        return f"at {position} on timeline {mine}, which the remote history left at {switch or 'no point'}"

    def archive_last(self, checkpoint: Lsn, cancel: Cancellation) -> dict[str, Any]:
        """The segment with the shutdown checkpoint into the archive. A failure is told, and no more."""
        pg, server = self.instance.effective.config, self.instance.server_config(True)
        spec = ArchiveSpec(pg.data_dir, pg.bin_dir, server.config_file, pg.bin_name["postgres"])
        name = self._pg.archive_last(spec, checkpoint, ARCHIVE_S, cancel)
        if name is not None:
            log.info("%s, which holds the shutdown checkpoint, was archived", name)
        return {}
