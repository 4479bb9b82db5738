"""Being process 1 of a container: start the agent, pass signals on to it, bury the dead (contract 7.1).

Theory. Process 1 inherits every orphan and must reap it, and no signal reaches it that it has no handler
for. So it only does that; the agent is its child. An agent that ends by itself ends the container, with its
exit code. One that was killed by a signal is started again: guardian and PostgreSQL live on meanwhile and
would die with the container, and within the lease nobody notices (hazard H10).
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

#: Passed on to the agent.
PASSED = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGABRT),
)
#: These ask for the end: an agent killed by one of them, or after one, is not started again.
_LAST = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGABRT)
#: A killed agent is started again after this, seconds.
PAUSE_S = 1.0


def become_init() -> None:
    """Returns in the agent's process only: at once where this is not process 1, else in a child of it."""
    if os.getpid() != 1:
        return
    heard = {*PASSED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    while True:
        agent = os.fork()
        if agent == 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)
            return
        status, ending = _watch(agent, heard)
        code = os.waitstatus_to_exitcode(status)
        if code >= 0 or ending or _asked_to_end_within(PAUSE_S, heard):
            os._exit(code if code >= 0 else 128 - code)


def _watch(agent: int, heard: set[signal.Signals]) -> tuple[int, bool]:
    """Pass signals on and reap, until the agent is gone: its status, and whether the end was asked for."""
    ending = False
    while True:
        signum = signal.sigwait(heard)
        if signum == signal.SIGCHLD:
            status = _reap(agent)
            if status is not None:
                return status, ending
        else:
            ending = ending or signum in _LAST
            with contextlib.suppress(ProcessLookupError):
                os.kill(agent, signum)


def _asked_to_end_within(pause_s: float, heard: set[signal.Signals]) -> bool:
    end = time.monotonic() + pause_s
    while (left_s := end - time.monotonic()) > 0:
        got = signal.sigtimedwait(heard, left_s)
        if got is not None and got.si_signo in _LAST:
            return True
        _reap(0)
    return False


def _reap(agent: int) -> int | None:
    """Bury whoever is dead; the agent's status when it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == agent:
                found = status
    return found
