"""A disk in the memory of this process: freeze the process (SIGSTOP), and the disk answers nobody.

    python stoppable_device.py FILE SIZE_BYTES        # FILE becomes SIZE_BYTES of storage; needs root

Theory. FUSE is spoken directly: a mount whose root is a regular file needs a handful of requests. A loop
device over FILE is then a block device like any other, with a filesystem of the kernel's own on it. Frozen,
it is what a dead storage path looks like: whoever waits for it is in uninterruptible sleep and ignores
SIGKILL, while what is in the page cache can still be read. Killed, the kernel fails all its I/O, so nothing
hangs for ever. Struct layouts are those of <linux/fuse.h>.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import mmap
import os
import stat
import struct
import sys


class Request(enum.IntEnum):
    """What the kernel may ask of a single file."""

    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26


#: Requests that get no answer: FORGET, INTERRUPT, BATCH_FORGET.
SILENT = (2, 36, 42)
#: One request carries at most this much data, bytes.
MAX_DATA_BYTES = 128 * 1024
#: No page cache for FILE itself: what the filesystem on it writes arrives here at once.
DIRECT_IO = 1
BIG_WRITES = 32

_HEADER = struct.Struct("<IIQQIIII")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_FOR_EVER_S = 2**32


def mount(path: str) -> int:
    """Put the FUSE root onto the file `path`; the descriptor on which the kernel asks. Raises OSError."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={fd},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0,max_read={MAX_DATA_BYTES}"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"haagent-stoppable", os.fsencode(path), b"fuse", 0, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


class Device:
    """Answers requests until the file is unmounted."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self.fd, self.size_bytes = fd, size_bytes
        self.content = mmap.mmap(-1, size_bytes)  # pages come into being when written

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.fd, MAX_DATA_BYTES + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return  # unmounted
                if error.errno == errno.ENOENT:
                    continue  # the asker was interrupted
                raise
            _, opcode, unique, *_ = _HEADER.unpack_from(request)
            if opcode not in SILENT:
                self._answer(unique, *self.handle(opcode, request[_HEADER.size :]))

    def _answer(self, unique: int, error: int, body: bytes) -> None:
        os.write(self.fd, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)

    def handle(self, opcode: int, body: bytes) -> tuple[int, bytes]:
        """(errno, answer) for one request."""
        if opcode == Request.INIT:
            return 0, struct.pack(
                "<IIIIHHII36x", 7, 31, MAX_DATA_BYTES, BIG_WRITES, 16, 12, MAX_DATA_BYTES, 1
            )
        if opcode in (Request.GETATTR, Request.SETATTR):
            return 0, struct.pack("<QII", _FOR_EVER_S, 0, 0) + self._attributes()
        if opcode == Request.OPEN:
            return 0, struct.pack("<QII", 0, DIRECT_IO, 0)
        if opcode == Request.READ:
            offset, size = struct.unpack_from("<8xQI", body)
            return 0, self.content[offset : offset + size]
        if opcode == Request.WRITE:
            offset, size = struct.unpack_from("<8xQI", body)
            self.content[offset : offset + size] = body[40 : 40 + size]
            return 0, struct.pack("<II", size, 0)
        if opcode == Request.STATFS:
            return 0, struct.pack("<QQQQQIIII24x", 0, 0, 0, 1, 0, 4096, 255, 4096, 0)
        if opcode in (Request.RELEASE, Request.FSYNC, Request.FLUSH):
            return 0, b""
        return errno.ENOSYS, b""

    def _attributes(self) -> bytes:
        blocks = self.size_bytes // 512
        mode = stat.S_IFREG | 0o600
        return _ATTRIBUTES.pack(1, self.size_bytes, blocks, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(path: str, size: str) -> None:
    device = Device(mount(path), int(size))
    sys.stdout.write("mounted\n")
    sys.stdout.flush()
    device.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
