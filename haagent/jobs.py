"""Work longer than a step, one at a time, cancellable: start, stop, promote, clone, rewind, initdb.

A job only carries out what a decision asked for and reports a `JobResult`; it decides nothing. It waits on
the guardian's events and on PostgreSQL, never inside the loop. If the agent dies in the middle, the next one
finds what is there: markers of `postgres_ctl` beside the data directory, the guardian's state, pg_control.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from haagent import guardian_types as guardian
from haagent.cloning import Ground, Report, make_replica
from haagent.core.actions import Clone, Source
from haagent.core.model import JobFacts, JobResult, Unavailable
from haagent.hooks import Hooks
from haagent.instance import LocalInstance
from haagent.jobs_words import IDENTIFY_S, Failed
from haagent.new_cluster import make_cluster
from haagent.ports import Session
from haagent.rejoin_jobs import RejoinJobs
from haagent.runtime import Event, Runtime
from postgres_ctl.api import Cancellation
from postgres_ctl.errors import PostgresError
from postgres_ctl.facts import ControlState, CopyProgress, DataDirState, InstanceSample

log = logging.getLogger(__name__)

#: A fast stop may take this long before it becomes immediate, then killing; seconds.
FAST_STOP_S, IMMEDIATE_STOP_S = 30.0, 10.0
#: PostgreSQL cannot tell us when it accepts connections: look this often while it starts, and less often the
#: longer it takes, so that looking never adds more than a tenth; seconds.
LOOK_EVERY_S, LOOK_AT_LEAST_EVERY_S, LOOK_SHARE = 0.02, 0.5, 0.1
#: A cancelled CHECKPOINT is noticed at once; its helper thread ends this long after the work, seconds.
CANCEL_LOOK_S = 0.5
#: pg_control is looked at this often while a stop takes longer, seconds.
CONTROL_EVERY_S = 0.25
_SHUT_DOWN = (ControlState.SHUT_DOWN, ControlState.SHUT_DOWN_IN_RECOVERY)
CHECKPOINT_S = 3600.0


@dataclass
class _Running:
    facts: JobFacts
    cancel: Cancellation


@dataclass(frozen=True)
class Starting:
    """The second half of a restart: whom to tell that it begins, and that it takes longer than `limit_s`."""

    #: Returns since when it counts.
    began: Callable[[], float]
    limit_s: float | None
    late: Callable[[], None]


@dataclass(frozen=True)
class _Late:
    at: float
    tell: Callable[[], None]


Body = Callable[[Cancellation], dict[str, Any] | None]


class JobRunner:
    """One job at a time, and background work beside it. Thread safe."""

    def __init__(self, runtime: Runtime, on_change: Callable[[], None]) -> None:
        self._rt, self._on_change = runtime, on_change
        self._lock = runtime.lock()
        self._job: _Running | None = None
        self._background: dict[str, Cancellation] = {}
        self._finished: list[JobResult] = []

    def facts(self) -> tuple[JobFacts | None, tuple[str, ...]]:
        with self._lock:
            return (self._job.facts if self._job else None), tuple(sorted(self._background))

    def collect(self) -> tuple[JobResult, ...]:
        """Results since the last call: delivered to exactly one step."""
        with self._lock:
            finished, self._finished = tuple(self._finished), []
            return finished

    def start(
        self,
        kind: str,
        body: Body,
        detail: str = "",
        epoch: int | None = None,
        *,
        title: str = "",
        start_timeout_s: float | None = None,
    ) -> bool:
        """Begin; False when another job runs."""
        with self._lock:
            if self._job is not None:
                return False
            facts = JobFacts(
                kind, self._rt.now(), detail, epoch, title=title, start_timeout_s=start_timeout_s
            )
            job = self._job = _Running(facts, self._rt.cancellation())
        self._rt.thread(partial(self._run, job, body), f"job-{kind}").start()
        return True

    def starting_now(self) -> float:
        """The running job has stopped PostgreSQL and starts it: its timeout counts from the time returned."""
        since = self._rt.now()
        with self._lock:
            if self._job is not None:
                self._job.facts = replace(self._job.facts, starting_since=since)
        self._on_change()
        return since

    def copied(self, progress: CopyProgress) -> None:
        """How far the running job is. Wakes nobody: the next step tells it."""
        with self._lock:
            if self._job is not None:
                self._job.facts = replace(self._job.facts, copied=progress)

    def start_background(self, kind: str, body: Body) -> None:
        with self._lock:
            if kind in self._background:
                return
            cancel = self._background[kind] = self._rt.cancellation()
        self._rt.thread(partial(self._run_background, kind, body, cancel), f"background-{kind}").start()

    def cancel(self, reason: str) -> None:
        with self._lock:
            job = self._job
            if job is None:
                return
            job.facts = replace(job.facts, cancelled=True, detail=reason)
        log.info("cancelling %s: %s", job.facts.kind, reason)
        job.cancel.set()

    def _run(self, job: _Running, body: Body) -> None:
        result = _attempt(job.facts.kind, body, job.cancel)
        with self._lock:
            self._job = None
            self._finished.append(result)
        self._on_change()

    def _run_background(self, kind: str, body: Body, cancel: Cancellation) -> None:
        result = _attempt(kind, body, cancel)
        with self._lock:
            self._background.pop(kind, None)
            self._finished.append(result)
        self._on_change()


def _attempt(kind: str, body: Body, cancel: Cancellation) -> JobResult:
    try:
        return JobResult(kind, True, data=body(cancel) or {})
    except (Failed, PostgresError) as fault:
        log.error("%s failed: %s", kind, fault)
        return JobResult(kind, False, str(fault))
    except Exception as fault:
        log.exception("%s: unexpected failure", kind)
        return JobResult(kind, False, f"unexpected {type(fault).__name__}: {fault}")


# --- bodies -----------------------------------------------------------------------------------------


def _until_next_look_s(waited_s: float) -> float:
    """Pause between two looks at a server that has been starting for so long, seconds."""
    return min(LOOK_AT_LEAST_EVERY_S, max(LOOK_EVERY_S, waited_s * LOOK_SHARE))


class InstanceJobs:
    """Bodies of the jobs on one instance. `address(name)` resolves a member to host and port."""

    def __init__(
        self, instance: LocalInstance, address: Callable[[Source], tuple[str, int] | None], hooks: Hooks
    ) -> None:
        self.instance, self.address, self._hooks = instance, address, hooks
        self._rt, self._pg = instance.runtime, instance.pg
        self.rejoin = RejoinJobs(instance, self._peer)

    def _upstream(self, name: Source | None) -> tuple[str, int] | None:
        return self._peer(name) if name is not None else None

    def _peer(self, name: Source) -> tuple[str, int]:
        found = self.address(name)
        if found is None:
            raise Failed(f"{name} has published no address")
        return found

    # --- start, stop

    def start_primary(self, epoch: int, cancel: Cancellation, late: _Late | None = None) -> dict[str, Any]:
        """Start accepting writes; ends when it does, when it died, or when cancelled."""
        self._start(True, epoch, None)
        self._until(lambda s: not s.in_recovery, cancel, None, late)
        self._save_backups()
        return {"epoch": epoch}

    def start_standby(
        self, upstream: Source | None, cancel: Cancellation, starting: Starting | None = None
    ) -> dict[str, Any]:
        """Start read-only; ends when it answers. One that takes longer goes on by itself."""
        self._start(False, None, self._upstream(upstream))
        wanted_s = starting.limit_s if starting is not None else None
        limit = wanted_s or self.instance.config.postgresql.pg_ctl_timeout_s
        if not self._until(lambda s: True, cancel, limit) and starting is not None:
            starting.late()
        self._save_backups()
        return {}

    def _start(self, writable: bool, epoch: int | None, upstream: tuple[str, int] | None) -> None:
        self.instance.require_storage()
        self.instance.begin_watching_exit()
        refused = self.instance.start(writable, epoch, upstream)
        if refused is not None:
            raise Failed(refused)

    def _save_backups(self) -> None:
        """For clones made from here (contract 5.5). A full disk does not make the start a failure."""
        try:
            self._pg.save_backups(self.instance.server_config(primary=False))
        except PostgresError as fault:
            log.warning("the configuration is not copied into the data directory: %s", fault)

    def _until(
        self,
        arrived: Callable[[InstanceSample], bool],
        cancel: Cancellation,
        limit_s: float | None,
        late: _Late | None = None,
    ) -> bool:
        """Wait until the server answers as wanted; False when it still starts after `limit_s`.

        Raises Failed when it is gone or the job is cancelled."""
        began = self._rt.now()
        end = began + limit_s if limit_s is not None else None
        while True:
            sample = self.instance.sampler.fresh(0.5)
            if isinstance(sample, InstanceSample) and arrived(sample):
                return True
            if self.instance.pid() is None:
                raise Failed(self.instance.log_tail() or "PostgreSQL ended while it started")
            cancelled = cancel.wait(_until_next_look_s(self._rt.now() - began))
            if late is not None and self._rt.now() >= late.at:
                late.tell()
            if cancelled:
                self.instance.stop("immediate")
                self.instance.wait_exit(IMMEDIATE_STOP_S)
                raise Failed("cancelled")
            if end is not None and self._rt.now() >= end and isinstance(sample, Unavailable):
                return False

    def stop(
        self,
        mode: str,
        senders_grace_s: float | None,
        before_stop: bool,
        stage_s: float | None,
        cancel: Cancellation,
    ) -> dict[str, Any]:
        """Stop, each stage with its time: fast, immediate, kill (contract 2.6).

        `stage_s`: no stage takes longer than this (primary_stop_timeout); None: the usual times.

        Cancelled while the user's program runs: the ground of a planned stop is lost, so it cannot wait."""
        if before_stop:
            self._hooks.before_stop(cancel)
            mode = "immediate" if cancel.is_set() else mode
        self._stop(mode, senders_grace_s, stage_s)
        return {}

    def _stop(self, mode: str, senders_grace_s: float | None = None, stage_s: float | None = None) -> None:
        self.instance.begin_watching_exit()
        if self.instance.pid() is None:
            return
        fast_s, immediate_s = stage_s or FAST_STOP_S, stage_s or IMMEDIATE_STOP_S
        stages = [("fast", fast_s), ("immediate", immediate_s), ("kill", IMMEDIATE_STOP_S)]
        first = next(i for i, (name, _) in enumerate(stages) if name == mode)
        for name, time_s in stages[first:]:
            self.instance.stop(name)
            if name == "fast" and senders_grace_s is not None:
                gone = self._wait_stopped(time_s, senders_grace_s)
            else:
                gone = self.instance.wait_exit(time_s)
            if gone:
                return
        raise Failed("processes of PostgreSQL cannot be ended")

    def _wait_stopped(self, time_s: float, senders_grace_s: float) -> bool:
        """Like `wait_exit`, but once the shutdown checkpoint is written only `senders_grace_s` more.

        Then only walsenders hold the postmaster: pg_control is final, so ending them loses nothing here."""
        end = self._rt.now() + time_s
        while self._rt.now() < end:
            if self.instance.wait_exit(CONTROL_EVERY_S):
                return True
            if self.instance.control_data().state in _SHUT_DOWN:
                return self.instance.wait_exit(senders_grace_s)
        return False

    def restart(
        self, epoch: int | None, upstream: Source | None, starting: Starting, cancel: Cancellation
    ) -> dict[str, Any]:
        """Stop fast and start in the same role."""
        self._hooks.before_stop(cancel)
        if cancel.is_set():
            raise Failed("cancelled")
        self._stop("fast")
        if cancel.is_set():
            raise Failed("cancelled")
        late = _Late(starting.began() + (starting.limit_s or float("inf")), starting.late)
        if epoch is not None:
            return self.start_primary(epoch, cancel, late)
        return self.start_standby(upstream, cancel, starting)

    # --- promote

    def pre_promote(self, epoch: int, cancel: Cancellation) -> dict[str, Any]:
        """The user's program has nothing against a promotion; Failed says what it has."""
        refusal = self._hooks.pre_promote(cancel)
        if refusal is not None:
            raise Failed(refusal)
        return {"epoch": epoch}

    def promote(self, above: int, timeline: int, epoch: int, cancel: Cancellation) -> dict[str, Any]:
        """Promote to the claimed timeline under the armed epoch; the guardian looks at its deadline (H8)."""
        link = self.instance.link
        if link is None:
            raise Failed("no guardian")
        self._pg.hold_timelines(self.instance.config.postgresql.data_dir, above, timeline)
        outcome = link.promote(epoch, 5.0)
        if not isinstance(outcome, guardian.Done):
            raise Failed(str(getattr(outcome, "reason", None) or getattr(outcome, "cause", outcome)))
        self._until(lambda s: not s.in_recovery, cancel, None)
        return {"epoch": epoch}

    def checkpoint(self, epoch: int, background: bool, cancel: Cancellation) -> dict[str, Any]:
        """CHECKPOINT on a connection of its own: it may take minutes, and must not outlive its ground."""
        session = self._pg.session(self.instance.own_target, "Patroni checkpoint")
        done = self._rt.event()
        watch = partial(_close_when_cancelled, session, cancel, done)
        self._rt.thread(watch, "checkpoint-cancel").start()
        try:
            session.checkpoint(CHECKPOINT_S)
        finally:
            done.set()
            session.close()
        return {"epoch": epoch, "background": background}

    def publish_sync(self, names: str, pid: int, cancel: Cancellation) -> dict[str, Any]:
        """A CHECKPOINT issued once the server has been told of `names`: a session that begins now and shows
        them proves that (H17)."""
        session = self._pg.session(self.instance.own_target, "Patroni checkpoint")
        done = self._rt.event()
        self._rt.thread(partial(_close_when_cancelled, session, cancel, done), "checkpoint-cancel").start()
        try:
            if session.sample(IDENTIFY_S).sync_names != names or self.instance.pid() != pid:
                raise Failed(f"{names} is not in force any more")
            session.checkpoint(CHECKPOINT_S)
            if self.instance.pid() != pid:
                raise Failed("the server is another one now")
        finally:
            done.set()
            session.close()
        return {"names": names, "pid": pid, "at": self._rt.now()}

    # --- data

    def make_cluster(
        self, recovering: Callable[[], object], copied: Report, cancel: Cancellation
    ) -> dict[str, Any]:
        """New cluster with its roles; nothing listens. A failure leaves `<data_dir>.failed`."""
        self.instance.require_storage()
        make_cluster(self.instance, recovering, copied, cancel)
        return {}

    def clone(
        self, wanted: Clone, system_identifier: str | None, copied: Report, cancel: Cancellation
    ) -> dict[str, Any]:
        """A replica, in place of what is there with `wipe`; PostgreSQL is stopped first (rule 7)."""
        self.instance.require_storage()
        ground = Ground(self.instance, self._upstream, self._stop_for_good, self._note_wiped)
        return make_replica(ground, wanted, system_identifier, copied, cancel)

    def _stop_for_good(self, cancel: Cancellation) -> None:
        self._hooks.before_stop(cancel)
        if cancel.is_set():
            raise Failed("cancelled")
        self._stop("immediate")

    def _note_wiped(self, how: str, leader: Source, cancel: Cancellation) -> None:
        """What is half a copy, or half rewound, was written down when that was begun."""
        data_dir = self.instance.effective.config.data_dir
        whole = self._pg.data_dir_state(data_dir) is DataDirState.VALID
        if not whole or self._pg.rewind_interrupted(data_dir):
            return
        try:
            log.info("%s is wiped: %s", data_dir, self.rejoin.note_wiped(how, leader, cancel))
        except PostgresError as fault:
            if how != "reinitialize":
                raise
            log.error("wiped on request, and what goes is not written down: %s", fault)


def _close_when_cancelled(session: Session, cancel: Cancellation, done: Event) -> None:
    while not done.is_set():
        if cancel.wait(CANCEL_LOOK_S):
            session.close()
            return
