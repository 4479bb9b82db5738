"""Small shared types: where to connect, how to run a PostgreSQL program, how to cancel it.

Rules. A password never appears in a repr, a program's arguments, its environment or its captured output:
programs get it through a password file. A program runs in its own process group with a deadline; when
that passes, or its job is cancelled, the group gets SIGTERM, and `TERM_GRACE_S` later SIGKILL. All waits
are on file descriptors (exit, output, cancellation): nothing is polled.
"""

from __future__ import annotations

import os
import re
import select
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from postgres_ctl.errors import ToolFailed

#: How long a program may take to clean up after SIGTERM before its group is killed, seconds.
TERM_GRACE_S = 10.0
#: How long SIGKILL may take to show; longer means uninterruptible sleep, seconds.
KILL_GRACE_S = 5.0
#: Kept of a program's output, bytes.
OUTPUT_TAIL_BYTES = 8192
#: Of our own environment, never passed on (contract 5.1).
_PRIVATE_ENV_PREFIXES = ("PATRONI_", "HAAGENT_", "KUBERNETES_", "NOTIFY_SOCKET")
#: libpq reads these; a stray one would redirect a program to another server.
_LIBPQ_ENV = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGSERVICE", "PGDATA")

_OPTION_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9-]*$")
_EMPTY: Mapping[str, str] = MappingProxyType({})


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME: counts through suspend, never set by an administrator."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Cancellation(threading.Event):
    """A threading.Event that can also be waited for as a file descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Readable once the event is set."""
        return self._fd

    def set(self) -> None:
        super().set()
        os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """A cancelled job stays cancelled: make a new Cancellation."""
        raise NotImplementedError("a Cancellation cannot be undone")

    def __del__(self) -> None:
        os.close(self._fd)


# --- connections ----------------------------------------------------------------------------------

#: libpq keywords of `ConnectionTarget.options` that are secrets themselves.
_SECRET_OPTIONS = ("password", "sslpassword")


@dataclass(frozen=True)
class ConnectionTarget:
    """A server and how to log in. `options` are further libpq keywords (sslmode, sslcert, krbsrvname, …).

    `host` is a name, an address, a socket directory, or a comma separated list. Password and
    `sslpassword` never show in repr.
    """

    host: str
    port: int
    user: str
    password: str | None = field(default=None, repr=False)
    dbname: str = "postgres"
    sslmode: str | None = None
    sslpassword: str | None = field(default=None, repr=False)
    options: Mapping[str, str] = field(default_factory=lambda: _EMPTY)

    def __post_init__(self) -> None:
        secret = [name for name in _SECRET_OPTIONS if name in self.options]
        if secret:
            raise ValueError(f"connection option {secret[0]} has its own field")

    @property
    def is_socket(self) -> bool:
        return self.host.startswith("/")

    def keywords(self) -> dict[str, str]:
        """libpq keywords without any password, in no particular order."""
        words = {"host": self.host, "port": str(self.port), "user": self.user, "dbname": self.dbname}
        if self.sslmode:
            words["sslmode"] = self.sslmode
        return words | dict(self.options)

    def dsn(self, **extra: str) -> str:
        """Conninfo text without any password: for program arguments and logs."""
        return format_conninfo(self.keywords() | extra)

    def secret_dsn(self, **extra: str) -> str:
        """Conninfo text with the passwords: only for libpq calls inside this process."""
        words = self.keywords() | extra
        if self.password is not None:
            words["password"] = self.password
        if self.sslpassword is not None:
            words["sslpassword"] = self.sslpassword
        return format_conninfo(words)


def format_conninfo(words: Mapping[str, str]) -> str:
    """`{"user": "a b"}` -> `user='a b'`, in the mapping's order; quoted only where libpq needs it."""
    return " ".join(f"{name}={_conninfo_value(value)}" for name, value in words.items())


def _conninfo_value(value: str) -> str:
    if value and not any(c.isspace() or c in "'\\" for c in value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


# --- programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToolResult:
    """What a program left behind. `output` is the tail of stdout and stderr, secrets replaced."""

    returncode: int
    output: str
    #: Complete stdout when it was asked for (`keep_stdout`), else "".
    stdout: str = ""


def inherited_environment() -> dict[str, str]:
    """Our environment without what configures the agent: that may hold passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE_ENV_PREFIXES)}


def clean_environment(passfile: str | None = None, extra: Mapping[str, str] = _EMPTY) -> dict[str, str]:
    """Our environment without private and libpq variables, LC_ALL=C, and PGPASSFILE when given."""
    env = {name: value for name, value in inherited_environment().items() if name not in _LIBPQ_ENV}
    env |= {"LC_ALL": "C", "LANG": "C"}
    if passfile:
        env["PGPASSFILE"] = passfile
    return env | dict(extra)


def run_tool(
    argv: Sequence[str],
    deadline_s: float,
    *,
    cancel: Cancellation | None = None,
    passfile: str | None = None,
    stdin: bytes = b"",
    env: Mapping[str, str] = _EMPTY,
    secrets: Sequence[str] = (),
    keep_stdout: bool = False,
    check: bool = True,
    term_grace_s: float = TERM_GRACE_S,
    cwd: str = "/",
    inherit: bool = False,
) -> ToolResult:
    """Run a program to its end, at most `deadline_s` seconds plus the time to get rid of it.

    `env` is added to `clean_environment`; with `inherit`, for a program of the user's, to our own instead.
    `secrets` are blanked out of the output. With `check` a non-zero exit raises. A program that works on a
    data directory gets it as `cwd`: should we die, it is among `process.leftovers` of that directory. Raises
    ToolFailed; its `cancelled` tells a cancellation from the deadline.
    """
    name = os.path.basename(argv[0])
    stdin_fd = _memory_file(stdin)
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if keep_stdout else subprocess.STDOUT,
            cwd=cwd,
            env=inherited_environment() | dict(env) if inherit else clean_environment(passfile, env),
            start_new_session=True,
        )
    except OSError as e:
        raise ToolFailed(f"{name}: {e.strerror}") from None
    finally:
        os.close(stdin_fd)
    with process:
        run = _Run(process, keep_stdout)
        try:
            ended = run.wait(deadline_s, cancel)
            survived = not ended and not run.terminate(term_grace_s)
        except BaseException:
            run.terminate(term_grace_s)
            raise
        finally:
            run.close()
        output = _blank(run.tail, secrets)
    if not ended:
        cancelled = cancel is not None and cancel.is_set()
        why = "cancelled" if cancelled else f"not finished within {deadline_s:g} s"
        still = ", and survived SIGKILL" if survived else ""
        raise ToolFailed(f"{name}: {why}{still}", output, cancelled)
    if check and process.returncode != 0:
        raise ToolFailed(f"{name} failed with exit code {process.returncode}: {_last_line(output)}", output)
    return ToolResult(process.returncode, output, run.stdout)


class _Run:
    """A running program: its pid file descriptor and what it printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], keep_stdout: bool) -> None:
        self._process = process
        self._keep_stdout = keep_stdout
        self._tail = b""
        self._stdout = bytearray()
        self._pidfd = os.pidfd_open(process.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pidfd, selectors.EVENT_READ, "exit")
        for stream in filter(None, (process.stdout, process.stderr)):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, "output")

    @property
    def tail(self) -> str:
        text = self._tail.decode(errors="replace")
        if len(self._tail) == OUTPUT_TAIL_BYTES:
            # The first line is cut: half a secret would not be recognised in it.
            text = text.partition("\n")[2]
        return text.strip()

    @property
    def stdout(self) -> str:
        return bytes(self._stdout).decode(errors="replace")

    def wait(self, deadline_s: float, cancel: Cancellation | None) -> bool:
        """Collect output until the program exits (True), or deadline or cancellation (False)."""
        end = boottime() + deadline_s
        if cancel is not None:
            self._selector.register(cancel, selectors.EVENT_READ, "cancel")
        try:
            while True:
                ready = {key.data for key in self._select(end)}
                if "exit" in ready:
                    self._process.wait()
                    return True
                if "cancel" in ready or boottime() >= end:
                    return False
        finally:
            if cancel is not None:
                self._selector.unregister(cancel)

    def terminate(self, grace_s: float) -> bool:
        """SIGTERM the group, SIGKILL it after `grace_s`. False when even that did not end the program.

        Returns when the children are gone too: pg_basebackup's second process must not hold the directory.
        """
        self._signal(signal.SIGTERM)
        self._exited_within(grace_s)
        # The leader is not reaped yet, so the group's number cannot have been given to anybody else.
        members = _open_group(self._process.pid)
        self._signal(signal.SIGKILL)
        _wait_gone(members, KILL_GRACE_S)
        if not self._exited_within(KILL_GRACE_S):
            # Uninterruptible: pretend a code so that Popen does not wait for ever; init reaps it.
            self._process.returncode = -signal.SIGKILL
            return False
        self._process.wait()
        return True

    def _exited_within(self, wait_s: float) -> bool:
        end = boottime() + wait_s
        while boottime() < end:
            if any(key.data == "exit" for key in self._select(end)):
                return True
        return False

    def _select(self, end: float) -> list[selectors.SelectorKey]:
        """Wait until something is ready or `end`; output is read here."""
        keys = [key for key, _ in self._selector.select(max(0.0, end - boottime()))]
        # Output first: when the exit shows, whatever was printed before it is in the pipe already.
        exited = any(key.data == "exit" for key in keys)
        for key in list(self._selector.get_map().values()):
            if key.data == "output" and (exited or key in keys):
                self._read(key)
        return keys

    def _read(self, key: selectors.SelectorKey) -> None:
        while True:
            try:
                chunk = os.read(key.fd, 65536)
            except BlockingIOError:
                return
            if not chunk:
                self._selector.unregister(key.fileobj)
                return
            if self._keep_stdout and key.fileobj is self._process.stdout:
                self._stdout += chunk
            self._tail = (self._tail + chunk)[-OUTPUT_TAIL_BYTES:]

    def _signal(self, which: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, which)
        except ProcessLookupError:
            pass

    def close(self) -> None:
        self._selector.close()
        os.close(self._pidfd)


def _open_group(group: int) -> list[int]:
    """Pid file descriptors of all members of a process group that are still there."""
    opened = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as f:
                fields = f.read().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                opened.append(os.pidfd_open(int(name)))
        except (OSError, ValueError, IndexError):
            continue  # not a process, or gone meanwhile
    return opened


def readable_within(fd: int, wait_s: float) -> bool:
    """Wait for one descriptor. poll, because select cannot take numbers above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, wait_s) * 1000))


def _wait_gone(pidfds: list[int], wait_s: float) -> None:
    """Wait until all have exited, at most `wait_s` seconds; closes the descriptors."""
    end = boottime() + wait_s
    for pidfd in pidfds:
        readable_within(pidfd, end - boottime())
        os.close(pidfd)


def _memory_file(content: bytes) -> int:
    """A file without a name: no pipe to feed, and nothing to clean up after a crash."""
    fd = os.memfd_create("stdin", os.MFD_CLOEXEC)
    os.write(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _blank(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return text


def _last_line(output: str) -> str:
    return output.rsplit("\n", 1)[-1] if output else "no output"


def option_arguments(
    section: str, options: Sequence[str | Mapping[str, object]], forbidden: Collection[str]
) -> tuple[list[str], list[str]]:
    """(arguments, warnings) from a list of `"name"` or `{"name": value}` as the configuration has them.

    True and null mean the bare option, false leaves it out; forbidden and malformed ones are left out
    with a warning that names `section`.
    """
    arguments: list[str] = []
    warnings: list[str] = []
    for entry in options:
        pairs = [(entry, None)] if isinstance(entry, str) else list(entry.items())
        for name, value in pairs:
            option = str(name).removeprefix("--")
            if option in forbidden or not _OPTION_NAME.match(option):
                warnings.append(f"{section}.{option}: not allowed here, ignored")
            elif value is None or value is True:
                arguments.append(f"--{option}")
            elif value is not False:
                arguments.append(f"--{option}={value}")
    return arguments, warnings


def tool(bin_dir: str, name: str, bin_name: Mapping[str, str] = _EMPTY) -> str:
    """Path of a PostgreSQL program; a bare name (looked up in PATH) when `bin_dir` is empty."""
    return os.path.join(bin_dir, bin_name.get(name, name))
