"""Probes of PostgreSQL and of its storage, each in a thread of its own: what may hang hangs there alone.

Theory. The loop never waits for a probe; it sees the last result (`Observation.vitals`), and is woken by each
that fails, because how long that goes on decides. What a result means is `haagent.core.vitality`'s business.
Results are about one server, or one data directory: when that has become another, they begin anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from haagent.core.vitals import ProbeFacts, Vitals
from haagent.instance import LocalInstance
from haagent.runtime import Runtime
from postgres_ctl.facts import ProbeAnswer, ProbeFault

log = logging.getLogger(__name__)

#: Between two probes while all is well, and while they fail, seconds. After SOON of those the pause grows
#: where new connections are not answered: each may be one more process that hangs.
EVERY_S, AGAIN_S, SLOWEST_S, SOON = 5.0, 1.0, 60.0, 20
#: A probe gets `retry_timeout`, and not less than this, seconds: on a busy host a new connection takes time.
LEAST_S = 2.0

Look = Callable[[float], ProbeAnswer | None]


class Probe:
    """One kind of probe. `subject` is what it is about; None: there is nothing to look at."""

    def __init__(
        self,
        runtime: Runtime,
        name: str,
        look: Look,
        subject: Callable[[], object],
        deadline_s: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._now, self._cond = runtime.now, runtime.condition()
        self._name, self._look, self._subject = name, look, subject
        self._deadline_s, self._on_change = deadline_s, on_change
        self._facts = ProbeFacts()
        #: What that is about.
        self._about: object = None
        self._ended = False
        self._thread = runtime.thread(self._run, f"probe-{name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._cond:
            self._ended = True
            self._cond.notify_all()

    def facts(self) -> ProbeFacts:
        """Any thread; never blocks. What was found about another server says nothing of this one."""
        facts, about = self._facts, self._about
        return facts if about == self._subject() else ProbeFacts(failures=facts.failures)

    def _run(self) -> None:
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._ended, self._pause_s())
                if self._ended:
                    return
            about = self._subject()
            if about != self._about or about is None:
                self._forget()
            self._about = about
            if about is None:
                continue
            began_at = self._now()
            try:
                answer = self._look(max(LEAST_S, self._deadline_s()))
            except Exception:  # a dead prober would leave its last result standing for ever
                log.exception("the probe of the %s failed unexpectedly", self._name)
                answer = None
            if self._subject() == about:
                self._note(began_at, answer)

    def _pause_s(self) -> float:
        failed = self._facts.in_a_row
        if failed == 0:
            return EVERY_S
        if self._facts.fault is not ProbeFault.UNREACHED:
            return AGAIN_S
        return min(SLOWEST_S, AGAIN_S * 2.0 ** min(10, max(0, failed - SOON)))

    def _forget(self) -> None:
        self._facts = ProbeFacts(failures=self._facts.failures)

    def _note(self, began_at: float, answer: ProbeAnswer | None) -> None:
        if answer is None:
            self._forget()
            return
        old = self._facts
        timed = replace(old, began_at=began_at, took_s=self._now() - began_at, cause=answer.cause)
        if answer.fault is None:
            self._facts = replace(timed, fault=None, failing_since=None, in_a_row=0)
        else:
            since = began_at if old.failing_since is None else old.failing_since
            self._facts = replace(
                timed,
                fault=answer.fault,
                failing_since=since,
                in_a_row=old.in_a_row + 1,
                failures=old.failures + 1,
            )
        if old.fault is not answer.fault:
            level = logging.INFO if answer.fault is None else logging.WARNING
            log.log(level, "probe of the %s: %s", self._name, answer.cause or "all is well again")
        if old.fault is not answer.fault or answer.fault is not None:
            self._on_change()


class Prober:
    """All probes of one instance."""

    def __init__(self, runtime: Runtime, instance: LocalInstance, on_change: Callable[[], None]) -> None:
        self._instance = instance
        server, disk = instance.pg.server_probe(), instance.pg.disk_probe()

        def look_at_server(deadline_s: float) -> ProbeAnswer | None:
            return server.look(instance.own_target, deadline_s)

        def look_at_disk(deadline_s: float) -> ProbeAnswer | None:
            return disk.look(instance.config.postgresql.data_dir, deadline_s)

        def about_disk() -> object:
            return instance.config.postgresql.data_dir

        self._server = Probe(
            runtime, "server", look_at_server, instance.known_pid, self._deadline_s, on_change
        )
        self._disk = Probe(runtime, "disk", look_at_disk, about_disk, self._deadline_s, on_change)

    def _deadline_s(self) -> float:
        return self._instance.settings.retry_timeout_s

    def start(self) -> None:
        self._server.start()
        self._disk.start()

    def stop(self) -> None:
        self._server.stop()
        self._disk.stop()

    def facts(self) -> Vitals:
        """What the last probes found; never blocks."""
        return Vitals(self._server.facts(), self._disk.facts())
