"""Find the guardian of a data directory, or start it, and say hello.

Theory. The guardian holds a lock beside the data directory for its life, so of several started at the
same time one stays; the others say "busy" and their starters connect to the one. It is started detached, in
its own session and with almost no environment, because it must outlive the agent.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import threading
from pathlib import Path
from typing import Any

from haagent import guardian_os
from haagent.guardian_os import boottime
from haagent.guardian_types import GuardianState, state_from
from haagent.guardian_wire import LOCK_NAME, MAX_MESSAGE_BYTES, PROTOCOL, SOCKET_NAME

#: Between two looks for a guardian that holds the lock but does not listen yet, or is about to end, seconds.
#: Nothing tells us which of the two it is.
BUSY_RETRY_S = 0.02
_LAUNCH = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from haagent.guardian import main; main(sys.argv[2:])"
)
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "TZ")


class GuardianUnavailable(Exception):
    """No guardian could be reached or started; one line says why."""


class GuardianSilent(GuardianUnavailable):
    """There is one, and it does not answer: nobody knows whether it will fence."""


def encode(message: dict[str, Any]) -> bytes:
    """One packet."""
    return json.dumps({"v": PROTOCOL, **message}).encode()


def find(
    state_dir: str, data_dir: str, instance: str, python: str, deadline_s: float, idle_exit_s: float
) -> tuple[socket.socket, GuardianState]:
    """Where hello was said to the living guardian, or a new one. Raises GuardianUnavailable."""
    deadline = boottime() + deadline_s
    try:
        _prepare(state_dir)
        directory_fd = guardian_os.open_directory(state_dir)
    except OSError as fault:
        raise GuardianUnavailable(f"state directory {state_dir}: {fault.strerror}") from None
    try:
        while True:
            sock = _dial(directory_fd, deadline)
            hello = None if sock is None else _greet(sock, instance, deadline)
            if sock is not None and hello is not None:
                sock.settimeout(None)
                return sock, hello
            outcome = _spawn(python, state_dir, data_dir, idle_exit_s, deadline)
            if outcome not in ("ready", "busy"):
                raise GuardianUnavailable(f"the guardian did not start: {outcome}")
            if boottime() >= deadline:
                holder = _lock_holder(directory_fd)
                raise GuardianUnavailable(f"{holder} holds {state_dir} and does not listen")
            if outcome == "busy":
                threading.Event().wait(BUSY_RETRY_S)
    finally:
        os.close(directory_fd)


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
    except BlockingIOError:
        sock.close()
        raise GuardianSilent("the guardian takes no connection") from None
    except OSError as fault:
        sock.close()
        raise GuardianUnavailable(f"guardian socket: {fault.strerror or fault}") from None
    return sock


def _greet(sock: socket.socket, instance: str, deadline: float) -> GuardianState | None:
    """Say hello; None when the guardian was about to end. One that does not answer gets SIGCONT, once."""
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    left_s = max(deadline - boottime(), 0.002)
    try:
        sock.send(encode({"id": 0, "op": "hello", "instance": instance}))
        try:
            sock.settimeout(left_s / 2)
            raw = sock.recv(MAX_MESSAGE_BYTES)
        except TimeoutError:
            wake(pid)
            raw = sock.recv(MAX_MESSAGE_BYTES)
    except TimeoutError:
        sock.close()
        raise GuardianSilent(f"the guardian (pid {pid}) does not answer") from None
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


def wake(pid: int) -> None:
    """In case somebody stopped it."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGCONT)
