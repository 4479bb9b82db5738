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
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from haagent import guardian_os
from haagent.guardian_os import boottime
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
from haagent.guardian_wire import LOCK_NAME, MAX_MESSAGE_BYTES, PROTOCOL, SOCKET_NAME

__all__ = [
    "ArmRefused",
    "Armed",
    "ArmedState",
    "Done",
    "Fencing",
    "GuardianEvent",
    "GuardianLink",
    "GuardianLost",
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

#: Between two looks for a guardian that holds the lock but does not listen yet, or is about to end, seconds.
#: Nothing tells us which of the two it is.
BUSY_RETRY_S = 0.02
#: Between two rounds of SIGKILL of `fence_directly`, seconds.
KILL_RETRY_S = 0.1
_LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from haagent.guardian import main; main(sys.argv[2:])"
)
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ")

log = logging.getLogger(__name__)


class GuardianUnavailable(Exception):
    """No guardian could be reached or started; one line says why."""


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
        deadline = boottime() + deadline_s
        state, data = os.fspath(state_dir), os.path.realpath(data_dir)
        name = instance or f"{os.getpid()}@{boottime():.3f}"
        try:
            _prepare(state)
            directory_fd = guardian_os.open_directory(state)
        except OSError as fault:
            raise GuardianUnavailable(f"state directory {state}: {fault.strerror}") from None
        try:
            while True:
                sock = _dial(directory_fd, deadline)
                hello = None if sock is None else _greet(sock, name, deadline)
                if sock is not None and hello is not None:
                    sock.settimeout(None)
                    return cls(sock, data, hello, on_event)
                outcome = _spawn(python, state, data, idle_exit_s, deadline)
                if outcome not in ("ready", "busy"):
                    raise GuardianUnavailable(f"the guardian did not start: {outcome}")
                if boottime() >= deadline:
                    raise GuardianUnavailable(
                        f"{_lock_holder(directory_fd)} holds {state} and does not listen"
                    )
                if outcome == "busy":
                    time.sleep(BUSY_RETRY_S)
        finally:
            os.close(directory_fd)

    def close(self) -> None:
        """Leave the guardian alone with its server. No event follows."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._reader:
            self._reader.join(1.0)

    # --- requests

    def arm(
        self, handle: Handle, fence_at: float, hard_at: float, deadline_s: float
    ) -> Armed | ArmRefused | NoAnswer:
        """Stop the server at `fence_at` so that nothing is writable at `hard_at` (CLOCK_BOOTTIME seconds)."""
        fields = {
            "handle": {"session": handle[0], "epoch": handle[1]},
            "fence_at": fence_at,
            "hard_at": hard_at,
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
                _encode({"id": request_id, "op": op, **fields}), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
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
        _continue(self.hello.guardian_pid)
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


# --- messages -----------------------------------------------------------------------------------------


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps({"v": PROTOCOL, **message}).encode()


# --- finding and starting it --------------------------------------------------------------------------


def _prepare(state_dir: str) -> None:
    """The directory is ours and nobody else looks in: whoever reaches the socket commands PostgreSQL."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(state_dir, 0o700)
    info = os.lstat(state_dir)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
        raise GuardianUnavailable(
            f"state directory {state_dir}: must be a directory of this user with mode 0700"
        )


def _dial(directory_fd: int, deadline: float) -> socket.socket | None:
    """None when nobody listens."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    left_s = max(deadline - boottime(), 0.001)
    # Not settimeout, which makes connect non-blocking: it fails at once when the listener's queue is full.
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(left_s), int(left_s % 1 * 1e6))
    )
    try:
        sock.connect(guardian_os.path_in(directory_fd, SOCKET_NAME))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    except OSError as fault:
        sock.close()
        raise GuardianUnavailable(f"guardian socket: {fault.strerror or fault}") from None
    return sock


def _greet(sock: socket.socket, instance: str, deadline: float) -> GuardianState | None:
    """Say hello; None when the guardian was about to end. One that does not answer gets SIGCONT, once."""
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    left_s = max(deadline - boottime(), 0.002)
    try:
        sock.send(_encode({"id": 0, "op": "hello", "instance": instance}))
        try:
            sock.settimeout(left_s / 2)
            raw = sock.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            _continue(pid)
            raw = sock.recv(MAX_MESSAGE_BYTES)
    except TimeoutError:
        sock.close()
        raise GuardianUnavailable(f"the guardian (pid {pid}) does not answer") from None
    except OSError:
        raw = b""
    if not raw:
        sock.close()
        return None
    answer = json.loads(raw)
    if answer.get("ok") is not True:
        sock.close()
        raise GuardianUnavailable(
            f"the guardian (pid {pid}) refuses: {answer.get('refused') or answer.get('error')}"
        )
    return state_from(answer)


def _spawn(python: str, state_dir: str, data_dir: str, idle_exit_s: float, deadline: float) -> str:
    """Start a guardian: "ready", "busy" when another one holds the lock, or what went wrong."""
    reader, writer = os.pipe()
    root = str(Path(__file__).resolve().parent.parent)
    command = [python, "-I", "-S", "-c", _LAUNCH, root, "haagent-guardian", state_dir, data_dir]
    environment = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    try:
        try:
            process = subprocess.Popen(
                [*command, str(writer), f"{idle_exit_s:g}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                start_new_session=True,
                cwd="/",
                env={**environment, "LC_ALL": "C.UTF-8"},
            )
        finally:
            os.close(writer)
        report = _read_report(reader, deadline)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)  # it forks the guardian and ends
        return report
    except OSError as fault:
        return f"{python}: {fault.strerror}"
    finally:
        os.close(reader)


def _read_report(reader: int, deadline: float) -> str:
    report = b""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while poll.poll(max(deadline - boottime(), 0) * 1000):
        chunk = os.read(reader, 4096)
        if not chunk:
            return report.decode("utf-8", "replace") or "it ended without a word (see guardian.log)"
        report += chunk
    return "no word from it in time"


def _lock_holder(directory_fd: int) -> str:
    try:
        fd = os.open(LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return "somebody"
    with open(fd) as file:
        return f"process {file.read(20).strip() or 'unknown'}"


def _continue(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGCONT)


# --- without the guardian -----------------------------------------------------------------------------


def fence_directly(
    postmaster_pid: int, data_dir: str, grace_s: float = 0.2, deadline_s: float = 2.0
) -> list[int]:
    """End PostgreSQL without the guardian (frozen): SIGQUIT, after `grace_s` SIGKILL, to all of it.

    `data_dir` is the resolved path; only processes that work in it are touched. Returns the pids that still
    live after `deadline_s`; an empty list proves that nothing writes any more. Zombies count as dead: their
    parent, the guardian, is the frozen one.
    """
    started = boottime()
    victims = _Victims(postmaster_pid, data_dir)
    try:
        victims.signal_all(signal.SIGQUIT)
        victims.wait(started + grace_s)
        while victims.living() and boottime() < started + deadline_s:
            victims.stop_postmaster()
            victims.signal_all(signal.SIGKILL)
            victims.wait(min(started + deadline_s, boottime() + KILL_RETRY_S))
        return victims.living()
    finally:
        victims.release()


class _Victims:
    """The processes that work in a data directory, each held by a pidfd."""

    def __init__(self, postmaster_pid: int, data_dir: str) -> None:
        info = guardian_os.read_stat(postmaster_pid)
        ours = info is not None and guardian_os.cwd_of(postmaster_pid) == data_dir
        self.comm = info.comm if ours and info is not None else "postgres"
        self.postmaster_pid = postmaster_pid
        self.data_dir = data_dir
        self.held: dict[int, int] = {}

    def living(self) -> list[int]:
        """Look again: PostgreSQL may have forked."""
        for pid in guardian_os.processes_in(self.data_dir, self.comm):
            if pid in self.held:
                continue
            fd = guardian_os.open_pidfd(pid)
            if fd is not None and guardian_os.cwd_of(pid) == self.data_dir:
                self.held[pid] = fd
            elif fd is not None:
                os.close(fd)
        return sorted(pid for pid, fd in self.held.items() if not guardian_os.has_died(fd))

    def signal_all(self, signum: int) -> None:
        for pid in self.living():
            guardian_os.send_signal(self.held[pid], signum)

    def stop_postmaster(self) -> None:
        """So that it forks nothing between the look and the kill."""
        if self.postmaster_pid in self.held:
            guardian_os.send_signal(self.held[self.postmaster_pid], signal.SIGSTOP)

    def wait(self, until: float) -> None:
        """Until all that are held are dead, or the time has come."""
        poll = select.poll()
        for fd in self.held.values():
            poll.register(fd, select.POLLIN)
        left = len(self.held)
        while left and (left_s := until - boottime()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                left -= 1

    def release(self) -> None:
        for fd in self.held.values():
            os.close(fd)
