"""Disks that fill up or stop answering, under a directory of a test.

    with Disk(cluster.nodes[0].data_dir) as disk:
        disk.fill(); disk.free()        # not a byte left; all of it back
        disk.hang(); disk.resume()      # whoever waits for the disk sleeps uninterruptibly, kill -9 or not

Theory. `stoppable_device.py` is a disk in the memory of a process; a loop device and ext4 over it make it a
filesystem like any other. `hang` is SIGSTOP to that process: the kernel gets no answer, as from a dead
storage path. What is in the page cache can still be read. The device dies with the test process, and the
kernel then fails all I/O, so that nothing hangs for longer than the test lives. Mounts that a killed test
left behind are taken away by the next disk (`sweep_abandoned`).

Rule for tests: resume before anything is closed or reported, because looking at a hung disk hangs. A test
that breaks it is freed after `LIMIT_S`; no signal could do that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import processes
from tests.support.wait import DEADLINE_S, wait_for

#: Room for a small PostgreSQL and some WAL, bytes.
SIZE_BYTES = 512 * 1024**2
#: No disk hangs longer than this, seconds: far beyond what a test waits for.
LIMIT_S = 300.0
_PREFIX = "haagent-disk-"
_SERVER = Path(__file__).with_name("stoppable_device.py")
_BALLAST = "ballast"
#: The pieces in which the last free room is taken, largest first, bytes.
_PIECES_BYTES = (16 * 1024**2, 1024**2, 64 * 1024, 4096)
#: Unmounting waits for I/O that was held up; mkfs and mount for a busy machine; seconds.
_TOOL_S = 60.0


def unavailable() -> str | None:
    """Why there can be no `Disk` on this machine; None when there can."""
    if os.geteuid() != 0:
        return "needs root"
    lacking = [path for path in ("/dev/fuse", "/dev/loop-control") if not os.access(path, os.R_OK | os.W_OK)]
    lacking += [program for program in ("mkfs.ext4", "mount", "umount") if shutil.which(program) is None]
    return f"needs {', '.join(lacking)}" if lacking else None


class Disk:
    """A filesystem at `mount_point`, owned by the user of PostgreSQL; `with` mounts it and takes it away.

    noatime: to read what is in the page cache never writes, so that it can be looked at while the disk hangs.
    """

    def __init__(self, mount_point: Path, size_bytes: int = SIZE_BYTES, *, noatime: bool = False) -> None:
        self.mount_point, self.size_bytes = mount_point, size_bytes
        self._options = "loop,noatime" if noatime else "loop"
        self._home: Path | None = None
        self._lock_fd = -1
        self._device: subprocess.Popen[bytes] | None = None
        self._limit: threading.Timer | None = None

    # --- life -------------------------------------------------------------------------------------

    def open(self) -> None:
        sweep_abandoned()
        self._home = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock_fd = _lock(self._home)
        device = self._home / "device"
        device.touch()
        command = [sys.executable, str(_SERVER), str(device), str(self.size_bytes)]
        self._device = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            pass_fds=(self._lock_fd,),
        )
        assert self._device.stdout is not None
        assert self._device.stdout.readline() == b"mounted\n", "the device did not start"
        # Without a reserve for root, who fills it up.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(device))
        self.mount_point.mkdir(mode=0o700, exist_ok=True)
        _run("mount", "-o", self._options, str(device), str(self.mount_point))
        (self.mount_point / "lost+found").rmdir()
        user = pwd.getpwnam("postgres")
        os.chown(self.mount_point, user.pw_uid, user.pw_gid)
        self.mount_point.chmod(0o700)

    def close(self) -> None:
        """Take the disk away with all that is on it. Nobody may use it any more."""
        self.resume()
        if self._home is not None:
            _unmount(self._home, [self.mount_point])
        if self._device is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._device.wait(_TOOL_S)
            self._device.kill()
            self._device.wait()
            assert self._device.stdout is not None
            self._device.stdout.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._home, self._device, self._lock_fd = None, None, -1

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- faults -----------------------------------------------------------------------------------

    def hang(self) -> None:
        """From now on the disk answers nobody."""
        assert self._device is not None
        pid = self._device.pid
        if self._limit is not None:
            self._limit.cancel()
        self._limit = threading.Timer(LIMIT_S, processes.send, (pid, signal.SIGCONT))
        self._limit.daemon = True
        self._limit.start()
        processes.send(pid, signal.SIGSTOP)
        wait_for(lambda: processes.state(pid) == "T", DEADLINE_S, "the disk hangs")

    @property
    def hangs(self) -> bool:
        return self._limit is not None

    def resume(self) -> None:
        """Everything that waited goes on, as if it had been slow."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if self._device is not None:
            processes.send(self._device.pid, signal.SIGCONT)

    def fill(self) -> None:
        """Take all the room there is."""
        with (self.mount_point / _BALLAST).open("ab") as file:
            for piece in _PIECES_BYTES:
                while _grow(file.fileno(), piece):
                    pass

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.mount_point / _BALLAST).unlink(missing_ok=True)


def _grow(fd: int, size_bytes: int) -> bool:
    """False when there is no room for that."""
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, size_bytes)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True


# --- leftovers ------------------------------------------------------------------------------------


def sweep_abandoned() -> None:
    """Take away disks whose test process was killed and could not."""
    for home in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            fd = os.open(home / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # just being made or removed
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # somebody uses it
        else:
            _unmount(home, _mounted_from(home / "device"))
        finally:
            os.close(fd)


def _lock(home: Path) -> int:
    """Held by the test process and the device: the disk is abandoned when both are gone."""
    fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _mounted_from(device: Path) -> list[Path]:
    """Where loop devices over this file are mounted."""
    loops = {
        f"/dev/{path.parts[3]}"
        for path in Path("/sys/block").glob("loop*/loop/backing_file")
        if path.read_text().strip() == str(device)
    }
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[0] in loops]


def _unmount(home: Path, mount_points: list[Path]) -> None:
    """Mount points, device and the empty directories that held them; what is not there is fine."""
    for mount_point in mount_points:
        _umount(mount_point)
        # The test's own directory could not be removed while this one was a mount point.
        with contextlib.suppress(OSError):
            for directory in (mount_point, *mount_point.parents[:2]):
                directory.rmdir()
    _umount(home / "device")
    shutil.rmtree(home, ignore_errors=True)


def _umount(path: Path) -> None:
    # Lazy: a process that is still dying must not keep it; the kernel completes it when the last one is gone.
    subprocess.run(["umount", "-l", str(path)], timeout=_TOOL_S, capture_output=True, check=False)


def _run(*command: str) -> None:
    done = subprocess.run(command, timeout=_TOOL_S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
