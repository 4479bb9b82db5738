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
from postgres_ctl.process import find_postmaster, leftovers, pidfd_open, processes_with, program_name

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
    if _incomplete_marker(data_dir).is_in_doubt():
        return DataDirState.FOREIGN
    is_valid = "PG_VERSION" in names and os.path.exists(os.path.join(data_dir, "global", "pg_control"))
    return DataDirState.VALID if is_valid else DataDirState.FOREIGN


# --- the marker of an incomplete copy -------------------------------------------------------------


#: Second line of a marker: a program of the user's, which may replace the directory, works on it.
_HANDED_OVER = "handed over\n"


class Marker:
    """A file beside the data directory that says something about this very directory."""

    def __init__(self, data_dir: str, suffix: str) -> None:
        self._data_dir = data_dir
        self.path = os.path.normpath(data_dir) + suffix

    def is_set(self) -> bool:
        lines = self._lines()
        return bool(lines) and lines[0] == self._identity()

    def is_in_doubt(self) -> bool:
        """It was set for a program of the user's, and another directory is there now: that program's, or one
        that somebody restored by hand since then."""
        lines = self._lines()
        return lines[1:] == [_HANDED_OVER] and lines[0] != self._identity()

    def of_this_boot(self) -> bool:
        """Set with its boot, and the host was not started since: what was written then is not lost."""
        return self.is_set() and self._lines()[1:] == [_boot_id()]

    def set(self, handed_over: bool = False, with_boot: bool = False) -> None:
        """Durably. Raises DataDirError."""
        more = _HANDED_OVER if handed_over else _boot_id() if with_boot else ""
        try:
            write_synced(self.path, self._identity() + more)
        except OSError as e:
            raise DataDirError(f"cannot write {self.path}: {e.strerror}") from None

    def follow(self) -> None:
        """The program it was set for has made or replaced the directory: from now on it is about this one."""
        if self.is_in_doubt():
            self.set(handed_over=True)

    def _lines(self) -> list[str]:
        try:
            with open(self.path, encoding="ascii") as f:
                return f.readlines()
        except (OSError, ValueError):
            return []

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
        try:
            found = os.stat(self._data_dir)
        except FileNotFoundError:
            return "absent\n"
        return f"{found.st_dev}:{found.st_ino}\n"


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
        return f.read()


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
def under_construction(data_dir: str) -> Iterator[None]:
    """Make an empty `data_dir` for the block to fill; emptied again when the block raises.

    Left-overs of an earlier attempt of ours are wiped first. Raises DataDirError when the directory is in use
    or holds anything that is not ours.
    """
    marker = _require_room(data_dir)
    if marker.is_set():
        wipe(data_dir)
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


@contextlib.contextmanager
def handed_over(data_dir: str, keep: bool = False) -> Iterator[Marker]:
    """Let a program of the user's fill `data_dir` in the block; it counts as incomplete meanwhile.

    The directory itself is removed where that is possible: some programs insist on making it. Whoever watches
    them calls `Marker.follow`, else the death of this process leaves a directory that nobody touches. With
    `keep` nothing is wiped: not before, and not when the block raises; what is there is incomplete then.
    Raises DataDirError when the directory is in use or holds anything that is not ours.
    """
    marker = _require_room(data_dir)
    if keep:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
    else:
        if marker.is_set():
            wipe(data_dir)
        with contextlib.suppress(OSError):  # not there, a mount point, or in a directory of root's
            os.rmdir(data_dir)
    marker.set(handed_over=True)
    try:
        yield marker
    except BaseException:
        if keep:
            marker.follow()
        else:
            wipe(data_dir)
            marker.clear()
        raise
    marker.clear()


def _require_room(data_dir: str) -> Marker:
    """The marker of a directory that may be filled, and in which nobody works any more."""
    if data_dir_state(data_dir) is not DataDirState.MISSING_OR_EMPTY:
        raise DataDirError(f"data directory {data_dir} is not empty")
    end_orphaned_tools(data_dir)
    end_orphans_of(data_dir)
    claim(data_dir)
    return _incomplete_marker(data_dir)


def condemn(data_dir: str) -> None:
    """From now on what is there counts as incomplete, and will never be started, though all of it stays.

    Whether that is allowed is the caller's decision, as with `wipe`. Raises DataDirError."""
    require_unused(data_dir)
    _incomplete_marker(data_dir).set(handed_over=True)


# --- a new cluster that nobody has led yet --------------------------------------------------------


def _unclaimed_marker(data_dir: str) -> Marker:
    return Marker(data_dir, ".unclaimed")


def mark_unclaimed(data_dir: str) -> None:
    """The new cluster in here is whole, and nobody leads it yet: another member may make one of its own,
    perhaps of the same backup, and lead that one. Raises DataDirError."""
    _unclaimed_marker(data_dir).set()


def is_unclaimed(data_dir: str) -> bool:
    return _unclaimed_marker(data_dir).is_set()


def claim(data_dir: str) -> None:
    """It is the cluster's from now on: only for a holder of the leader key, and for what is made anew."""
    _unclaimed_marker(data_dir).clear()


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
_KILL_PASSES = 100


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


#: In the environment of the user's programs that fill a data directory: which one.
WORKS_ON = "HAAGENT_WORKS_ON"


def end_orphans_of(data_dir: str) -> None:
    """Kill the user's programs that an agent now dead left to fill `data_dir`, and see them gone.

    Known by their environment, which all they start inherits. Raises DataDirError when one does not go. Call
    it only when this agent runs nothing there itself.
    """
    mark = f"{WORKS_ON}={os.path.realpath(data_dir)}".encode()
    for _ in range(_KILL_PASSES):  # one that is killed may have started another just before
        found = processes_with(mark)
        if not found:
            return
        for pid in found:
            _kill_marked(pid, mark, data_dir)
    raise DataDirError(f"programs that fill {data_dir} go on starting others")


def _kill_marked(pid: int, mark: bytes, data_dir: str) -> None:
    pidfd = pidfd_open(pid)
    if pidfd is None:
        return
    try:
        if pid not in processes_with(mark):  # asked again: only now is the pid certain to stay the same
            return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not readable_within(pidfd, _KILL_WAIT_S):
            raise DataDirError(f"process {pid}, which fills {data_dir}, survives SIGKILL")
    except ProcessLookupError:
        pass
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
