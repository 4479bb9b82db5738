"""The agent's side of the guardian: find or start it, talk to it, and stand in for it when it is frozen.

Theory. `GuardianLink` is one connection. A reader thread takes answers and events; any thread may ask. Every
request has a deadline and ends in a value: done, refused with the reason, or `NoAnswer`, which means that it
may or may not have happened (ask `status`). Without an answer the guardian gets a SIGCONT, in case somebody
stopped it, and is never killed: its death is PostgreSQL's. `fence_directly` is what the agent does when
the guardian cannot (hazard H10).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from haagent import guardian_spawn
from haagent.guardian_direct import fence_directly
from haagent.guardian_os import boottime
from haagent.guardian_spawn import GuardianSilent, GuardianUnavailable, encode
from haagent.guardian_types import (
    Armed,
    ArmedState,
    ArmRefused,
    Done,
    Fencing,
    GuardianEvent,
    GuardianLost,
    GuardianState,
    Handle,
    LastExit,
    NoAnswer,
    PostmasterExited,
    PostmasterState,
    Refused,
    Simple,
    Started,
    StartRefused,
    event_from,
    state_from,
)
from haagent.guardian_wire import MAX_MESSAGE_BYTES

__all__ = [
    "ArmRefused",
    "Armed",
    "ArmedState",
    "Done",
    "Fencing",
    "GuardianEvent",
    "GuardianLink",
    "GuardianLost",
    "GuardianSilent",
    "GuardianState",
    "GuardianUnavailable",
    "Handle",
    "LastExit",
    "NoAnswer",
    "PostmasterExited",
    "PostmasterState",
    "Refused",
    "Simple",
    "StartRefused",
    "Started",
    "fence_directly",
]

log = logging.getLogger(__name__)


class _Pending:
    def __init__(self) -> None:
        self.ready = threading.Event()
        self.answer: dict[str, Any] | None = None


# --- the link -----------------------------------------------------------------------------------------


class GuardianLink:
    """One connection as the controller. Thread safe. Deadlines are seconds from now.

    `on_event` runs in the reader thread: it must not ask the guardian anything, only pass the event on.
    """

    def __init__(
        self,
        sock: socket.socket,
        data_dir: str,
        hello: GuardianState,
        on_event: Callable[[GuardianEvent], None],
    ) -> None:
        self.hello = hello
        self.data_dir = data_dir
        self._sock = sock
        self._on_event = on_event
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._last_id = 0
        self._lost: str | None = None
        self._closing = False
        self._reader = threading.Thread(target=self._read, name="guardian-link", daemon=True)
        self._reader.start()

    @classmethod
    def connect(
        cls,
        state_dir: str | os.PathLike[str],
        data_dir: str | os.PathLike[str],
        on_event: Callable[[GuardianEvent], None],
        python: str = sys.executable,
        deadline_s: float = 5.0,
        instance: str | None = None,
        idle_exit_s: float = 60.0,
    ) -> GuardianLink:
        """Reach the living guardian of this data directory, or start one, and become its controller.

        `instance` names this agent process to the others. Raises GuardianUnavailable.
        """
        data = os.path.realpath(data_dir)
        name = instance or f"{os.getpid()}@{boottime():.3f}"
        sock, hello = guardian_spawn.find(os.fspath(state_dir), data, name, python, deadline_s, idle_exit_s)
        return cls(sock, data, hello, on_event)

    def close(self) -> None:
        """Leave the guardian alone with its server. No event follows."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join(1.0)

    # --- requests

    def arm(
        self, handle: Handle, fence_at: float, hard_at: float, deadline_s: float, spares_standby: bool = False
    ) -> Armed | ArmRefused | NoAnswer:
        """Stop the server at `fence_at` so that nothing is writable at `hard_at` (CLOCK_BOOTTIME seconds).

        `spares_standby`: one that was neither started nor told to write is left running."""
        fields = {
            "handle": {"session": handle[0], "epoch": handle[1]},
            "fence_at": fence_at,
            "hard_at": hard_at,
            **({"spares_standby": True} if spares_standby else {}),
        }
        answer = self._ask("arm", deadline_s, **fields)
        if isinstance(answer, NoAnswer):
            return answer
        if isinstance(answer, Refused):
            return ArmRefused(answer.reason)
        return Armed(answer["fence_at"], answer["hard_at"])

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        *,
        writable: bool,
        epoch: int | None,
        deadline_s: float,
        log: str | None = None,
    ) -> Started | StartRefused | NoAnswer:
        """Start the postmaster; `argv[0]` is its full path, `env` its whole environment.

        `writable` needs the armed `epoch` and no standby.signal or recovery.signal; otherwise one of the two.
        """
        fields = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": cwd,
            "log": log,
            "writable": writable,
            "epoch": epoch,
        }
        answer = self._ask("start", deadline_s, **fields)
        if isinstance(answer, NoAnswer):
            return answer
        if isinstance(answer, Refused):
            return StartRefused(answer.reason)
        return Started(answer["pid"], answer["start_ticks"])

    def promote(self, epoch: int, deadline_s: float) -> Simple:
        """Ask the running standby to promote, under the armed `epoch`."""
        return self._simple("promote", deadline_s, epoch=epoch)

    def stop(self, mode: str, deadline_s: float) -> Simple:
        """`smart`, `fast`, `immediate` or `kill`: only signals; the end comes as PostmasterExited."""
        return self._simple("stop", deadline_s, mode=mode)

    def close_epoch(self, epoch: int, deadline_s: float) -> Simple:
        """Close `epoch` and all before it for ever: before the leader key is released (H6)."""
        return self._simple("close", deadline_s, epoch=epoch)

    def disarm(self, deadline_s: float) -> Simple:
        """Pause: the deadline no longer fires, until the next `arm`."""
        return self._simple("disarm", deadline_s)

    def watch(self, epoch: int, device: str, testing: bool, timeout_s: int, deadline_s: float) -> Simple:
        """Have the watchdog device reset the host `timeout_s` after the last proof of the armed `epoch`, or
        sooner, when the guardian cannot act. `testing`: it is a FIFO."""
        fields = {"epoch": epoch, "device": device, "testing": testing, "timeout_s": timeout_s}
        return self._simple("watch", deadline_s, **fields)

    def unwatch(self, device: str, testing: bool, deadline_s: float) -> Simple:
        """Switch the watchdog off, also one that a guardian which died has left on."""
        return self._simple("unwatch", deadline_s, device=device, testing=testing)

    def hold(self, held: str | None, deadline_s: float) -> Simple:
        """Leave a text (at most 32 KiB) for the next agent; secrets are fine, it is never written."""
        return self._simple("hold", deadline_s, held=held)

    def adopt(self, pid: int, start_ticks: int, deadline_s: float, writable: bool = True) -> Simple:
        """Watch and fence a postmaster somebody else started; `writable=False` only for a known standby."""
        return self._simple("adopt", deadline_s, pid=pid, start_ticks=start_ticks, writable=writable)

    def exit(self, deadline_s: float, force: bool = False) -> Simple:
        """End the guardian. With `force`, and disarmed, an adopted postmaster is left alone."""
        self._closing = True
        answer = self._simple("exit", deadline_s, force=force)
        self._closing = isinstance(answer, Done)
        return answer

    def status(self, deadline_s: float) -> GuardianState | Refused | NoAnswer:
        """What the guardian knows now."""
        answer = self._ask("status", deadline_s)
        return answer if isinstance(answer, Refused | NoAnswer) else state_from(answer)

    # --- inside

    def _simple(self, op: str, deadline_s: float, **fields: object) -> Simple:
        answer = self._ask(op, deadline_s, **fields)
        return answer if isinstance(answer, Refused | NoAnswer) else Done()

    def _ask(self, op: str, deadline_s: float, **fields: object) -> dict[str, Any] | Refused | NoAnswer:
        pending = _Pending()
        with self._lock:
            if self._lost is not None:
                return NoAnswer(self._lost)
            self._last_id += 1
            request_id = self._last_id
            self._pending[request_id] = pending
        try:
            self._sock.send(
                encode({"id": request_id, "op": op, **fields}), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            )
        except BlockingIOError:
            return self._unanswered(request_id, "the guardian does not read")
        except OSError as fault:
            return self._unanswered(request_id, f"cannot send: {fault.strerror}")
        if not pending.ready.wait(deadline_s):
            return self._unanswered(request_id, f"no answer to {op} within {deadline_s:g} s")
        answer = pending.answer
        if answer is None:
            return NoAnswer(self._lost or "connection lost")
        if answer.get("ok") is True:
            return answer
        return Refused(str(answer.get("refused") or f"guardian: {answer.get('error')}"))

    def _unanswered(self, request_id: int, cause: str) -> NoAnswer:
        with self._lock:
            self._pending.pop(request_id, None)
        guardian_spawn.wake(self.hello.guardian_pid)
        return NoAnswer(cause)

    def _read(self) -> None:
        cause = "the guardian closed the connection"
        try:
            while raw := self._sock.recv(MAX_MESSAGE_BYTES):
                message = json.loads(raw)
                if message.get("event") == "replaced":
                    cause = f"another agent took over ({message.get('by')})"
                else:
                    self._dispatch(message)
        except OSError as fault:
            cause = f"cannot read: {fault.strerror}"
        except (ValueError, KeyError, TypeError, AttributeError) as fault:
            cause = f"the guardian sent nonsense: {type(fault).__name__}: {fault}"
        self._end(cause)

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._deliver(event_from(message))
            return
        with self._lock:
            pending = self._pending.pop(message.get("id", 0), None)
        if pending is not None:  # else its asker has given up
            pending.answer = message
            pending.ready.set()

    def _end(self, cause: str) -> None:
        with self._lock:
            self._lost = cause
            waiting, self._pending = list(self._pending.values()), {}
        for pending in waiting:
            pending.ready.set()
        self._sock.close()
        if not self._closing:
            self._deliver(GuardianLost(cause))

    def _deliver(self, event: GuardianEvent | None) -> None:
        if event is None:
            return
        try:
            self._on_event(event)
        except Exception:
            log.exception("the handler of guardian events failed on %s", type(event).__name__)
