"""Bodies of the jobs that bring a data directory back under the leader (contract 2.9), and what goes by them.

Order of a rewind: WAL that waits for the archive is archived, what will be discarded is kept aside and
written down (rule 7), and only then pg_rewind changes the directory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from dcs.records import Discard
from haagent.core.actions import Source
from haagent.core.member_select import discard_text
from haagent.core.standby_cluster import RemoteNode
from haagent.instance import LocalInstance
from haagent.jobs_words import IDENTIFY_S, Failed, options_of
from haagent.remote import require_source
from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.commits import Counted, Span, spans_beyond
from postgres_ctl.errors import PostgresError
from postgres_ctl.facts import ControlData, ControlState, InstanceSample, Lsn, parting
from postgres_ctl.rewind import (
    DiscardReport,
    KeepPolicy,
    RewindFailed,
    RewindSpec,
    Rewound,
    sees_newest_timeline,
)

log = logging.getLogger(__name__)

REWIND_S = 24 * 3600.0
#: Counting the transactions that are going to be discarded may take this long, seconds.
COUNT_S = 30.0
#: All WAL that a dead primary had not archived, seconds.
ARCHIVE_S = 600.0
_ARCHIVING = ("on", "always", "true", "yes", "1")


@dataclass(frozen=True)
class _Kept:
    """What is said of what pg_rewind discards, where histories part, and where an earlier try kept it."""

    text: str
    parted_at: Lsn | None = None
    directory: str | None = None


class RejoinJobs:
    """For one instance. `upstream(name)` is host and port of a member; raises Failed."""

    def __init__(self, instance: LocalInstance, upstream: Callable[[Source], tuple[str, int]]) -> None:
        self.instance, self._upstream = instance, upstream
        self._pg, self._files = instance.pg, instance.rejoin

    # --- histories

    def compare_histories(self, source: Source, cancel: Cancellation) -> dict[str, Any]:
        """Is our WAL part of the leader's history? `diverged` and `detail` say so.

        Of a server that does not answer only what pg_control names is known, and one that still reads its own
        WAL may yet come upon what the leader has not got: `whole` is False then."""
        target = self.instance.peer_target(*self._upstream(source), "replication")
        theirs = self._pg.identify_system(target, IDENTIFY_S)
        timeline, position, whole = self._end_of_replay() or (*self._end_in_control(), False)
        verdict = self._divergence(timeline, position, theirs.timeline, target)
        return {"diverged": verdict is not None, "detail": verdict or "", "whole": whole}

    def _end_of_replay(self) -> tuple[int, Lsn, bool] | None:
        """Timeline, position, and whether all WAL in this directory is replayed; None: it does not answer."""
        sample = self.instance.sampler.fresh(1.0)
        if not isinstance(sample, InstanceSample) or sample.timeline is None:
            return None
        return sample.timeline, sample.replay_lsn or Lsn(0), sample.position_is_proven

    def _end_in_control(self) -> tuple[int, Lsn]:
        """What this directory has to reach before it is consistent: its own WAL, or a rewind's source."""
        control = self.instance.control_data()
        if control.min_recovery_end > control.checkpoint_lsn:
            return control.min_recovery_end_timeline, control.min_recovery_end
        return control.timeline, control.checkpoint_lsn

    def _divergence(self, mine: int, position: Lsn, theirs: int, target: ConnectionTarget) -> str | None:
        """Why our WAL is no part of the leader's history; None when it is."""
        if mine == theirs:
            return None
        if mine > theirs:
            return f"on timeline {mine}, the leader is on {theirs}"
        history = self._pg.timeline_history(target, theirs, IDENTIFY_S)
        switch = next((s for s in history if s.timeline == mine), None)
        if switch is None:
            return f"timeline {mine} is no part of the leader's history"
        if position > switch.switch_lsn:
            return f"replayed {position} on timeline {mine}, the leader left it at {switch.switch_lsn}"
        return None

    # --- pg_rewind

    def rewind(self, source: Source, cancel: Cancellation) -> dict[str, Any]:
        """Write down and keep aside what is discarded, then pg_rewind (contract 2.9, rule 7)."""
        self.instance.require_storage()
        host_port = self._upstream(source)
        pg, control = self.instance.effective.config, self.instance.control_data()
        if self._rewind_is_blind(control):
            report = f"pg_rewind does not see timeline {control.newest_timeline}, which has no checkpoint yet"
            log.warning("%s", report)
            return {"report": report, "needed": False}
        target = self.instance.peer_target(*host_port, "replication")
        rewinder = self.instance.peer_target(*host_port, "rewind")
        self._pg.write_pgpass(pg.pgpass, [target, rewinder])
        if isinstance(source, RemoteNode):
            require_source(self._pg, source, target, rewinder)
        unarchived = self._archive_ready(cancel)
        kept = self._keep_aside(control, target, cancel, unarchived)
        spec = RewindSpec(
            pg.data_dir,
            pg.bin_dir,
            rewinder,
            pg.pgpass,
            options=options_of(pg.rewind),
            program=pg.bin_name["pg_rewind"],
            parted=kept.parted_at,
            kept_dir=kept.directory,
            was_written=control.state is ControlState.IN_ARCHIVE_RECOVERY,
            segment_bytes=control.wal_segment_bytes,
        )
        outcome = self._pg.rewind(self._with_archive(spec, host_port), REWIND_S, cancel)
        if isinstance(outcome, RewindFailed):
            raise Failed(outcome.reason + (f": {outcome.output.strip()[-300:]}" if outcome.output else ""))
        for line in outcome.fetched:
            log.info("pg_rewind missed WAL: %s", line)
        log.info("pg_rewind from %s: %s; %s", source, type(outcome).__name__, kept.text)
        self.instance.forget_kept()
        return {"report": kept.text, "needed": isinstance(outcome, Rewound), "source": source}

    def _rewind_is_blind(self, control: ControlData) -> bool:
        data_dir = self.instance.config.postgresql.data_dir
        major = self._pg.major_version(data_dir) or 0
        begun = self._pg.rewind_interrupted(data_dir)  # then pg_control may be half the source's
        return not begun and not sees_newest_timeline(control, major)

    def _with_archive(self, spec: RewindSpec, upstream: tuple[str, int]) -> RewindSpec:
        """How WAL comes from the archive: pg_rewind fetches it where it can read the configuration."""
        server = self.instance.server_config(primary=False)
        recovery = self.instance.recovery_config(upstream)
        command = (dict(server.parameters) | recovery.gucs()).get("restore_command")
        if not command:
            return spec
        outside = server.config_dir not in (None, server.data_dir)
        able = not outside or recovery.major_version >= 15
        if able:
            self._pg.write_config(server, recovery)  # pg_rewind asks the files for the command
        return replace(
            spec,
            restore_command=command,
            restore_target_wal=able,
            config_file=server.config_file if outside and able else None,
        )

    def _archive_ready(self, cancel: Cancellation) -> str:
        """Nobody else archives what this primary had not; says what went wrong, "" when nothing did."""
        settings = self.instance.server_config(primary=True).gucs()
        command = settings.get("archive_command", "")
        if settings.get("archive_mode", "off").lower() not in _ARCHIVING or not command:
            return ""
        try:
            count = self._pg.archive_ready(
                self.instance.effective.config.data_dir, command, ARCHIVE_S, cancel
            )
        except PostgresError as fault:
            log.error("WAL that was to be archived is not: %s", fault)
            return f"not all of its WAL was archived: {fault}"
        if count:
            log.info("archived %s files that the server had not yet", count)
        return ""

    # --- what goes

    def _keep_aside(
        self, control: ControlData, target: ConnectionTarget, cancel: Cancellation, unarchived: str
    ) -> _Kept:
        """What pg_rewind will discard: kept and written down."""
        data_dir, mine = self.instance.config.postgresql.data_dir, control.newest_timeline
        theirs = self._pg.identify_system(target, IDENTIFY_S).timeline
        if theirs == mine:
            return _Kept("same timeline as the leader")
        ours, again = self._pg.history(data_dir, mine), self._pg.rewind_interrupted(data_dir)
        if ours is None and again:
            return _Kept("written down when pg_rewind was begun")
        if ours is None:
            raise Failed(f"timeline {mine} has no history file: what would be discarded is not known")
        parted_at = parting(ours, mine, self._pg.timeline_history(target, theirs, IDENTIFY_S), theirs)
        assert parted_at is not None, "two timelines part somewhere"
        if again:
            return self._kept_before(parted_at)
        report = self._pg.keep_diverged_wal(data_dir, control, parted_at, self._policy)
        if report.lsn_to <= report.lsn_from:
            return _Kept("no WAL discarded", parted_at)
        counted = self._count(spans_beyond(ours, mine, parted_at), cancel)
        noted = self._note("rewind", parted_at, report, counted, unarchived)
        return _Kept(discard_text(noted), parted_at)

    def _kept_before(self, parted_at: Lsn) -> _Kept:
        """What is in the directory now is half of two histories: what counts is what was there before."""
        last = self._files.discards[-1] if self._files.discards else None
        if last is None or last.start is None or last.start > parted_at.value:
            why = "an interrupted pg_rewind is done again against a leader whose history parts earlier"
            last = self._note("rewind", parted_at, None, Counted(None, why=why))
        return _Kept(discard_text(last), parted_at, last.kept)

    @property
    def _policy(self) -> KeepPolicy:
        pg = self.instance.effective.config
        return KeepPolicy(pg.keep_diverged_wal, pg.keep_diverged_wal_size)

    def _count(self, spans: tuple[Span, ...], cancel: Cancellation) -> Counted:
        pg = self.instance.effective.config
        return self._pg.count_commits(pg.bin_dir, pg.data_dir, spans, COUNT_S, cancel)

    def _note(
        self, how: str, start: Lsn, report: DiscardReport | None, counted: Counted, more: str = ""
    ) -> Discard:
        ends = (report.lsn_to if report is not None else None, counted.end)
        end = max((lsn for lsn in ends if lsn is not None), default=None)
        note = "; ".join(filter(None, (counted.why and f"not counted: {counted.why}", more)))
        kept = report is not None and report.segments_kept > 0
        discard = Discard(
            name=self.instance.config.name,
            start=start.value,
            end=end.value if end is not None else None,
            transactions=counted.transactions,
            how=how,
            at="",
            kept=report.kept_dir if kept and report is not None else None,
            kept_bytes=report.bytes_kept if report is not None else 0,
            left_out=report.segments_left_out if report is not None else 0,
            note=note or None,
        )
        return self._files.note(discard)

    def note_wiped(self, how: str, leader: Source, cancel: Cancellation) -> str:
        """A directory is going to be wiped for a clone: what of it nobody else has, kept and written down.

        One line for people. An unknown loss is written down as such; it does not keep the directory, which
        the leader's copy replaces. Raises PostgresError when it cannot be written down."""
        data_dir = self.instance.config.postgresql.data_dir
        try:
            control = self.instance.control_data()
            target = self.instance.peer_target(*self._upstream(leader), "replication")
            leader_at = self._pg.identify_system(target, IDENTIFY_S)
            theirs, mine = leader_at.timeline, self._newest_timeline(control)
            history = self._pg.timeline_history(target, theirs, IDENTIFY_S)
            ours = self._pg.history(data_dir, mine)
            if ours is None:
                raise Failed(f"timeline {mine} has no history file")
        except (PostgresError, Failed) as fault:
            return discard_text(self._unknown(how, str(fault)))
        # On the leader's own timeline: beyond its end, if its disk has lost some (H14).
        parted_at = parting(ours, mine, history, theirs) or leader_at.flush_lsn
        counted = self._count(spans_beyond(ours, mine, parted_at), cancel)
        control = replace(control, min_recovery_end=max(control.min_recovery_end, counted.end or Lsn(0)))
        if max(control.checkpoint_lsn, control.min_recovery_end) <= parted_at:
            return "no WAL discarded that the leader has not got"
        try:
            report = self._pg.keep_diverged_wal(data_dir, control, parted_at, self._policy)
        except PostgresError as fault:
            return discard_text(self._note(how, parted_at, None, counted, f"nothing is kept: {fault}"))
        return discard_text(self._note(how, parted_at, report, counted))

    def _newest_timeline(self, control: ControlData) -> int:
        data_dir = self.instance.config.postgresql.data_dir
        return max(control.newest_timeline, self._pg.newest_wal_timeline(data_dir))

    def _unknown(self, how: str, why: str) -> Discard:
        return self._files.note(
            Discard(self.instance.config.name, None, None, None, how, "", note=f"not known: {why}")
        )
