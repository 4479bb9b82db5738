"""The guardian: parent of the postmaster, and the one that stops it when the lease ends (rules 1 and 8).

Theory. A tiny single-threaded process, one per data directory, that outlives the agent. The agent *arms* it
with the deadline of its lease (`fence_at`, CLOCK_BOOTTIME) and renews that; if the deadline passes without a
newer one, the guardian stops PostgreSQL so that nothing is writable at `hard_at`, agent or no agent. Only the
guardian starts a server or promotes it, and only under an armed, unexpired, open epoch (H8).

This file is the start of the process. The rest, by file:
guardian_logic (requests and entry points) on top of guardian_fence (the fence, the end of a postmaster),
guardian_lease (deadline and epochs, pure), guardian_server (the postmaster, our own or adopted),
guardian_watchdog (the device that resets a host on which neither we nor the agent can act): all of it behind
guardian_kernel, the ports. guardian_loop is the real kernel and the event loop, guardian_child whatever
touches a disk or the watchdog (guardian_device), in forked children, guardian_wire the messages, guardian_os
the system calls.
guardian_client, guardian_spawn, guardian_types and guardian_direct are the agent's side. docs/guardian.md has
the protocol.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import socket
import sys

from haagent import guardian_os
from haagent.guardian_logic import GuardianLogic
from haagent.guardian_loop import BACKLOG, GuardianLoop, LinuxKernel, log_line
from haagent.guardian_wire import LOCK_NAME, LOG_NAME, SOCKET_NAME


def main(argv: list[str]) -> None:
    """`<state_dir> <data_dir> <ready_fd> <idle_exit_s>`: become the guardian, or tell `ready_fd` why not."""
    state_dir, data_dir, ready_fd, idle_exit_s = argv[0], argv[1], int(argv[2]), float(argv[3])
    if os.fork():
        os._exit(0)  # the agent is not our parent: its death and its terminal do not reach us
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    try:
        loop = _set_up(state_dir, data_dir, idle_exit_s)
    except BlockingIOError:
        os.write(ready_fd, b"busy")
        os._exit(1)
    except OSError as fault:
        os.write(ready_fd, str(fault).encode())
        os._exit(1)
    _settle(loop.logic)
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    loop.run()


def _set_up(state_dir: str, data_dir: str, idle_exit_s: float) -> GuardianLoop:
    """Take the lock (one guardian per data directory), then the socket. BlockingIOError: it is taken."""
    directory_fd = guardian_os.open_directory(state_dir)
    lock_fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(lock_fd, 0)
    os.write(lock_fd, f"{os.getpid()}\n".encode())
    try:
        os.unlink(SOCKET_NAME, dir_fd=directory_fd)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(guardian_os.path_in(directory_fd, SOCKET_NAME))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    log_fd = os.open(LOG_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600, dir_fd=directory_fd)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    guardian_os.become_subreaper()
    kernel = LinuxKernel(directory_fd)
    logic = GuardianLogic(kernel, state_dir, os.path.realpath(data_dir), idle_exit_s)
    return GuardianLoop(kernel, logic, listener)


def _settle(logic: GuardianLogic) -> None:
    """Touch what the fence will need, then keep it: out of swap, out of the OOM killer's sight, out of gc."""
    guardian_os.set_name("haagent-guard")
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-900")
    except OSError:
        pass  # only root may; the unit file can (OOMScoreAdjust)
    json.dumps(logic.state())
    guardian_os.children_of(os.getpid())
    gc.collect()
    gc.freeze()
    logic.memory_locked = guardian_os.lock_memory()
    locked = "locked" if logic.memory_locked else "not locked (LimitMEMLOCK)"
    log_line(f"guardian {os.getpid()} watches {logic.data_dir}, memory {locked}")


if __name__ == "__main__":
    main(sys.argv[1:])
