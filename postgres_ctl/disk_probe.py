"""Can what PostgreSQL writes still be written? A program of its own: `python disk_probe.py DATA_DIR`.

Theory. Nothing ends a write to storage that does not answer, not even SIGKILL, and a process that sleeps in
one does not go away either: with all its sockets and locks. So the agent never writes a probe itself; it
starts this and gives up waiting. One page is written and synced where the data are, and where the WAL is if
that is another filesystem, into files without a name: nothing is left behind, in no base backup either.

Says in one line: `ok`, `full WHY`, `broken WHY`, or `unknown WHY` where there is no data directory.
"""

from __future__ import annotations

import errno
import os
import sys

_PAGE_BYTES = 8192
#: Less room than this is none: PostgreSQL extends a table by so much at once.
_LEAST_BYTES = 1 << 20
#: Where the filesystem knows no files without a name. Base backups and pg_rewind leave such names out.
_NAME = "pgsql_tmp.haagent_probe"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_BROKEN = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN)
_NAMELESS_UNKNOWN = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL)


def main(data_dir: str) -> str:
    """The line to print."""
    try:
        os.stat(f"{data_dir}/PG_VERSION")
        for directory in _directories(data_dir):
            left = _write_page(directory)
            if left < _LEAST_BYTES:
                return f"full less than {_LEAST_BYTES >> 20} MiB is left: {directory}"
    except OSError as fault:
        kind = "full" if fault.errno in _FULL else "broken" if fault.errno in _BROKEN else "unknown"
        return f"{kind} {fault.strerror}: {data_dir}"
    return "ok"


def _directories(data_dir: str) -> tuple[str, ...]:
    wal = f"{data_dir}/pg_wal"
    apart = os.stat(wal).st_dev != os.stat(data_dir).st_dev
    return (data_dir, wal) if apart else (data_dir,)


def _write_page(directory: str) -> int:
    """Bytes that are left."""
    fd, name = _open(directory)
    try:
        os.write(fd, os.urandom(_PAGE_BYTES))  # zeros might be stored as nothing
        os.fsync(fd)
        room = os.fstatvfs(fd)
    finally:
        os.close(fd)
        if name is not None:
            os.unlink(name)
    return room.f_bavail * room.f_frsize


def _open(directory: str) -> tuple[int, str | None]:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_WRONLY, 0o600), None
    except OSError as fault:
        if fault.errno not in _NAMELESS_UNKNOWN:
            raise
    name = f"{directory}/{_NAME}"
    return os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, 0o600), name


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1]) + "\n")
