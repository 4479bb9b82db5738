"""Which processes belong to a data directory. Reads /proc; starts nothing, and stops nothing.

Theory. A pid in `postmaster.pid` proves nothing: the file survives kill -9 and reboots, pids are reused.
A pid is *the* postmaster only if its program is postgres and its working directory is the data directory;
a stranger that got the pid later fails one of the two. (Start times are not compared with the file: it has
wall clock seconds, which an administrator may have shifted since.) And a dead postmaster does not mean a
stopped server: a backend inside COPY goes on and acknowledges (hazard H9). `leftovers` is the proof of
"stopped".
"""

from __future__ import annotations

import os
import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from postgres_ctl.api import clean_environment
from postgres_ctl.errors import DataDirError, PostgresUnavailable

#: GUCs passed on the command line, in this order (contract 5.4, sample process.txt).
COMMAND_LINE_GUCS = (
    "listen_addresses",
    "port",
    "cluster_name",
    "wal_level",
    "hot_standby",
    "max_connections",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "track_commit_timestamp",
    "max_replication_slots",
    "max_worker_processes",
    "wal_log_hints",
)


@dataclass(frozen=True)
class PostmasterPid:
    """`postmaster.pid`. Lines a starting postmaster has not written yet are None."""

    pid: int
    data_dir: str
    #: Seconds since the epoch, wall clock.
    start_time: int
    port: int | None = None
    socket_dir: str | None = None
    listen_addr: str | None = None
    shmem_key: int | None = None
    shmem_id: int | None = None
    #: "starting", "stopping", "ready" or "standby".
    status: str | None = None


def read_postmaster_pid(data_dir: str) -> PostmasterPid | None:
    """Parse `postmaster.pid`; None when it is absent, empty or half written."""
    try:
        with open(os.path.join(data_dir, "postmaster.pid"), encoding="utf-8", errors="replace") as f:
            lines = [line.strip() for line in f]
    except FileNotFoundError:
        return None
    except OSError as e:
        raise DataDirError(f"cannot read {data_dir}/postmaster.pid: {e.strerror}") from None
    try:
        # A single-user server writes its pid negated.
        pid, start_time = abs(int(lines[0])), int(lines[2])
    except (IndexError, ValueError):
        return None
    lines += [""] * (8 - len(lines))
    shmem = lines[6].split()
    return PostmasterPid(
        pid=pid,
        data_dir=lines[1],
        start_time=start_time,
        port=int(lines[3]) if lines[3].isdigit() else None,
        socket_dir=lines[4] or None,
        listen_addr=lines[5] or None,
        shmem_key=int(shmem[0]) if len(shmem) == 2 and shmem[0].isdigit() else None,
        shmem_id=int(shmem[1]) if len(shmem) == 2 and shmem[1].isdigit() else None,
        status=lines[7] or None,
    )


def find_postmaster(data_dir: str) -> PostmasterPid | None:
    """The living postmaster (or single-user server) of this data directory, None when there is none."""
    recorded = read_postmaster_pid(data_dir)
    return recorded if recorded is not None and is_postmaster(recorded, data_dir) else None


def is_postmaster(recorded: PostmasterPid, data_dir: str) -> bool:
    """Is that pid alive and running postgres in this very data directory?"""
    return _is_postgres(recorded.pid) and _works_in(recorded.pid, _identity(data_dir))


def reload(data_dir: str) -> None:
    """SIGHUP to the postmaster of this data directory, as pg_reload_conf() sends it; a server that does not
    let anybody in yet hears it, too. Raises PostgresUnavailable when there is none."""
    found = find_postmaster(data_dir)
    descriptor = pidfd_open(found.pid) if found is not None else None
    if found is None or descriptor is None:
        raise PostgresUnavailable("no postmaster to reload")
    try:
        # Looked at again through the descriptor: the pid may have become somebody else's meanwhile.
        if not is_postmaster(found, data_dir):
            raise PostgresUnavailable("no postmaster to reload")
        signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    except ProcessLookupError:
        raise PostgresUnavailable("the postmaster has just ended") from None
    finally:
        os.close(descriptor)


def pidfd_open(pid: int) -> int | None:
    """A descriptor that becomes readable at the process' exit; None when it is gone. Close it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid its identity. None when gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def program_name(pid: int) -> str:
    """Base name of the program it runs, "" when gone or hidden.

    Not the process' title, which anybody may set; " (deleted)" after an upgrade of the package is cut.
    """
    try:
        return os.path.basename(os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)"))
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """Living children of `pid` (of any of its threads); zombies are left out."""
    found = []
    for candidate in _pids():
        fields = _stat(candidate)
        if fields and int(fields[1]) == pid and fields[0] != "Z":
            found.append(candidate)
    return found


def processes_with(variable: bytes) -> list[int]:
    """Living processes started with exactly this `NAME=value` in their environment; not this one."""
    return [pid for pid in _pids() if pid != os.getpid() and variable in _environment(pid)]


def leftovers(data_dir: str, ignore: Collection[int] = ()) -> list[int]:
    """Every process that may still change this data directory or acknowledge commits, sorted.

    Counted: processes working in the data directory that are postgres or have no terminal (archive and
    restore commands; an administrator's shell does not count), and all attached to its shared memory.
    `ignore` and this process itself are left out. Raises DataDirError when the shared memory is in use
    by processes that cannot be seen: then nothing is proven.
    """
    skip = {os.getpid(), *ignore}
    home = _identity(data_dir)
    found = {pid for pid in _pids() if pid not in skip and home is not None and _serves(pid, home)}
    found |= set(_attached(data_dir, found)) - skip
    return sorted(found)


def _serves(pid: int, home: tuple[int, int]) -> bool:
    if not _works_in(pid, home):
        return False
    fields = _stat(pid)
    has_terminal = bool(fields) and fields[4] != "0"
    return _is_postgres(pid) or not has_terminal


def _attached(data_dir: str, known: Iterable[int]) -> list[int]:
    recorded = read_postmaster_pid(data_dir)
    if recorded is None or recorded.shmem_id is None or recorded.shmem_key is None:
        return []
    if not _attach_count(recorded.shmem_key, recorded.shmem_id):
        return []
    found = [pid for pid in _pids() if _maps_segment(pid, recorded.shmem_key, recorded.shmem_id)]
    if not found and not list(known) and _attach_count(recorded.shmem_key, recorded.shmem_id):
        raise DataDirError(f"shared memory {recorded.shmem_id} of {data_dir} is in use by unknown processes")
    return found


def _attach_count(key: int, segment: int) -> int:
    """nattch of the segment; 0 when it is gone or belongs to somebody else by now."""
    with open("/proc/sysvipc/shm", encoding="ascii") as f:
        for line in f.readlines()[1:]:
            fields = line.split()
            if int(fields[1]) == segment and int(fields[0]) & 0xFFFFFFFF == key & 0xFFFFFFFF:
                return int(fields[6])
    return 0


def _maps_segment(pid: int, key: int, segment: int) -> bool:
    name = f"/SYSV{key & 0xFFFFFFFF:08x}"
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as f:
            return any(name in line and line.split()[4] == str(segment) for line in f)
    except OSError:
        return False


def postmaster_argv(
    bin_dir: str,
    data_dir: str,
    config_file: str,
    protected_gucs: Mapping[str, str],
    postgres: str = "postgres",
) -> list[str]:
    """Arguments of the postmaster. `protected_gucs` must hold every name of COMMAND_LINE_GUCS."""
    argv = [os.path.join(bin_dir, postgres), "-D", data_dir, f"--config-file={config_file}"]
    return argv + [f"--{name}={protected_gucs[name]}" for name in COMMAND_LINE_GUCS]


def postmaster_environment() -> dict[str, str]:
    """What the postmaster gets of our environment; PG_MALLOC_ARENA_MAX is meant for it (contract 5.1)."""
    arenas = os.environ.get("PG_MALLOC_ARENA_MAX", "")
    return clean_environment(extra={"MALLOC_ARENA_MAX": arenas} if arenas else {})


# --- /proc ----------------------------------------------------------------------------------------


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the third (state) on; [] when the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            return f.read().rpartition(")")[2].split()
    except OSError:
        return []


def _environment(pid: int) -> list[bytes]:
    """[] of one that is gone, or another user's."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as f:
            return f.read().split(b"\0")
    except OSError:
        return []


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _works_in(pid: int, home: tuple[int, int] | None) -> bool:
    return home is not None and _identity(f"/proc/{pid}/cwd") == home


def _is_postgres(pid: int) -> bool:
    return program_name(pid) in ("postgres", "postmaster")
