"""initdb, pg_basebackup, pg_rewind and the single-user server, as far as a data directory shows it.

Theory. Each begins by saying on the disk that it began (incomplete, `.rewinding`), takes its time in pieces
between which its agent may die or cancel, and ends with the whole effect at once. pg_rewind believes timeline
numbers and LSNs like the real one: where they lie, the directory is mixed, and only the truth knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from postgres_ctl.api import Cancellation
from postgres_ctl.errors import DataDirError, PostgresUnavailable, ToolFailed
from postgres_ctl.facts import ControlState, Lsn, TimelineSwitch
from postgres_ctl.rewind import NotNeeded, RewindFailed, RewindOutcome, Rewound
from tests.simulation.wal import (
    CHECKPOINT,
    END_OF_RECOVERY,
    SHUTDOWN,
    Control,
    DataDir,
    History,
    Record,
    count_until,
    end_of,
    in_common,
)

if TYPE_CHECKING:
    from tests.simulation.host import SimHost
    from tests.simulation.postgres import Server

#: Pieces in which long work takes its time.
PIECES = 4

Reach = Callable[[], "Server"]


def work(
    host: SimHost,
    sleep: Callable[[float], None],
    kind: str,
    cancel: Cancellation,
    check: Callable[[], object],
) -> None:
    """Let the time of such work pass. Raises ToolFailed: cancelled, or half-way, as a knob wants it."""
    delay_s, fail = host.trouble(f"pg.{kind}")
    total_s = host.takes(kind) + delay_s
    for piece in range(PIECES):
        sleep(total_s / PIECES)
        if cancel.is_set():
            raise ToolFailed(f"{kind}: cancelled", cancelled=True)
        if (fail and piece == PIECES // 2) or host.full:
            raise ToolFailed(f"{kind} failed with exit code 1: no space left on device")
        try:
            check()
        except PostgresUnavailable as fault:
            raise ToolFailed(f"{kind} failed with exit code 1: {fault}") from None


# --- new directories ------------------------------------------------------------------------------


def bootstrap(host: SimHost, dd: DataDir, sleep: Callable[[float], None], cancel: Cancellation) -> None:
    _begin(host, dd)
    try:
        work(host, sleep, "bootstrap", cancel, lambda: None)
    except ToolFailed:
        dd.wipe()
        raise
    dd.system_id = host.land.new_system_id()
    dd.append(SHUTDOWN, 1, host.name)
    dd.control = Control(ControlState.SHUT_DOWN, timeline=1)
    dd.state, dd.unclaimed = "valid", True


def custom_bootstrap(
    host: SimHost, dd: DataDir, sleep: Callable[[float], None], cancel: Cancellation
) -> None:
    """Everybody restores the same backup, and ends its recovery on a timeline of the same number."""
    _begin(host, dd)
    try:
        work(host, sleep, "bootstrap", cancel, lambda: None)
    except ToolFailed:
        dd.wipe()
        raise
    backup = host.land.backup
    assert backup is not None
    dd.system_id, dd.records = backup.system_id, list(backup.records)
    dd.histories = {2: (TimelineSwitch(1, Lsn(backup.end), "restored"),)}
    dd.append(END_OF_RECOVERY, 2, host.name)
    dd.append(SHUTDOWN, 2, host.name)
    last = len(dd.records) - 1
    dd.control = Control(ControlState.SHUT_DOWN, last, last, 2)
    dd.state, dd.unclaimed = "valid", True


def clone(
    host: SimHost, dd: DataDir, sleep: Callable[[float], None], cancel: Cancellation, reach: Reach
) -> None:
    """From a primary or a standby that answers all the time. `reach` raises PostgresUnavailable."""
    _begin(host, dd)
    try:
        try:
            source = reach()
        except PostgresUnavailable as fault:
            raise ToolFailed(f"pg_basebackup: {fault}") from None
        if source.in_recovery:
            start = Control(redo=source.dd.control.redo, checkpoint=source.dd.control.checkpoint)
            start.timeline = source.dd.control.timeline
        else:
            source._write_checkpoint(CHECKPOINT)
            source.grew()
            start = Control(**vars(source.dd.control))
        was_standby, pid = source.in_recovery, source.pid

        def same() -> None:
            now = reach()
            if now.pid != pid or now.in_recovery != was_standby:
                raise PostgresUnavailable("the server was restarted or promoted during the backup")

        work(host, sleep, "clone", cancel, same)
    except ToolFailed:
        dd.wipe()
        raise
    _copy(dd, source.dd, source.replay if was_standby else source.dd.durable, start)
    dd.mixed = source.dd.mixed
    dd.standby_signal = True
    dd.state = "valid"


def run_method(
    host: SimHost,
    dd: DataDir,
    sleep: Callable[[float], None],
    cancel: Cancellation,
    reach: Reach | None,
    keep: bool,
) -> None:
    """A program of the user's: copies what `reach` reaches, or restores the backup."""
    if reach is None:
        for truth in host.land.truths:
            truth.copied_without_leader(host)
    _begin(host, dd, keep)
    try:
        copied = reach().dd if reach is not None else host.land.backup
        if copied is None:
            raise ToolFailed("restore failed with exit code 1: no backup")
        count, control, identity = copied.durable, copied.control, copied.generation
        work(host, sleep, "method", cancel, reach or (lambda: None))
        if copied.generation != identity or copied.durable < count:
            raise ToolFailed("copy failed with exit code 1: the source has changed")
    except (ToolFailed, PostgresUnavailable) as fault:
        if not keep:
            dd.wipe()
        raise ToolFailed(str(fault), cancelled=cancel.is_set()) from None
    start = Control(redo=control.redo, checkpoint=control.checkpoint, timeline=control.timeline)
    dd.wipe()
    _copy(dd, copied, count, start)
    dd.mixed = copied.mixed
    dd.standby_signal = True
    dd.state = "valid"


def _begin(host: SimHost, dd: DataDir, keep: bool = False) -> None:
    if dd.state not in ("empty", "incomplete"):
        raise DataDirError(f"data directory {dd.path} is not empty")
    require_unused(host, dd)
    if not keep:
        dd.wipe()
    dd.state = "incomplete"


def _copy(dd: DataDir, source: DataDir, count: int, start: Control) -> None:
    """`dd` becomes a copy of `source` with its first `count` records, to be recovered from `start` on."""
    dd.system_id = source.system_id
    dd.records = source.records[:count]
    dd.durable = count
    dd.histories = {tl: h for tl, h in source.histories.items() if tl <= dd.timeline}
    dd.history_times = {tl: at for tl, at in source.history_times.items() if tl in dd.histories}
    dd.control = Control(
        ControlState.IN_ARCHIVE_RECOVERY, start.checkpoint, start.redo, start.timeline, count, dd.timeline
    )
    dd.dynamic = None  # of the source's life, removed from the copy


def require_unused(host: SimHost, dd: DataDir) -> None:
    """Raises DataDirError while any process works in the directory."""
    living = host.processes_in(dd.path)
    if living:
        raise DataDirError(f"data directory {dd.path} is in use by processes {living[0].pid}, ...")


# --- pg_rewind ------------------------------------------------------------------------------------


def rewind(
    host: SimHost, dd: DataDir, sleep: Callable[[float], None], cancel: Cancellation, reach: Reach
) -> RewindOutcome:
    """In place. Once it copies, an end before the last byte leaves a damaged directory behind the marker."""
    again, dd.rewinding = dd.rewinding, True
    for truth in host.land.truths:
        truth.rewinding(host)
    try:
        source = reach()
        require_unused(host, dd)
        point = _divergence(dd, source)
    except (PostgresUnavailable, ToolFailed, DataDirError) as fault:
        dd.rewinding = again
        return RewindFailed(str(fault), damaged=again)
    if point is None:
        dd.standby_signal, dd.rewinding = True, False
        _succeeded(host)
        return NotNeeded()
    pid = source.pid
    dd.damaged = True

    def same() -> None:
        if reach().pid != pid:
            raise PostgresUnavailable("the source was restarted")

    try:
        work(host, sleep, "rewind", cancel, same)
    except ToolFailed as fault:
        return RewindFailed(str(fault), fault.output, fault.cancelled, damaged=True)
    _take_over(host, dd, source, point)
    _succeeded(host)
    return Rewound()


def _succeeded(host: SimHost) -> None:
    for truth in host.land.truths:
        truth.rewind_succeeded(host)


def _divergence(dd: DataDir, source: Server) -> int | None:
    """Records up to the point where the histories part, by numbers; None when no rewind is required.

    The source's timeline is that of its last checkpoint: just promoted, it still looks like before.
    """
    if source.in_recovery:
        raise ToolFailed("pg_rewind: source server must not be in recovery mode")
    if source.dd.system_id != dd.system_id:
        raise ToolFailed("pg_rewind: source and target clusters are from different systems")
    if not dd.control.clean:
        raise ToolFailed("pg_rewind: target server must be shut down cleanly")
    mine, theirs = dd.control.timeline, source.dd.control.timeline
    if mine == theirs:
        return None
    ours, others = dd.history(mine), source.dd.history(theirs)
    if ours is None or others is None:
        raise ToolFailed("pg_rewind: could not find history file")
    point = _parting(_ends(ours, mine), _ends(others, theirs))
    if point is None:
        raise ToolFailed("pg_rewind: could not find common ancestor of the clusters' timelines")
    end = max(end_of(dd.control.checkpoint + 1), end_of(dd.control.minimum) if dd.control.minimum else 0)
    return count_until(point) if end > point else None


def _ends(history: History, timeline: int) -> list[tuple[int, int | None]]:
    """(timeline, where it ended); the last goes on."""
    return [*((s.timeline, s.switch_lsn.value) for s in history), (timeline, None)]


def _parting(ours: list[tuple[int, int | None]], others: list[tuple[int, int | None]]) -> int | None:
    """Where the last timeline that both have, begun at the same place, ends in whichever leaves it first."""
    point: int | None = None
    begun: tuple[int | None, int | None] = (0, 0)
    for (mine, my_end), (theirs, their_end) in zip(ours, others, strict=False):
        if mine != theirs or begun[0] != begun[1]:
            break
        ends = [end for end in (my_end, their_end) if end is not None]
        point = min(ends) if ends else None
        begun = (my_end, their_end)
    return point


def _take_over(host: SimHost, dd: DataDir, source: Server, point: int) -> None:
    """Pages changed since `point` come from the source; what had diverged before it stays, unseen."""
    theirs = source.dd
    gone: tuple[Record, ...] = tuple(dd.records[in_common(dd.records, theirs.records) :])
    really_common = len(dd.records) - len(gone)
    mixed = dd.mixed or really_common < min(point, len(dd.records))
    checkpoint = _checkpoint_before(theirs, min(point, really_common))
    _copy(dd, theirs, theirs.durable, checkpoint)
    dd.slots = {}
    dd.mixed = mixed or theirs.mixed
    dd.damaged = dd.rewinding = False
    dd.standby_signal = True
    host.discard(gone, "rewound")
    if mixed:
        for truth in host.land.truths:
            truth.mixed(host, f"rewound to {point} records, but only {really_common} were common")


def _checkpoint_before(theirs: DataDir, count: int) -> Control:
    """The last checkpoint among the first `count` records."""
    for index in range(count - 1, -1, -1):
        record = theirs.records[index]
        if record.kind in (CHECKPOINT, SHUTDOWN):
            return Control(checkpoint=index, redo=index, timeline=record.timeline)
    return Control()
