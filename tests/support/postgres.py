"""Real PostgreSQL servers for tests: small, fsync off, in a temporary directory, always cleaned up.

PostgreSQL refuses to run as root. When the tests run as root, the fixture `postgres_user` makes the
whole test process user `postgres` (real and effective id; the saved id stays root, so that the fixture
can go back). Programs started meanwhile are plain `postgres`, and so are the files our code writes.
Use it by `pytestmark = pytest.mark.usefixtures("postgres_user")` after importing it.

    server = Server.create("primary");  server.start();  server.sql("select 1");  server.destroy()
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from tests.support import shared_memory, versions, wait

BIN_DIR = versions.bin_dir()
#: Generous: a busy two-core machine must not make a test fail.
DEADLINE_S = 30.0
T = TypeVar("T")
SUPERUSER = "postgres"
REPLICATION_USER = "replicator"


@contextlib.contextmanager
def as_postgres_user() -> Iterator[None]:
    """Be user `postgres` inside the block when we are root; nothing otherwise."""
    if os.geteuid() != 0:
        yield
        return
    user = pwd.getpwnam("postgres")
    groups = os.getgroups()
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, 0)
    os.setresuid(user.pw_uid, user.pw_uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)


@pytest.fixture(scope="module")
def postgres_user() -> Iterator[None]:
    with as_postgres_user():
        yield


def free_port() -> int:
    """A TCP port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """`wait.wait_for` where every exception is a failure."""
    return wait.wait_for(condition, deadline_s, what, not_yet=())


@contextlib.contextmanager
def scratch_dir(label: str) -> Iterator[Path]:
    """A directory of user postgres outside pytest's tree (root's tree is closed to postgres)."""
    path = Path(tempfile.mkdtemp(prefix=f"haagent-{label}-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def run(*argv: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a PostgreSQL program of BIN_DIR with a deadline; its output is in the failure."""
    program = Path(BIN_DIR) / str(argv[0])
    done = subprocess.run(
        [str(program), *map(str, argv[1:])],
        env={n: v for n, v in os.environ.items() if n in ("PATH", "LD_LIBRARY_PATH")} | {"LC_ALL": "C"},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(f"{argv[0]} failed: {done.stdout}{done.stderr}")
    return done


@functools.cache
def _template() -> Path:
    """One initdb per test process; every fresh cluster is a copy of it (same system identifier)."""
    root = Path(tempfile.mkdtemp(prefix="haagent-template-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    data = root / "data"
    run("initdb", "-D", data, "-U", SUPERUSER, "--no-sync", "-k", "-E", "UTF8", "--no-locale", "--auth=trust")
    return data


#: Small and quick; `wal_log_hints` as haagent always sets it.
BASE_CONF = """
fsync = off
shared_buffers = 8MB
max_connections = 30
wal_log_hints = on
wal_keep_size = 64MB
wal_level = replica
wal_retrieve_retry_interval = 100ms
autovacuum = off
dynamic_shared_memory_type = mmap
log_line_prefix = '%m [%p] '
"""

HBA = "local all all trust\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n"


class Server:
    """One data directory and, when started, its postmaster: a child of the test process."""

    def __init__(self, root: Path, port: int | None = None) -> None:
        self.root = root
        self.data_dir = root / "data"
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def create(cls, label: str = "pg") -> Server:
        """A fresh, not yet started cluster with a role `replicator`-capable superuser and trust for all."""
        server = cls(Path(tempfile.mkdtemp(prefix=f"haagent-{label}-")))
        shutil.copytree(_template(), server.data_dir)
        server.data_dir.chmod(0o700)
        server.configure()
        return server

    @classmethod
    def empty(cls, label: str = "pg") -> Server:
        """A place for a data directory that does not exist yet."""
        return cls(Path(tempfile.mkdtemp(prefix=f"haagent-{label}-")))

    def configure(self, extra: str = "") -> None:
        """Write postgresql.conf (BASE_CONF, port, socket in the root) and a trusting pg_hba.conf."""
        (self.data_dir / "postgresql.conf").write_text(
            f"{BASE_CONF}port = {self.port}\nlisten_addresses = '127.0.0.1'\n"
            f"unix_socket_directories = '{self.root}'\n{extra}"
        )
        (self.data_dir / "pg_hba.conf").write_text(HBA)

    def set(self, **parameters: str) -> None:
        """Append parameters to postgresql.conf; they take effect at the next start or reload."""
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            for name, value in parameters.items():
                conf.write(f"{name} = '{value}'\n")

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.port} user={SUPERUSER} dbname=postgres"

    @property
    def log(self) -> str:
        return (self.root / "log").read_text(errors="replace")

    def start(self, argv: list[str] | None = None, ready: bool = True) -> None:
        """Start the postmaster (our child, own session) and wait until it accepts connections."""
        command = argv or [f"{BIN_DIR}/postgres", "-D", str(self.data_dir)]
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if ready:
            wait_for(self._accepts, f"server on port {self.port} accepts connections")

    def _accepts(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(f"postmaster exited with {self.process.returncode}: {self.log[-2000:]}")
        try:
            with psycopg.connect(self.conninfo, connect_timeout=3):
                return True
        except psycopg.OperationalError:
            return False

    def sql(self, statement: str, *params: Any) -> list[tuple[Any, ...]]:
        """Run one statement in autocommit; its rows, [] when it returns none."""
        with psycopg.connect(self.conninfo, autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *params: Any) -> Any:
        return self.sql(statement, *params)[0][0]

    def make_standby_conf(self, primary: Server, slot: str | None = None, name: str = "standby") -> None:
        """Recovery settings and standby.signal, for a data directory that was cloned from `primary`."""
        self.configure()
        conninfo = f"host=127.0.0.1 port={primary.port} user={SUPERUSER} application_name={name}"
        self.set(primary_conninfo=conninfo, primary_slot_name=slot or "", recovery_target_timeline="latest")
        (self.data_dir / "standby.signal").touch()

    def clone_from(self, primary: Server, slot: str | None = None, name: str = "standby") -> None:
        """pg_basebackup of `primary` into this data directory, configured as its standby (not started)."""
        run("pg_basebackup", "-D", self.data_dir, "-X", "stream", "--checkpoint=fast", "--no-sync",
            "-d", primary.conninfo)  # fmt: skip
        self.make_standby_conf(primary, slot, name)

    def wait_streaming(self) -> None:
        query = "select count(*) from pg_stat_wal_receiver where status = 'streaming'"
        wait_for(lambda: self.value(query) == 1, f"standby on port {self.port} streams")

    def wait_replayed(self, lsn: str) -> None:
        query = "select coalesce(pg_last_wal_replay_lsn() >= %s::pg_lsn, false)"
        wait_for(lambda: self.value(query, lsn), f"{lsn} replayed on port {self.port}")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT fast, SIGQUIT immediate, SIGKILL: the postmaster only. Reaps it."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
        self.process.wait(timeout=60)
        self.process = None

    def destroy(self) -> None:
        """Stop everything that was started here and remove the files."""
        self.stop(signal.SIGQUIT)
        for pid in pids_in(self.data_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not pids_in(self.data_dir), "every process of the server is gone")
        shared_memory.remove_of(self.data_dir)
        shutil.rmtree(self.root, ignore_errors=True)


def pids_in(data_dir: Path) -> list[int]:
    """Processes of this data directory, told by their working directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "cwd") == str(data_dir):
                    found.append(int(entry.name))
    return found
