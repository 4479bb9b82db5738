"""The user's programs: callbacks, which nobody waits for, and hooks, which a job waits for (contract 6.6).

Theory. Callbacks are started by a thread of their own, so that neither the loop nor a job waits for a fork or
a hung disk. Each slot runs one at a time: a new one kills the one before with its children. They survive the
agent's end, as an on_stop that moves an address away has to. A hook has a deadline and can be cancelled.

All get the agent's environment without its own variables (which may hold passwords), and speak for themselves
on its stdout and stderr.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Sequence

from postgres_ctl.api import Cancellation, inherited_environment, run_tool
from postgres_ctl.errors import ToolFailed
from postgres_ctl.process import children

log = logging.getLogger(__name__)


class SystemPrograms:
    """Callbacks are started in the order asked for. Thread safe."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[str, tuple[str, ...]] | threading.Event] = queue.SimpleQueue()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._thread: threading.Thread | None = None

    def call(self, slot: str, argv: Sequence[str]) -> None:
        """Start it soon, and kill what still runs in `slot` then. Never waits, never raises."""
        self._asked.put((slot, tuple(argv)))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)
            self._thread.start()

    def run(self, argv: Sequence[str], deadline_s: float, cancel: Cancellation, grace_s: float) -> str | None:
        """Run a hook to its end: None when it succeeded, else why not, with the last line it printed."""
        try:
            run_tool(argv, deadline_s, cancel=cancel, term_grace_s=grace_s, inherit=True)
        except ToolFailed as fault:
            return str(fault)
        return None

    def flush(self, deadline_s: float) -> None:
        """Wait until all that was asked for is started; not for its end."""
        if self._thread is None:
            return
        started = threading.Event()
        self._asked.put(started)
        started.wait(deadline_s)

    def _run(self) -> None:
        while True:
            item = self._asked.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            try:
                self._start(*item)
            except Exception:
                log.exception("a callback could not be started")

    def _start(self, slot: str, argv: tuple[str, ...]) -> None:
        what = " ".join(argv[-3:])
        before = self._running.pop(slot, None)
        if before is not None:
            _kill_with_children(before)
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, env=inherited_environment(), start_new_session=True
            )
        except OSError as fault:
            log.error("callback %s: %s: %s", what, argv[0], fault.strerror)
            return
        self._running[slot] = process
        threading.Thread(target=_bury, args=(process, what), name=f"callback-{slot}", daemon=True).start()


def _bury(process: subprocess.Popen[bytes], what: str) -> None:
    code = process.wait()
    log.log(logging.WARNING if code else logging.INFO, "callback %s ended with %s", what, code)


def _kill_with_children(process: subprocess.Popen[bytes]) -> None:
    """Its session, and what it started into other ones; one that has ended is left alone."""
    if process.poll() is not None:
        return
    below = _descendants(process.pid)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in below:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found = children(pid)
    return found + [deeper for child in found for deeper in _descendants(child)]
