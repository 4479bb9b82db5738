"""What the guardian's logic asks of the operating system, and whom it answers: ports, no code.

Theory. The logic (guardian_logic, guardian_fence, guardian_server) decides; a `Kernel` knows the time, forks,
signals and reaps. The process has the real one (guardian_loop); a simulation brings its own and
drives the same logic. The kernel calls the logic back only from its own event loop, never from inside a
call of the logic, with one exception named at `reap`. Times are CLOCK_BOOTTIME seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

Message = dict[str, Any]

#: First byte of a postmaster's report: exec comes next. Anything after it says why exec failed.
ABOUT_TO_EXEC = b"X"


class StartOrder(NamedTuple):
    """How to start the postmaster; `fence_at` bounds a writable start: not one exec at or after it."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: str
    data_dir: str
    writable: bool
    fence_at: float | None


class WatchdogOrder(NamedTuple):
    """What a child does with the watchdog device: keep it alive for `timeout_s`, or switch it off (0).

    `program`: set its timeout, too. Not one write at or after `before`, except to switch it off."""

    device: str
    testing: bool
    timeout_s: int
    program: bool
    before: float


class Peer(Protocol):
    """One connection. Messages are without the protocol's version, which the wire adds."""

    @property
    def open(self) -> bool:
        """False for good once it was closed, from either side."""

    def send(self, message: Message) -> None:
        """Never waits, never raises: one that does not take it is closed. A closed one gets nothing."""

    def close(self) -> None:
        """Nothing is read from it any more."""


class Held(Protocol):
    """A process that is no child of ours, held so that a later user of its pid is never mistaken for it."""

    @property
    def pid(self) -> int: ...

    @property
    def start_ticks(self) -> int:
        """Since boot."""

    @property
    def comm(self) -> str:
        """Its short name."""

    @property
    def cwd(self) -> str | None:
        """Its working directory when it was opened; None when that cannot be told."""

    def signal(self, signum: int) -> None:
        """One that is dead, or not ours to signal, is no fault."""

    def release(self) -> None:
        """Its death is of no interest any more. Harmless when repeated, or after its death."""


class Kernel(Protocol):
    """Everything the logic asks for. A pid that does not exist is no fault anywhere."""

    @property
    def pid(self) -> int:
        """The guardian's own."""

    # --- time

    def now(self) -> float: ...

    def set_timer(self, at_s: float | None) -> None:
        """Call `due` at `at_s` (at once when past), or not at all; in place of what was set before."""

    # --- children

    def fork_postmaster(self, order: StartOrder, on_report: Callable[[bytes], None]) -> int:
        """Its pid. The report comes in pieces, b"" at its end: at the exec, or at the child's end.

        Raises OSError.
        """

    def fork_promote_file(self, data_dir: str) -> int:
        """A child that writes the promote signal file and exits with 0 or an errno. Raises OSError."""

    def fork_note(self, text: str) -> int:
        """A child that writes one line to the guardian's log. Raises OSError."""

    def fork_watchdog(self, order: WatchdogOrder, on_end: Callable[[int, str], None]) -> int:
        """A child that carries out the order; `on_end` is told its pid and what went wrong, "" when nothing.

        The device that the first one opens stays open until one switches it off. Raises OSError.
        """

    def reap(self) -> tuple[int, int] | None:
        """One dead child: pid, and exit code or minus the signal; None when nobody is to be reaped now.

        What is left of a dead postmaster's report, and the end of a watchdog's child, is told before this
        returns its pid.
        """

    def has_children(self) -> bool:
        """False proves that no child is left, nor a dead one to be reaped (ECHILD, H9)."""

    def kill(self, pid: int, signum: int) -> None:
        """For children of ours or of a stopped process: their pids are not used again meanwhile."""

    # --- processes, ours or not

    def start_ticks(self, pid: int) -> int:
        """Since boot; 0 when there is no such process."""

    def is_stopped(self, pid: int) -> bool:
        """True when SIGSTOP or a debugger holds it: it acts on no signal but SIGKILL and SIGCONT."""

    def children_of(self, pid: int) -> list[int]:
        """Direct children. One may be missing while its siblings exit: look again."""

    def signal_children(self, pid: int, signum: int) -> None:
        """To every direct child of `pid`, never to a later user of a child's pid."""

    def processes_in(self, directory: str, comm: str) -> list[int]:
        """Living processes named `comm` whose working directory is `directory`."""

    def hold(self, pid: int, on_death: Callable[[Held], None]) -> Held | None:
        """None when it is gone or cannot be held. `on_death` comes once, unless released before."""

    # --- the end

    def leave(self, why: str, farewell: Callable[[], None]) -> NoReturn:
        """End the guardian: nobody finds it any more, then `farewell`, then its end.

        A stand-in raises something that is no `Exception`; this logic must not be called after it.
        """
