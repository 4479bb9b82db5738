"""Guardian, postmaster and a killable agent for tests: run as user postgres, ended by pid afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from haagent import guardian_os
from haagent.guardian_os import boottime
from tests.support import versions

BIN_DIR = versions.bin_dir()
CONTROLLER = Path(__file__).with_name("guardian_controller.py")
#: Generous: a busy two-core machine must not fail a test.
DEADLINE_S = 30.0
#: Stop budget of the fence: what lies between `fence_at` and `hard_at`.
BUDGET_S = 1.5
SETTINGS = """
listen_addresses = ''
fsync = off
dynamic_shared_memory_type = mmap
shared_buffers = 8MB
"""

as_postgres = (
    ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
)


@pytest.fixture(scope="session", name="template")
def template_fixture() -> Iterator[Path]:
    """A directory with a new cluster in `data`; initdb runs once per session."""
    root = _directory()
    run(
        [
            f"{BIN_DIR}/initdb",
            "-D",
            f"{root}/data",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "--wal-segsize=1",
        ]
    )
    with open(root / "data" / "postgresql.conf", "a") as file:
        file.write(SETTINGS)
    yield root
    shutil.rmtree(root)


@pytest.fixture(name="rig")
def rig_fixture(template: Path) -> Iterator[Rig]:
    root = _directory()
    run(["cp", "-a", f"{template}/data", f"{root}/data"])
    rig = Rig(root)
    try:
        yield rig
    finally:
        rig.clean_up()


def run(command: list[str]) -> None:
    """Run to its end as user postgres."""
    subprocess.run([*as_postgres, *command], check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


def wait_for(condition: Any, what: str) -> Any:
    """For what nobody can announce."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {DEADLINE_S} s: {what}")
        threading.Event().wait(0.01)
    return value


def wait_dead(pid: int) -> None:
    """A zombie is dead."""
    wait_for(lambda: not guardian_os.is_alive(pid), f"end of process {pid}")


def wait_stopped(pid: int) -> None:
    wait_for(lambda: guardian_os.is_stopped(pid), f"stop of process {pid}")


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_stopped(pid)


def _directory() -> Path:
    # In memory where possible: copying a cluster per test is what takes the time.
    shared = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None
    root = Path(tempfile.mkdtemp(prefix="hag-", dir=shared))
    if as_postgres:
        shutil.chown(root, "postgres", "postgres")
    return root


class Agent:
    """A controller process."""

    def __init__(self, rig: Rig, idle_exit_s: float = 60.0) -> None:
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.process = subprocess.Popen(
            [*as_postgres, sys.executable, str(CONTROLLER), rig.state_dir, rig.data_dir, str(idle_exit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            (self.events if "event" in message else self.answers).put(message)

    def hello(self) -> dict[str, Any]:
        """The first answer; call once."""
        answer = self.answers.get(timeout=DEADLINE_S)
        assert answer["answer"] == "GuardianState", answer
        state: dict[str, Any] = answer["body"]
        return state

    def send(self, call: str, *args: Any, **kwargs: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"call": call, "args": args, "kwargs": kwargs}) + "\n")
        self.process.stdin.flush()

    def receive(self) -> tuple[str, Any]:
        answer = self.answers.get(timeout=DEADLINE_S)
        return answer["answer"], answer["body"]

    def ask(self, call: str, *args: Any, **kwargs: Any) -> tuple[str, Any]:
        """Name and fields of the outcome."""
        self.send(call, *args, **({"deadline_s": DEADLINE_S} if call != "fence_directly" else {}) | kwargs)
        return self.receive()

    def arm(self, epoch: int, in_s: float, budget_s: float = BUDGET_S) -> tuple[float, float]:
        """Arm a deadline `in_s` from now: `fence_at` and `hard_at`."""
        now = boottime()
        name, body = self.ask("arm", ["session", epoch], now + in_s, now + in_s + budget_s)
        assert name == "Armed", body
        return body["fence_at"], body["hard_at"]

    def event(self, name: str) -> dict[str, Any]:
        """The next event of that name; others before it are dropped."""
        while True:
            message = self.events.get(timeout=DEADLINE_S)
            if message["event"] == name:
                body: dict[str, Any] = message["body"]
                return body

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()


class Writer:
    """A session that writes as fast as it is acknowledged, until somebody ends it."""

    def __init__(self, rig: Rig) -> None:
        self.connection = rig.connect()
        self.connection.execute("create table if not exists written (at double precision)")
        self.pid = self.connection.info.backend_pid
        self.last_ack = 0.0
        self.fault: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        self.wait_ack()

    def _write(self) -> None:
        try:
            while True:
                self.connection.execute("insert into written values (1)")
                self.last_ack = boottime()
        except psycopg.Error as fault:
            self.fault = fault

    def wait_ack(self) -> None:
        """Until one more write is acknowledged."""
        before = self.last_ack
        wait_for(lambda: self.last_ack > before, "an acknowledged write")

    def wait_end(self) -> float:
        """Until the session is broken: when the last write was acknowledged."""
        self._thread.join(DEADLINE_S)
        assert self.fault is not None, "the session goes on writing"
        self.connection.close()
        return self.last_ack


class Rig:
    """One data directory and whatever runs for it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data_dir = f"{root}/data"
        self.state_dir = f"{root}/data.haagent"
        self.agents: list[Agent] = []
        self.connections: list[psycopg.Connection[Any]] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self.sockets: list[socket.socket] = []

    @property
    def argv(self) -> list[str]:
        return [f"{BIN_DIR}/postgres", "-D", self.data_dir, "-k", str(self.root)]

    def agent(self, idle_exit_s: float = 60.0) -> Agent:
        agent = Agent(self, idle_exit_s)
        self.agents.append(agent)
        return agent

    def start_order(self, writable: bool = True, epoch: int | None = 1) -> dict[str, Any]:
        env = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        return {"argv": self.argv, "env": env, "cwd": self.data_dir, "writable": writable, "epoch": epoch}

    def start(self, agent: Agent, writable: bool = True, epoch: int | None = 1) -> int:
        """Start through the guardian and wait for connections: the postmaster's pid."""
        name, body = agent.ask("start", **self.start_order(writable, epoch))
        assert name == "Started", body
        self.connect()
        pid: int = body["pid"]
        return pid

    def primary(self, epoch: int = 1, in_s: float = 60.0) -> tuple[Agent, int, int]:
        """An agent, the guardian's pid and the pid of a primary under an armed epoch."""
        agent = self.agent()
        guardian_pid = agent.hello()["guardian_pid"]
        agent.arm(epoch, in_s)
        return agent, guardian_pid, self.start(agent, epoch=epoch)

    def be_standby(self) -> None:
        run(["touch", f"{self.data_dir}/standby.signal"])

    def start_alone(self) -> tuple[int, int]:
        """A postmaster nobody guards: pid and start time."""
        with open(self.root / "alone.log", "wb") as log:
            process = subprocess.Popen(
                [*as_postgres, *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append(process)
        self.connect()
        stat = guardian_os.read_stat(process.pid)
        assert stat is not None
        return process.pid, stat.start_ticks

    def connect(self) -> psycopg.Connection[Any]:
        """A session, as soon as the server takes one."""

        def attempt() -> psycopg.Connection[Any] | None:
            try:
                return psycopg.connect(
                    host=str(self.root),
                    user="postgres",
                    dbname="postgres",
                    autocommit=True,
                    connect_timeout=10,
                )
            except psycopg.OperationalError:
                return None

        connection: psycopg.Connection[Any] = wait_for(attempt, "a connection")
        self.connections.append(connection)
        return connection

    def processes(self) -> list[int]:
        """PostgreSQL's living processes."""
        return guardian_os.processes_in(self.data_dir, "postgres")

    def lock_holder(self) -> int:
        return int(Path(f"{self.state_dir}/guardian.lock").read_text())

    def clean_up(self) -> None:
        for connection in self.connections:
            connection.close()
        for sock in self.sockets:
            sock.close()
        for agent in self.agents:
            agent.kill()
        with contextlib.suppress(OSError, ValueError):
            guardian = self.lock_holder()
            if b"haagent-guardian" in Path(f"/proc/{guardian}/cmdline").read_bytes():
                os.kill(guardian, signal.SIGKILL)
                wait_dead(guardian)

        def all_dead() -> bool:
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not self.processes()

        wait_for(all_dead, "the end of PostgreSQL")
        for process in self.started:
            process.wait()
        self._remove_shared_memory()
        shutil.rmtree(self.root)

    def _remove_shared_memory(self) -> None:
        """What a killed postmaster leaves for its next start to remove, which here never comes."""
        with contextlib.suppress(OSError, IndexError):
            segment = Path(f"{self.data_dir}/postmaster.pid").read_text().splitlines()[6].split()[1]
            subprocess.run(["ipcrm", "-m", segment], check=False, stderr=subprocess.DEVNULL)
