"""A real haagent cluster for black-box tests: PostgreSQL, a store, one agent per node, nothing faked.

    with Cluster(nodes=3) as cluster:
        cluster.wait_streaming(2)
        old = cluster.leader()
        old.kill_agent()
        cluster.wait_for(lambda: cluster.leader() is not old, 60, "another leader")

Theory. Agents run as they would in production: `python -m haagent run FILE`, as the user postgres when the
tests are root (PostgreSQL refuses root), else as the user of the tests. They run the checkout's code, from a
copy that postgres can read, whatever is installed. Each cluster has a directory of its own; every process it
starts works in there or names it, so that `close` finds and ends all of them, guardians and postmasters too,
even after a test that killed half of them. Agents and etcd also die with the test process, and what a killed
test run left behind is swept up by the next one (`sweep_abandoned`).

What the agents and servers logged is in the failure report (tests/conftest.py asks `failure_report`).
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import fcntl
import functools
import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import psycopg
import pytest
import yaml

from tests.support import processes, shared_memory
from tests.support.consul import ConsulServer
from tests.support.etcd import EtcdServer, free_port
from tests.support.netns import Host
from tests.support.tcp_proxy import TcpProxy
from tests.support.versions import bin_dir, bin_dir_of
from tests.support.wait import DEADLINE_S, wait_for
from tests.support.zookeeper import ZooKeeperServer

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("haagent", "dcs", "postgres_ctl")
#: A killed process that is not gone after this waits for a disk, seconds.
SLEEPER_S = 3.0
#: How much of each log goes into a failure report, bytes.
TAIL_BYTES = 6000
_PREFIX = "haagent-cluster-"
#: Room a RAM disk must have for several clusters at once, bytes.
_RAM_DISK_BYTES = 4 * 1024**3
#: A directory younger than this may not have its lock yet, seconds.
_BEING_MADE_S = 30.0

#: Clusters that are open now, and the reports of those closed since `forget_reports`.
_open: list[Cluster] = []
_closed_reports: list[str] = []


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, nested; None removes a key."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


@functools.cache
def _code() -> Path:
    """A copy of the checkout's packages that the agents' user can read; one per test process."""
    target = Path(tempfile.mkdtemp(prefix="haagent-code-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    target.chmod(0o755)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def as_agent_user() -> list[str]:
    """Command prefix: become postgres when we are root; die with the test process where that is safe."""
    # The parent-death signal follows the thread that forked, so only the main one may ask for it.
    main = threading.current_thread() is threading.main_thread()
    dying = ["--pdeathsig", "KILL"] if main else []
    user = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, *dying, "--"] if user or dying else []


def run_as_agent_user(*argv: str, deadline_s: float = DEADLINE_S) -> str:
    """Run a program as the user of the agents; its output. Fails the test when it fails."""
    done = subprocess.run(
        [*as_agent_user(), *argv], cwd="/", capture_output=True, text=True, timeout=deadline_s, check=False
    )
    if done.returncode != 0:
        pytest.fail(f"{argv[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def _give_to_agent_user(path: Path) -> None:
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(path, user.pw_uid, user.pw_gid)


class Node:
    """One agent with its PostgreSQL. Processes are looked up anew at each call: they come and go."""

    def __init__(self, cluster: Cluster, index: int) -> None:
        self.cluster = cluster
        self.index = index
        self.name = f"n{index}"
        self.root = cluster.root / self.name
        self.data_dir = self.root / "data"
        self.state_dir = self.root / "data.haagent"
        self.config_file = self.root / "haagent.yml"
        self.log_file = self.root / "agent.log"
        host = cluster.hosts[index] if cluster.hosts else None
        self.address = host.address if host else "127.0.0.1"
        self._launcher = list(host.launcher) if host else []
        self.sql_port = free_port()
        self.api_port = free_port()
        #: The node's own way to etcd, to be cut or frozen for it alone; None unless `Cluster(proxied=True)`.
        self.proxy = TcpProxy(cluster.etcd.client_port) if cluster.proxied and cluster.etcd else None
        #: Laid over the generated file at the next `write_config` (nested; None removes).
        self.config_changes: dict[str, Any] = {}
        #: Start the agent without naming the file: `cluster.environment` has to say everything.
        self.by_variables_only = False
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self.root.mkdir(mode=0o700)
        _give_to_agent_user(self.root)

    def __repr__(self) -> str:
        return f"<Node {self.name}>"

    # --- configuration ----------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        """The YAML file as data."""
        return merged(merged(self._base_config(), self.cluster.node_config), self.config_changes)

    def _base_config(self) -> dict[str, Any]:
        cluster = self.cluster
        address = f"{self.address}:{self.sql_port}"
        network = f"{self.address}/{24 if cluster.hosts else 32}"
        return {
            "scope": cluster.scope,
            "name": self.name,
            "restapi": {
                "listen": f"{self.address}:{self.api_port}",
                "connect_address": f"{self.address}:{self.api_port}",
            },
            **self.store_section(),
            "bootstrap": {"dcs": cluster.dynamic, "initdb": [{"encoding": "UTF8"}, "data-checksums"]},
            "postgresql": {
                "listen": address,
                "connect_address": address,
                "data_dir": str(self.data_dir),
                "bin_dir": cluster.bin_dir,
                "pgpass": str(self.root / "pgpass"),
                "pg_hba": [
                    "local all all trust",
                    f"host all all {network} trust",
                    f"host replication all {network} trust",
                ],
                "authentication": {
                    "superuser": {"username": "postgres", "password": "super-secret"},
                    "replication": {"username": "replicator", "password": "rep-secret"},
                    "rewind": {"username": "rewind_user", "password": "rewind-secret"},
                },
                "parameters": {
                    "unix_socket_directories": str(self.root),
                    "fsync": "off",
                    "shared_buffers": "16MB",
                    # What a killed server had of it goes with its directory.
                    "dynamic_shared_memory_type": "mmap",
                    **cluster.parameters,
                },
            },
        }

    def store_section(self) -> dict[str, Any]:
        """The part of the file that names the store."""
        if self.proxy is not None:
            return {"etcd3": {"host": f"127.0.0.1:{self.proxy.port}"}}
        return self.cluster.store_section()

    def write_config(self, changes: Mapping[str, Any] | None = None) -> None:
        """Write the YAML file; `changes` (nested, None removes) stay for later writes."""
        self.config_changes = merged(self.config_changes, changes or {})
        new = self.config_file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(yaml.safe_dump(self.config(), sort_keys=False))
        _give_to_agent_user(new)
        new.replace(self.config_file)

    # --- life of the agent ------------------------------------------------------------------------

    def start(self, *arguments: str) -> None:
        """Start the agent (again), and return at once; its log goes on in the same file."""
        assert not self.agent_running, f"{self.name}: the agent runs already"
        if self._process is not None:
            self._process.wait(DEADLINE_S)
        self._killed = False
        self.write_config()
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.root),
            "PYTHONPATH": str(_code()),
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.cluster.environment,
        }
        run = [] if self.by_variables_only else ["run", str(self.config_file)]
        command = [sys.executable, "-m", "haagent", *run, *arguments]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._launcher + as_agent_user() + command,
                cwd=self.root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def agent_running(self) -> bool:
        return self._process is not None and not self._killed and self._process.poll() is None

    @property
    def agent_exit(self) -> int | None:
        """Exit status of the last agent, negative for a signal; None while it runs or before the first."""
        return self._process.poll() if self._process is not None else None

    @property
    def agent_pid(self) -> int:
        assert self._process is not None, f"{self.name}: the agent was never started"
        return self._process.pid

    def stop(self, deadline_s: float = DEADLINE_S) -> int:
        """Ask the agent to leave (SIGTERM) and wait for it: the planned way. Returns its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(deadline_s)

    def kill_agent(self, *, but_sleepers: bool = False) -> None:
        """kill -9, and reaped: the agent is gone on return; guardian and PostgreSQL are not touched.

        but_sleepers: it may have a thread that waits for a disk that hangs, and ends when that answers."""
        if self._process is None:
            return
        self._killed = True
        self._process.kill()
        try:
            self._process.wait(SLEEPER_S if but_sleepers else DEADLINE_S)
        except subprocess.TimeoutExpired:
            if not but_sleepers:
                raise

    def freeze_agent(self) -> None:
        processes.send(self.agent_pid, signal.SIGSTOP)

    def thaw_agent(self) -> None:
        processes.send(self.agent_pid, signal.SIGCONT)

    # --- the other processes ----------------------------------------------------------------------

    def postmaster_pid(self) -> int | None:
        """Pid of the living postmaster of this data directory, None when there is none."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        alive = processes.exists(pid) and processes.works_in(pid, self.data_dir)
        return pid if alive else None

    def postgres_pids(self) -> list[int]:
        """The postmaster and all its children, whoever their parent is now."""
        return processes.working_in(self.data_dir)

    @property
    def guardian_pid(self) -> int | None:
        """Pid of the living guardian: who holds the lock beside the data directory; None when nobody does."""
        try:
            pid = int((self.state_dir / "guardian.lock").read_text())
        except (OSError, ValueError):
            return None
        return pid if processes.exists(pid) and processes.belongs_to(pid, self.root) else None

    def all_pids(self) -> list[int]:
        """Agent, guardian, PostgreSQL and whatever else works for this node."""
        return processes.processes_of(self.root)

    def signal_all(self, signum: signal.Signals) -> None:
        """The same signal to every process of the node: SIGKILL loses the machine, SIGSTOP freezes it."""
        for pid in self.all_pids():
            processes.send(pid, signum)

    def kill_all(self, *, but_sleepers: bool = False) -> None:
        """The whole node is gone on return; `but_sleepers`: except who waits for a disk that hangs."""
        self.signal_all(signal.SIGKILL)
        processes.kill_all_of(self.root, but_sleepers=but_sleepers)
        self.kill_agent(but_sleepers=but_sleepers)

    # --- asking -----------------------------------------------------------------------------------

    def rest(
        self,
        path: str,
        method: str = "GET",
        body: Any = None,
        *,
        timeout_s: float = 10.0,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """One REST call: status, and the body as JSON where it is, else text. OSError when nobody answers."""
        connection = http.client.HTTPConnection(self.address, self.api_port, timeout=timeout_s)
        try:
            data = body if body is None or isinstance(body, str) else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"{method} {path}: {error!r}") from error
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def status(self, path: str) -> int:
        """HTTP status of GET `path`, 0 when nobody answers."""
        try:
            return self.rest(path, timeout_s=3)[0]
        except OSError:
            return 0

    @property
    def dsn(self) -> str:
        return f"host={self.address} port={self.sql_port} user=postgres dbname=postgres"

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A session in autocommit, for tests that keep one open. psycopg.OperationalError when refused."""
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=5)

    def member_key(self) -> dict[str, Any]:
        """The member key as the store holds it; {} without one. Only with etcd."""
        text = self.cluster.key(f"members/{self.name}")
        return {} if text is None else dict(json.loads(text))

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """One statement in a session of its own; its rows, [] when it returns none."""
        with contextlib.closing(self.connect()) as session:
            cursor = session.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, statement: str, *parameters: Any) -> Any:
        """First column of the first row."""
        return self.sql(statement, *parameters)[0][0]

    def is_primary(self) -> bool:
        """The REST API says so; False when it does not answer."""
        return self.status("/primary") == 200

    def leads_or_fails(self) -> bool:
        """`is_primary`, but an agent that is gone fails the test at once: waiting on would be in vain."""
        if not self.agent_running:
            pytest.fail(f"{self.name}: the agent exited with {self.agent_exit}:\n{self.log()[-TAIL_BYTES:]}")
        return self.is_primary()

    def is_writable(self) -> bool:
        """PostgreSQL itself, asked by a new session, is not in recovery; False when it does not answer."""
        try:
            return self.value("select not pg_is_in_recovery()") is True
        except psycopg.OperationalError:
            return False

    def is_streaming(self) -> bool:
        """A standby whose walreceiver is connected."""
        try:
            return bool(self.sql("select 1 from pg_stat_wal_receiver where status = 'streaming'"))
        except psycopg.OperationalError:
            return False

    def log(self) -> str:
        """Everything the agent printed, over all its starts."""
        try:
            return self.log_file.read_text(errors="replace")
        except OSError:
            return ""

    def log_files(self) -> list[Path]:
        """Agent, guardian and PostgreSQL."""
        found = [self.log_file, *sorted(self.state_dir.glob("*.log")), *sorted(self.root.glob("data/log/*"))]
        return [path for path in found if path.is_file()]


class Cluster:
    """N nodes and a store. Nothing runs before `start`; `with` starts all nodes and cleans everything up.

    store: "etcd" (one server, its own unless `etcd` is given), "consul" or "zookeeper" (one server, its own:
    `other_store`), or "local" (the SQLite file).
    version: PostgreSQL's, one of `versions.MATRIX`; without it what all tests run on.
    dcs: laid over `bootstrap.dcs`; node_config: laid over every node's file; parameters: PostgreSQL's.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        store: Literal["etcd", "local", "consul", "zookeeper"] = "etcd",
        etcd: EtcdServer | None = None,
        version: int | None = None,
        ttl: float = 6,
        loop_wait: float = 1,
        retry_timeout: float = 1,
        dcs: Mapping[str, Any] | None = None,
        node_config: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        scope: str = "test",
        proxied: bool = False,
        hosts: Sequence[Host] = (),
    ) -> None:
        """proxied: each node reaches etcd through a proxy of its own, `node.proxy`.

        hosts: where the nodes run, one each (a network namespace); without them all are on 127.0.0.1.
        """
        self.scope = scope
        self.hosts = tuple(hosts)
        self.proxied = proxied
        self.bin_dir = bin_dir() if version is None else bin_dir_of(version)
        self.node_config = dict(node_config or {})
        self.parameters = dict(parameters or {})
        self.environment = dict(environment or {})
        timings = {"ttl": ttl, "loop_wait": loop_wait, "retry_timeout": retry_timeout}
        base = {**timings, "maximum_lag_on_failover": 1048576, "postgresql": {"use_pg_rewind": True}}
        self.dynamic = merged(base, dcs or {})
        self.root = _claim_directory()
        self._lock_fd = _lock(self.root)
        self._own_etcd = store == "etcd" and etcd is None
        self.etcd = EtcdServer() if self._own_etcd else etcd
        self.other_store = {"consul": ConsulServer, "zookeeper": ZooKeeperServer}.get(store, lambda: None)()
        self.nodes = [Node(self, index) for index in range(nodes)]
        _open.append(self)

    def store_section(self) -> dict[str, Any]:
        if self.etcd is not None:
            return {"etcd3": {"host": self.etcd.hostport}}
        if isinstance(self.other_store, ConsulServer):
            return {"consul": {"host": self.other_store.hostport}}
        if isinstance(self.other_store, ZooKeeperServer):
            return {"zookeeper": {"hosts": [self.other_store.hostport]}}
        return {"local": {"path": str(self.root / "store" / "dcs.db")}}

    # --- life -------------------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start the store and all agents; with `wait` return once one leads and the others stream.

        The first node starts alone until it leads, so that initdb runs on a known one and only once.
        """
        self.start_store()
        first, *others = self.nodes
        first.start()
        if wait or others:
            self.wait_for(first.leads_or_fails, 2 * DEADLINE_S, f"{first.name} bootstraps and leads")
        for node in others:
            node.start()
        if wait:
            self.wait_streaming(len(others))

    def start_store(self) -> None:
        if self.other_store is not None:
            if not self.other_store.running:
                self.other_store.start()
        elif self.etcd is None:
            (self.root / "store").mkdir(mode=0o700, exist_ok=True)
            _give_to_agent_user(self.root / "store")
        elif not self.etcd.running:
            self.etcd.start()

    def close(self, *, failed: bool = False) -> None:
        """End every process and remove every file, whatever happened before. Safe to call twice."""
        if self not in _open:
            return
        _open.remove(self)
        try:
            if failed:
                _closed_reports.append(self.report())
            processes.kill_all_of(self.root)
            for node in self.nodes:
                node.kill_agent()
                if node.proxy is not None:
                    node.proxy.close()
        finally:
            if self._own_etcd and self.etcd is not None:
                self.etcd.close()
            if self.other_store is not None:
                self.other_store.close()
            shared_memory.remove_below(self.root)
            shutil.rmtree(self.root, ignore_errors=True)
            os.close(self._lock_fd)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)

    # --- asking -----------------------------------------------------------------------------------

    def stored(self) -> dict[str, str]:
        """What the store holds, read past the agents: name below our path -> value. Only with etcd."""
        assert self.etcd is not None
        prefix = f"/service/{self.scope}/".encode()
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        body = {"key": _base64(prefix), "range_end": _base64(end)}
        found = self.etcd.post("/v3/kv/range", body).get("kvs", [])
        names = [base64.b64decode(kv["key"]).removeprefix(prefix).decode() for kv in found]
        return dict(zip(names, (base64.b64decode(kv.get("value", "")).decode() for kv in found), strict=True))

    def key(self, name: str) -> str | None:
        """The value of one key, such as "leader"; None when there is none."""
        return self.stored().get(name)

    def put(self, name: str, value: str) -> None:
        """Write one key past the agents. Only with etcd."""
        assert self.etcd is not None
        path = f"/service/{self.scope}/{name}".encode()
        self.etcd.post("/v3/kv/put", {"key": _base64(path), "value": _base64(value.encode())})

    def delete(self, name: str) -> None:
        """Delete one key past the agents. Only with etcd."""
        assert self.etcd is not None
        self.etcd.post("/v3/kv/deleterange", {"key": _base64(f"/service/{self.scope}/{name}".encode())})

    def lease_ttl(self, name: str) -> int:
        """The granted ttl of the lease one key hangs on, seconds; 0 without one. Only with etcd."""
        assert self.etcd is not None
        found = self.etcd.post("/v3/kv/range", {"key": _base64(f"/service/{self.scope}/{name}".encode())})
        lease = found.get("kvs", [{}])[0].get("lease", "0")
        return int(self.etcd.post("/v3/lease/timetolive", {"ID": lease}).get("grantedTTL", 0))

    def node(self, which: int | str) -> Node:
        """By index or name."""
        return next(node for node in self.nodes if which in (node.index, node.name))

    def leaders(self) -> list[Node]:
        """All nodes whose REST API answers 200 to /primary: more than one is a split brain."""
        return [node for node in self.nodes if node.is_primary()]

    def leader(self, deadline_s: float = DEADLINE_S) -> Node:
        """The one that leads; waits until there is one."""
        return self.wait_for(self.leaders, deadline_s, "a leader")[0]

    def replicas(self) -> list[Node]:
        """All nodes whose REST API answers 200 to /replica."""
        return [node for node in self.nodes if node.status("/replica") == 200]

    def wait_for(self, condition: Callable[[], T], deadline_s: float, what: str) -> T:
        """See `tests.support.wait.wait_for`."""
        return wait_for(condition, deadline_s, what)

    def wait_streaming(self, count: int, deadline_s: float = 2 * DEADLINE_S) -> Node:
        """Wait until one node leads and `count` standbys stream from it by its own word; returns it."""

        def ready() -> Node | None:
            for node in self.leaders():
                streaming = "select count(*) from pg_stat_replication where state = 'streaming'"
                if node.value(streaming) >= count and len(self.replicas()) >= count:
                    return node
            return None

        found = self.wait_for(ready, deadline_s, f"a leader with {count} streaming standbys")
        assert found is not None
        return found

    @property
    def read_write_dsn(self) -> str:
        """All nodes, libpq picks the writable one."""
        hosts = ",".join(node.address for node in self.nodes)
        ports = ",".join(str(node.sql_port) for node in self.nodes)
        return f"host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs=read-write"

    def report(self) -> str:
        """Processes now and the ends of all logs, for people who read a failure."""
        parts = []
        for node in self.nodes:
            agent = "agent runs" if node.agent_running else f"agent exit {node.agent_exit}"
            guardian, postmaster = node.guardian_pid, node.postmaster_pid()
            parts.append(f"=== {node.name}: {agent}, guardian {guardian}, postmaster {postmaster}")
            parts += [f"--- {node.name} {path.name}\n{_tail(path)}" for path in node.log_files()]
        if self.etcd is not None:
            parts.append(f"=== etcd\n{self.etcd.log_tail(TAIL_BYTES // 3)}")
        if self.other_store is not None:
            parts.append(f"=== the store\n{self.other_store.log_tail(TAIL_BYTES // 3)}")
        return "\n".join(parts)


# --- failure reports and leftovers ----------------------------------------------------------------


def failure_report() -> str:
    """Logs of every cluster that is open, or was closed since `forget_reports`."""
    return "\n".join([*_closed_reports, *(cluster.report() for cluster in _open)])


def forget_reports() -> None:
    """A new test begins."""
    _closed_reports.clear()


def close_all() -> None:
    """Close what tests left open: nothing, unless one was ended in the middle."""
    for cluster in list(_open):
        cluster.close()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"({error})"


@functools.cache
def _base_directory() -> Path:
    """HAAGENT_TEST_DIR, else a RAM disk with room enough, else the usual place.

    On a disk, copying and deleting data directories takes longer than most tests; what a disk is for,
    surviving power loss, no test here can show. Containers often have a RAM disk of 64 MB: no use.
    """
    if "HAAGENT_TEST_DIR" in os.environ:
        return Path(os.environ["HAAGENT_TEST_DIR"])
    ram = Path("/dev/shm")
    if os.access(ram, os.W_OK) and shutil.disk_usage(ram).free >= _RAM_DISK_BYTES:
        return ram
    return Path(tempfile.gettempdir())


def _claim_directory() -> Path:
    root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_base_directory()))
    root.chmod(0o755)  # postgres goes through it to its own directories below
    return root


def _lock(root: Path) -> int:
    """Held as long as this process lives: tells `sweep_abandoned` that somebody uses the directory."""
    fd = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def sweep_abandoned() -> None:
    """End processes and remove files of clusters whose test process was killed and could not."""
    for root in _base_directory().glob(f"{_PREFIX}*"):
        try:
            if time.time() - root.stat().st_mtime < _BEING_MADE_S:
                continue
            fd = os.open(root / ".lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # just being removed, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            processes.kill_all_of(root)
            shared_memory.remove_below(root)
            shutil.rmtree(root, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


atexit.register(close_all)
