"""PostgreSQL servers: their life, their sessions, who may write; and the truth about it.

Theory. A `Server` is one postmaster with what it started, from its exec to the end of its last process. It
knows no agent, and no role beyond what its data directory and signals tell it. What it does later happens
through `later` (kept while the host is frozen or the disk hangs) or `_step` (dropped as well when the server
was stopped, killed or started anew meanwhile). `writable_now` is the truth that invariants rest on: some
backend that lives and runs could commit, or a new one could be had.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from postgres_ctl.facts import ControlState, InstanceSample, Lsn, TimelineSwitch, goes_on_in
from tests.simulation import replication
from tests.simulation.machine import Proc
from tests.simulation.samples import Settings, build_sample, start_time
from tests.simulation.sessions import Connection, Done, Sessions
from tests.simulation.truth import Land, Truth
from tests.simulation.wal import (
    CHECKPOINT,
    END_OF_RECOVERY,
    SHUTDOWN,
    DataDir,
    Record,
    end_of,
    in_common,
)

if TYPE_CHECKING:
    from tests.simulation.engine import Timer
    from tests.simulation.host import SimHost
__all__ = ["Connection", "Land", "Server", "Truth"]


class Server:
    """One postmaster. `phase` is "starting", "running", "stopping" or "gone" (it, not all that it left)."""

    def __init__(self, host: SimHost, dd: DataDir, proc: Proc) -> None:
        self.host, self.dd, self.proc = host, dd, proc
        self.land, self.engine, self.network = host.land, host.engine, host.land.network
        self.endpoint = host.endpoint
        self.member = host.name
        self.phase = "starting"
        self.in_recovery = True
        #: "" answers; "sql": no new session and none of the agent's, old ones go on; "all": nobody.
        self.hung = ""
        #: The disk hangs: its processes are in uninterruptible sleep.
        self.stuck = False
        self.replay_paused = False
        self.replay_delay_s = 0.0
        self.replay = 0
        self.receive: int | None = None
        self.receiver = replication.Receiver(self)
        self.walsenders: list[replication.Link] = []
        self.sessions = Sessions(self)
        #: Living sessions, in the order they came.
        self.connections = self.sessions.open
        self.settings = Settings()
        self.was_primary = False
        self.writable_now = False
        self._consistent = 0
        self._smart = False
        self._promoting = False
        self._turn = 0
        self._held: list[Callable[[], None]] = []
        self._sample: InstanceSample | None = None
        self.start_time = start_time(host.engine.now)
        proc.on_signal, proc.on_kill, proc.on_stop = self._signalled, self._killed, self.look_writable
        self.helper = self._new_helper()

    def __repr__(self) -> str:
        return f"<postgres {self.member} pid {self.pid} {self.phase}>"

    @property
    def pid(self) -> int:
        return self.proc.pid

    @property
    def gone(self) -> bool:
        return self.phase == "gone"

    @property
    def any_alive(self) -> bool:
        """Postmaster, or anything it left."""
        return self.proc.alive or self.helper.alive or bool(self.connections)

    @property
    def held_up(self) -> bool:
        """Nothing of it runs now."""
        return self.host.frozen or self.stuck or not self.host.powered

    @property
    def in_recovery_as_standby(self) -> bool:
        """Whether it lets anybody in or not, a fast stop is then a clean one."""
        return self.in_recovery and self.dd.control.state is ControlState.IN_ARCHIVE_RECOVERY

    @property
    def timeline(self) -> int:
        return self.dd.timeline

    @property
    def upstream_address(self) -> tuple[str, int] | None:
        return self.settings.upstream

    @property
    def slot(self) -> str | None:
        return self.settings.slot

    # --- time -------------------------------------------------------------------------------------

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """On this server while it lives; kept while it is held up."""
        return self.host.later(delay_s, partial(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if self.gone:
            return
        if self.stuck:
            self._held.append(call)
        else:
            call()

    def _step(self, kind: str, call: Callable[[], None]) -> None:
        """`call` when work of that kind is done, unless the server's life took another turn by then."""
        delay_s, fail = self.host.trouble(f"server.{kind}")
        step = partial(self._crash_now, f"{kind} failed") if fail else call
        self.later(self.host.takes(kind) + delay_s, partial(self._take_step, self._turn, step))

    def _take_step(self, turn: int, call: Callable[[], None]) -> None:
        if turn == self._turn:
            call()

    def _new_turn(self) -> None:
        self._turn += 1
        self._promoting = False

    # --- the truth --------------------------------------------------------------------------------

    def door(self) -> str:
        """What a new session finds: "open", "refused" or "silent" (no answer at all)."""
        if self.host.frozen or not self.host.powered:
            return "silent"
        if not self.gone and (self.stuck or self.hung or self.proc.stopped):
            return "silent"
        return "open" if self.phase == "running" and not self._smart else "refused"

    def dirty(self) -> None:
        """Something that a sample shows has changed."""
        self._sample = None

    def look_writable(self) -> None:
        """To be called after every change of what `writable_now` is made of."""
        can = False
        if not self.in_recovery and not self.held_up and self.hung != "all":
            can = self.door() == "open" or any(c.alive for c in self.connections)
        if can == self.writable_now:
            return
        self.writable_now = can
        self.was_primary = self.was_primary or can
        for truth in self.land.truths:
            if can:
                truth.writable(self)
            else:
                truth.not_writable(self)

    # --- start ------------------------------------------------------------------------------------

    def start(self) -> None:
        """The postmaster's exec has just succeeded."""
        dd, control = self.dd, self.dd.control
        dd.promote_file = False
        self.load_settings(first=True)
        if dd.state != "valid":
            self._step("exec", partial(self._exit, 1))
            return
        if dd.damaged:
            self._mixed("started after an interrupted pg_rewind")
        as_standby = dd.standby_signal
        if as_standby and not _is_child(dd):
            self._step("exec", partial(self._exit, 1))
            return
        self.replay = control.redo
        if not as_standby:
            self._start_primary()
            return
        # A crashed primary recovers as one first: all its own WAL, before it may follow anybody.
        crashed = not control.clean and control.state is not ControlState.IN_ARCHIVE_RECOVERY
        if crashed:
            control.minimum, control.minimum_timeline = len(dd.records), dd.timeline
        control.state = ControlState.IN_ARCHIVE_RECOVERY
        self._consistent = max(control.minimum, control.checkpoint + 1)
        self._step("crash-recovery" if crashed else "start", self._replay_local)

    def _start_primary(self) -> None:
        clean, control = self.dd.control.clean, self.dd.control
        if not clean:
            control.state = ControlState.IN_CRASH_RECOVERY
        self._step("start" if clean else "crash-recovery", partial(self._open_primary, not clean))

    def _open_primary(self, recovered: bool) -> None:
        """Accept writes, on the timeline it is on."""
        dd = self.dd
        self.in_recovery = False
        if recovered:
            self._write_checkpoint(CHECKPOINT)
        dd.control.state = ControlState.IN_PRODUCTION
        self.replay = len(dd.records)
        self._open()

    def _open(self) -> None:
        self.phase = "running"
        self.dirty()
        self.look_writable()

    def _replay_local(self) -> None:
        """Everything up to the consistent point is read; the rest of the local WAL takes its time."""
        here = len(self.dd.records)
        self._replay_to(min(self._consistent, here))
        if here > self.replay:
            self._step("replay-local", partial(self._replay_to, here))
        self.receiver.look()

    def _replay_to(self, count: int) -> None:
        dd = self.dd
        self.replay = max(self.replay, min(count, len(dd.records)))
        self.dirty()
        if self.phase == "starting" and self.replay >= self._consistent:
            self._open()
        if self.replay == len(dd.records):
            self.receiver.look()

    # --- replication, the standby's side ----------------------------------------------------------

    def wants_stream(self) -> bool:
        """All local WAL is replayed, and there is somebody to follow."""
        return (
            self.in_recovery
            and self.phase in ("starting", "running")
            and self.settings.upstream is not None
            and self.replay >= len(self.dd.records)
            and not self._promoting
            and not self.host.full
        )

    def stream_begins(self, upstream: Server) -> None:
        if self.receive is None or upstream.timeline != self.timeline:
            self.receive = replication.first_received(self.dd.end)
        self.dirty()

    def received(self, source: list[Record], count: int) -> None:
        """A batch came: the first `count` records of `source` are now to be ours."""
        dd = self.dd
        mine = dd.records
        both = min(len(mine), count)
        if both and mine[both - 1] is not source[both - 1]:
            gone = dd.cut(in_common(mine, source))
            self._mixed(f"streamed over {len(gone)} records of another history")
            self.host.discard(gone, "mixed")
            mine = dd.records
        if count > len(mine):
            mine.extend(source[len(mine) : count])
            dd.durable = len(mine)
        self.receive = end_of(count)
        self.dirty()
        if not self.replay_paused:
            if self.replay_delay_s:
                self.later(self.replay_delay_s, partial(self._replay_to, len(mine)))
            else:
                self._replay_to(len(mine))
        for link in self.walsenders:
            link.poke()

    def _mixed(self, why: str) -> None:
        self.dd.mixed = True
        for truth in self.land.truths:
            truth.mixed(self.host, why)

    def set_replay(self, paused: bool = False, delay_s: float = 0.0) -> None:
        """Fault: replay stands still, or lags behind what is received, seconds."""
        self.replay_paused, self.replay_delay_s = paused, delay_s
        if not paused and self.in_recovery and self.phase == "running":
            self._replay_to(len(self.dd.records))

    # --- sessions and their WAL -------------------------------------------------------------------

    def connect(self, name: str) -> Connection | None:
        """A session, when the door is open; for whoever has reached the server already."""
        return self.sessions.connect(name)

    def write(
        self, connection: Connection, payload: object, done: Done | None = None, commit: str = "on"
    ) -> Record | None:
        """One transaction of a client; `commit` is synchronous_commit: "on", "local" or "off".

        Returns its record; None when it cannot write (see `connection.alive`) or is held up: then it is done
        when the server goes on, one per session. `done` is called once it is acknowledged: perhaps before
        this returns, perhaps never.
        """
        return self.sessions.write(connection, payload, done, commit)

    def session_ended(self) -> None:
        self.look_writable()
        if self._smart and not self.connections:
            self._smart_done()

    def grew(self) -> None:
        """There is more durable WAL."""
        if not self.in_recovery:
            self.replay = len(self.dd.records)
        self.dirty()
        for link in self.walsenders:
            link.poke()

    def standby_has_more(self) -> None:
        """A standby told its position, came or went: waiting commits, a stop that waits."""
        self.dirty()
        self.sessions.release()
        if self.phase == "stopping":
            self._senders_done()

    # --- settings, SQL commands -------------------------------------------------------------------

    def load_settings(self, first: bool = False) -> None:
        """Read the files: at the start, and on a reload."""
        self.settings = Settings.read(self.dd, self.settings, first)
        if self.sessions.use_names(self.settings.sync_names, first):
            self._step("publish-sync", self.sessions.publish)
        self.dirty()

    def hang_up(self) -> None:
        """pg_reload_conf(): the postmaster is told."""
        self.host.signal_now(self.proc, signal.SIGHUP)

    def reload(self) -> None:
        before = self.settings
        self.load_settings()
        if not self.in_recovery or self.phase == "stopping":
            return
        if (before.upstream, before.slot) != (self.settings.upstream, self.settings.slot):
            self.receiver.stop()
        self.receiver.look(at_once=True)

    def checkpoint(self, done: Callable[[], object]) -> None:
        """CHECKPOINT; on a standby a restartpoint."""
        self._step("checkpoint", partial(self._checkpointed, done))

    def _checkpointed(self, done: Callable[[], object]) -> None:
        self.sessions.publish()
        if self.in_recovery:
            self._restartpoint()
        else:
            self._write_checkpoint(CHECKPOINT)
            self.grew()
        done()

    def _write_checkpoint(self, kind: str) -> Record:
        dd = self.dd
        record = dd.append(kind, dd.timeline, self.member)
        dd.control.checkpoint = dd.control.redo = record.index
        dd.control.timeline = record.timeline
        dd.control.minimum = dd.control.minimum_timeline = 0
        return record

    def _restartpoint(self) -> None:
        """pg_control moves to the last checkpoint replayed; what was replayed has to be replayed again."""
        dd, control = self.dd, self.dd.control
        for index in range(self.replay - 1, control.checkpoint, -1):
            record = dd.records[index]
            if record.kind in (CHECKPOINT, SHUTDOWN):
                control.checkpoint = control.redo = index
                control.timeline = record.timeline
                break
        if self.replay > control.minimum:
            control.minimum = self.replay
            control.minimum_timeline = dd.records[self.replay - 1].timeline

    def sample(self, sampled_at: float) -> InstanceSample:
        """As `postgres_ctl.queries` would read it; only the time is new while nothing changed."""
        if self._sample is None:
            self._sample = build_sample(self)
        sample = object.__new__(InstanceSample)
        fields = sample.__dict__
        fields.update(self._sample.__dict__)
        fields["sampled_at"] = sampled_at
        return sample

    @property
    def waits_for_wal(self) -> bool:
        """All local WAL is replayed: the startup process waits for more."""
        return self.in_recovery and self.replay >= len(self.dd.records)

    # --- promote ----------------------------------------------------------------------------------

    def _promote(self) -> None:
        if not self.in_recovery or self.phase != "running" or self._promoting or not self.dd.promote_file:
            return
        self.dd.promote_file = False
        self._promoting = True
        self.receiver.stop()
        self._step("promote", self._promoted)

    def _promoted(self) -> None:
        """All received WAL is replayed; a new timeline begins behind it."""
        if self.host.full:
            self._crash_now("could not write to file: No space left on device")
            return
        dd, old = self.dd, self.dd.timeline
        new = dd.newest_known(old) + 1
        count = len(dd.records)
        switch = TimelineSwitch(old, Lsn(dd.end), "no recovery target specified")
        dd.histories[new] = (*(dd.history(old) or ()), switch)
        dd.history_times[new] = self.engine.now
        dd.append(END_OF_RECOVERY, new, self.member)
        dd.standby_signal = False
        # Until the next checkpoint only this tells crash recovery of the new timeline.
        dd.control.state = ControlState.IN_PRODUCTION
        dd.control.minimum, dd.control.minimum_timeline = len(dd.records), new
        self.in_recovery, self._promoting = False, False
        self.receive = None
        self._end_links()
        self.grew()
        for truth in self.land.truths:
            truth.promoted(self, new, count)
        self.look_writable()
        self._step("timed-checkpoint", partial(self._checkpointed, lambda: None))

    # --- stop -------------------------------------------------------------------------------------

    def _signalled(self, signum: int) -> None:
        """To the postmaster."""
        if signum == signal.SIGINT:
            self._fast()
        elif signum == signal.SIGTERM:
            self._be_smart()
        elif signum == signal.SIGQUIT:
            self._immediate()
        elif signum == signal.SIGUSR1:
            self._promote()
        elif signum == signal.SIGHUP:
            self.reload()

    def _be_smart(self) -> None:
        if self.phase != "running" or not self.connections:
            self._fast()
            return
        self._smart = True
        self.dirty()
        self.look_writable()

    def _smart_done(self) -> None:
        self._smart = False
        self._fast()

    def _fast(self) -> None:
        """Sessions end at once; then the shutdown checkpoint; then walsenders send what is left (rule 3)."""
        if self.phase in ("stopping", "gone"):
            return
        was_open = self.phase == "running"
        self._smart = False
        self._new_turn()
        self.phase = "stopping"
        self.receiver.stop()
        self.sessions.end_all()
        self.dirty()
        self.look_writable()
        if not was_open and not self.in_recovery_as_standby:
            self._step("immediate", partial(self._exit, 0))
            return
        if not self.in_recovery:
            self.dd.control.state = ControlState.SHUTTING_DOWN
        self._step("shutdown", self._shut_down)

    def _shut_down(self) -> None:
        control = self.dd.control
        if self.in_recovery:
            self._restartpoint()
            control.state = ControlState.SHUT_DOWN_IN_RECOVERY
            self._exit(0)
            return
        self._write_checkpoint(SHUTDOWN)
        control.state = ControlState.SHUT_DOWN
        self.grew()
        self._senders_done()

    def _senders_done(self) -> None:
        """The postmaster goes when every connected standby has the shutdown checkpoint."""
        if self.dd.control.state is ControlState.SHUT_DOWN and not any(
            link.flush < len(self.dd.records) for link in self.walsenders
        ):
            self._exit(0)

    def _immediate(self) -> None:
        if self.gone:
            return
        self._new_turn()
        self._smart = False
        self.phase = "stopping"
        self.receiver.stop()
        self.sessions.end_all()
        self.look_writable()
        self._step("immediate", partial(self._exit, 2))

    def _crash_now(self, why: str) -> None:
        """A PANIC of the startup process, or the like: the postmaster gives up."""
        self.host.log(f"FATAL: {why}")
        self._exit(1)

    def crash_restart(self) -> None:
        """Fault: a backend crashed. The postmaster ends all sessions, recovers, and goes on as it was."""
        if self.phase != "running":
            return
        self._new_turn()
        self.phase = "starting"
        self.receiver.stop()
        self._end_links()
        self.sessions.end_all()
        self._lose_unflushed()
        if not self.helper.alive:
            self.helper = self._new_helper()
        self.dirty()
        self.look_writable()
        if self.in_recovery:
            self._step("crash-recovery", self._replay_local)
        else:
            self._start_primary()

    def _exit(self, status: int) -> None:
        """The postmaster's own end: all its children went before."""
        self.sessions.end_all()
        self._ended()
        self.host.end_proc(self.helper, 0)
        self.host.end_proc(self.proc, status)

    def _ended(self) -> None:
        self._new_turn()
        self.receiver.stop()
        self._end_links()
        self._lose_unflushed()
        self.phase = "gone"
        self._smart = False
        self.look_writable()

    def _lose_unflushed(self) -> None:
        """WAL that was only in shared memory."""
        if self.dd.durable < len(self.dd.records) and self.dd.state == "valid":
            self.host.discard(self.dd.cut(self.dd.durable), "crashed")

    def _end_links(self) -> None:
        for link in list(self.walsenders):
            link.upstream_ends()
        self.walsenders = []

    # --- killed -----------------------------------------------------------------------------------

    def _killed(self) -> None:
        """kill -9 of the postmaster: its backends go on until they notice (H9)."""
        self._ended()
        delay_s = self.host.takes("orphans") + self.host.trouble("server.orphans")[0]
        self.host.later(delay_s, self._orphans_notice)

    def _orphans_notice(self) -> None:
        if self.stuck:
            self._held.append(self._orphans_notice)
            return
        self.sessions.end_all()
        self.host.end_proc(self.helper, 1)

    def _new_helper(self) -> Proc:
        """The checkpointer stands for all of PostgreSQL's own processes."""
        helper = self.host.spawn_proc("postgres", self.dd.path, self.proc)
        helper.on_signal = self._helper_signalled
        helper.on_kill = partial(self._helper_signalled, int(signal.SIGKILL))
        return helper

    def _helper_signalled(self, signum: int) -> None:
        if signum in (signal.SIGQUIT, signal.SIGKILL):
            if not self.helper.killed:
                self.host.end_proc(self.helper, 2)
            self.child_crashed()

    def child_crashed(self) -> None:
        """A child died as only a crash or a kill makes it: the postmaster starts all over."""
        if not self.proc.stopped:
            self.crash_restart()

    def power_lost(self) -> None:
        """The host lost its power: nothing of it runs on, nobody is told."""
        self._new_turn()
        self.phase = "gone"
        for connection in list(self.connections):
            self.sessions.ends(connection, tell=False)
        for link in list(self.walsenders):
            link.upstream_ends()
        self.walsenders = []
        self.receiver.stop()
        self.look_writable()

    # --- held up ----------------------------------------------------------------------------------

    def hang(self, how: str) -> None:
        """Fault: "sql" or "all" as in `hung`; "" ends it."""
        self.hung = how
        self.dirty()
        self.go_on()

    def stick(self, stuck: bool) -> None:
        """Fault: the disk hangs and every process but the postmaster sleeps uninterruptibly; or goes on."""
        if stuck == self.stuck:
            return
        self.stuck = stuck
        procs = [self.helper, *(c.proc for c in self.connections)]
        if stuck:
            for proc in procs:
                self.host.stick(proc)
            self.look_writable()
            return
        for proc in [p for p in self.host.processes_in(self.dd.path) if p.stuck]:
            self.host.unstick(proc)
        serving = [self.helper, *(c.proc for c in self.connections)]
        for proc in [p for p in procs if p not in serving]:
            self.host.end_proc(proc, 0)
        held, self._held = self._held, []
        for call in held:
            call()
        self.go_on()

    def go_on(self) -> None:
        """It may run again: what waited in sockets is done."""
        self.look_writable()
        if self.held_up or self.hung == "all":
            return
        for link in self.walsenders:
            link.poke()
        self.sessions.go_on()


def _is_child(dd: DataDir) -> bool:
    """Else the startup process ends: "requested timeline is not a child of this server's history"."""
    control = dd.control_data()
    newest = dd.newest_known(control.newest_timeline)
    return newest == control.newest_timeline or goes_on_in(control, dd.histories[newest])
