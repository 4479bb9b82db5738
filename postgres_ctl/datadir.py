"""The data directory as files: what kind it is, wiping it, moving it aside, marking it incomplete.

Theory. Creating a data directory (initdb, clone) takes long and may die in the middle, agent and all. A
marker file beside it, written and synced before the first byte and removed after the last, tells an
incomplete copy of ours (may be wiped and made again) from a foreign directory (never touched). The
marker names the directory's device and inode, so that it does not condemn one restored by hand later.
Safety rule 7: nothing is wiped or moved while a process lives in it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator

from postgres_ctl.api import readable_within
from postgres_ctl.errors import DataDirError
from postgres_ctl.facts import DataDirState
from postgres_ctl.process import find_postmaster, leftovers, pidfd_open, program_name

#: An empty file system's own directory; it does not make a mount point "not empty".
_IGNORED_NAMES = frozenset({"lost+found"})


def data_dir_state(data_dir: str) -> DataDirState:
    """What is at `data_dir`. An incomplete copy of ours counts as empty. Raises DataDirError (unreadable)."""
    try:
        names = set(os.listdir(data_dir)) - _IGNORED_NAMES
    except FileNotFoundError:
        return DataDirState.MISSING_OR_EMPTY
    except OSError as e:
        raise DataDirError(f"cannot read data directory {data_dir}: {e.strerror}") from None
    if not names or is_incomplete(data_dir):
        return DataDirState.MISSING_OR_EMPTY
    is_valid = "PG_VERSION" in names and os.path.exists(os.path.join(data_dir, "global", "pg_control"))
    return DataDirState.VALID if is_valid else DataDirState.FOREIGN


# --- the marker of an incomplete copy -------------------------------------------------------------


class Marker:
    """A file beside the data directory that says something about this very directory."""

    def __init__(self, data_dir: str, suffix: str) -> None:
        self._data_dir = data_dir
        self.path = os.path.normpath(data_dir) + suffix

    def is_set(self) -> bool:
        try:
            with open(self.path, encoding="ascii") as f:
                return f.read() == self._identity()
        except (OSError, ValueError):
            return False

    def set(self) -> None:
        """Durably. Raises DataDirError."""
        try:
            write_synced(self.path, self._identity())
        except OSError as e:
            raise DataDirError(f"cannot write {self.path}: {e.strerror}") from None

    def clear(self) -> None:
        """Durably; an absent one is fine. Raises DataDirError."""
        try:
            os.unlink(self.path)
            fsync_dir(os.path.dirname(self.path))
        except FileNotFoundError:
            pass
        except OSError as e:
            raise DataDirError(f"cannot remove {self.path}: {e.strerror}") from None

    def _identity(self) -> str:
        found = os.stat(self._data_dir)
        return f"{found.st_dev}:{found.st_ino}\n"


def directory_id(data_dir: str) -> str:
    """Device and inode: tells a directory from another that was put in its place. "" when there is none."""
    try:
        found = os.stat(data_dir)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}"


def _incomplete_marker(data_dir: str) -> Marker:
    return Marker(data_dir, ".incomplete")


def is_incomplete(data_dir: str) -> bool:
    """Was this very directory being created by us, and never finished?"""
    return _incomplete_marker(data_dir).is_set()


@contextlib.contextmanager
def under_construction(data_dir: str, create: bool = True) -> Iterator[None]:
    """Make an empty `data_dir` for the block to fill; emptied again when the block raises.

    Left-overs of an earlier attempt of ours are wiped first. With `create` False a missing directory
    stays missing (some commands insist), and a crash in the block leaves a directory unknown to us.
    Raises DataDirError when the directory is in use or holds anything that is not ours.
    """
    if data_dir_state(data_dir) is not DataDirState.MISSING_OR_EMPTY:
        raise DataDirError(f"data directory {data_dir} is not empty")
    marker = _incomplete_marker(data_dir)
    end_orphaned_tools(data_dir)
    if marker.is_set():
        wipe(data_dir)
    if create or os.path.isdir(data_dir):
        try:
            os.makedirs(data_dir, mode=0o700, exist_ok=True)
            os.chmod(data_dir, 0o700)
        except OSError as e:
            raise DataDirError(f"cannot create data directory {data_dir}: {e.strerror}") from None
        marker.set()
    try:
        yield
    except BaseException:
        # The marker stays when the wipe fails: the directory is still not whole.
        wipe(data_dir)
        marker.clear()
        raise
    marker.clear()


# --- wiping and moving ----------------------------------------------------------------------------


def require_unused(data_dir: str) -> None:
    """Raises DataDirError while a postmaster or any left-over process lives in `data_dir`."""
    postmaster = find_postmaster(data_dir)
    if postmaster is not None:
        raise DataDirError(f"data directory {data_dir} is in use by postmaster {postmaster.pid}")
    pids = leftovers(data_dir)
    if pids:
        raise DataDirError(f"data directory {data_dir} is in use by processes {', '.join(map(str, pids))}")


#: Programs of ours that may outlive us in a data directory. Commands of the user's are left to the user.
_OUR_TOOLS = frozenset({"initdb", "pg_basebackup", "pg_rewind"})
_KILL_WAIT_S = 5.0


def end_orphaned_tools(data_dir: str) -> None:
    """Kill programs that an agent now dead left working in `data_dir`, and see them gone.

    Raises DataDirError when one does not go. Call it only when this agent runs nothing there itself.
    """
    for pid in leftovers(data_dir):
        if program_name(pid) not in _OUR_TOOLS:
            continue
        pidfd = pidfd_open(pid)
        if pidfd is None:
            continue
        try:
            # Asked again: only now is the pid certain to stay the same process.
            if program_name(pid) in _OUR_TOOLS:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                if not readable_within(pidfd, _KILL_WAIT_S):
                    raise DataDirError(f"process {pid} in {data_dir} survives SIGKILL")
        except ProcessLookupError:
            continue
        finally:
            os.close(pidfd)


def link_targets(data_dir: str) -> list[str]:
    """Directories that belong to the data directory by symbolic link: pg_wal and tablespaces."""
    return [os.path.realpath(link) for link in _links(data_dir)]


def wipe(data_dir: str) -> None:
    """Remove everything in `data_dir` and in what its links lead to; the directories themselves stay.

    They may be mount points, or in a parent we cannot write. Whether wiping is allowed at all (safety
    rule 7) is the caller's decision; this refuses only a directory in use. Raises DataDirError.
    """
    if not os.path.lexists(data_dir):
        return
    require_unused(data_dir)
    targets = link_targets(data_dir)
    try:
        # pg_control first: a half wiped directory must not look like a data directory.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(data_dir, "global", "pg_control"))
        for target in targets:
            _empty(target)
        _empty(data_dir)
    except OSError as e:
        raise DataDirError(f"cannot remove {e.filename or data_dir}: {e.strerror}") from None


def _empty(directory: str) -> None:
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.name in _IGNORED_NAMES:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)


def move_aside(data_dir: str, suffix: str = ".failed") -> str:
    """Rename `data_dir` and what its links lead to, each to `<path><suffix>`; returns the new path.

    An older one of that name is replaced. Raises DataDirError (in use, or cannot be renamed).
    """
    require_unused(data_dir)
    data_dir = os.path.normpath(data_dir)
    try:
        for link in _links(data_dir):
            target = os.path.realpath(link)
            _replace_dir(target, target + suffix)
            os.unlink(link)
            os.symlink(target + suffix, link)
        _replace_dir(data_dir, data_dir + suffix)
        fsync_dir(os.path.dirname(data_dir))
    except OSError as e:
        raise DataDirError(f"cannot move {data_dir} aside: {e}") from None
    _incomplete_marker(data_dir).clear()
    return data_dir + suffix


def _links(data_dir: str) -> list[str]:
    spaces = os.path.join(data_dir, "pg_tblspc")
    names = sorted(os.listdir(spaces)) if os.path.isdir(spaces) else []
    candidates = [os.path.join(data_dir, "pg_wal"), *(os.path.join(spaces, name) for name in names)]
    return [path for path in candidates if os.path.islink(path) and os.path.isdir(path)]


def _replace_dir(source: str, target: str) -> None:
    if os.path.lexists(target):
        shutil.rmtree(target)
    os.rename(source, target)


# --- durable small files --------------------------------------------------------------------------


def fsync_dir(path: str) -> None:
    fd = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_synced(path: str, content: str, mode: int | None = 0o600) -> None:
    """Replace `path` atomically and durably. `mode` None means by umask. A link is written through.

    Raises OSError; then `path` is what it was before.
    """
    path = os.path.realpath(path)
    temporary = f"{path}.haagent-{os.getpid()}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666 if mode is None else mode
    )
    try:
        with os.fdopen(fd, "wb") as f:
            if mode is not None:
                os.fchmod(f.fileno(), mode)
            f.write(content.encode("utf-8", errors="surrogateescape"))
            f.flush()
            os.fsync(f.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    fsync_dir(os.path.dirname(path))
