"""The watchdog device itself (contract 7.4), as a forked child of the guardian uses it: it may block.

Linux's watchdog interface: from its opening on the device resets the host unless it is written to in time.
`V` before the close switches it off, where the driver knows that (magic close). The driver `testing` is a
FIFO: the timeout goes into it as a line `Ctimeout=<n>`, a keepalive as `1`, the end as `V`.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct

#: <linux/watchdog.h> on every architecture with generic ioctl numbers (x86, ARM, RISC-V).
_GETSUPPORT, _SETTIMEOUT, _GETTIMEOUT = 0x80285700, 0xC0045706, 0x80045707
_CAN_SET_TIMEOUT = 0x80
KEEPALIVE, MAGIC_CLOSE = b"1", b"V"


class Unusable(Exception):
    """The device cannot be used as asked for; one line says why."""


def problem(path: str, testing: bool) -> str | None:
    """Why it cannot be used, as far as can be seen without opening it."""
    try:
        _look_at(path, testing)
    except OSError as fault:
        return f"{path}: {fault.strerror}"
    except Unusable as fault:
        return f"{path}: {fault}"
    return None if os.access(path, os.W_OK) else f"{path}: this user may not write to it"


def _look_at(path: str, testing: bool) -> None:
    mode = os.stat(path).st_mode
    if not (stat.S_ISFIFO(mode) if testing else stat.S_ISCHR(mode)):
        raise Unusable(f"is no {'FIFO' if testing else 'device'}")


def open_device(path: str, testing: bool) -> int:
    """A descriptor; the device counts from now on. Raises Unusable, OSError."""
    _look_at(path, testing)
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC | (os.O_NONBLOCK if testing else 0))


def program(fd: int, testing: bool, timeout_s: int) -> None:
    """Reset the host `timeout_s` after the last keepalive, at the latest. Raises Unusable, OSError."""
    if testing:
        os.write(fd, f"Ctimeout={timeout_s}\n".encode())
        return
    options: int = struct.unpack_from("I", fcntl.ioctl(fd, _GETSUPPORT, bytes(40)))[0]
    if options & _CAN_SET_TIMEOUT:
        fcntl.ioctl(fd, _SETTIMEOUT, struct.pack("i", timeout_s))
    now_s: int = struct.unpack("i", fcntl.ioctl(fd, _GETTIMEOUT, bytes(4)))[0]
    if now_s > timeout_s:
        raise Unusable(f"has a timeout of {now_s} s and cannot be set to {timeout_s} s")


def keep_alive(fd: int) -> None:
    """Raises OSError."""
    os.write(fd, KEEPALIVE)


def switch_off(fd: int) -> None:
    """To be followed by the close of every descriptor. Raises OSError."""
    os.write(fd, MAGIC_CLOSE)
