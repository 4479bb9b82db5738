"""What the guardian grants and what it refuses, and that nothing it is told makes it fall."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from haagent import guardian_os
from haagent.guardian_os import boottime
from tests.integration.guardian_support import (
    DEADLINE_S,
    Rig,
    Writer,
    freeze,
    rig_fixture,  # noqa: F401 - brings the fixture `rig`
    template_fixture,  # noqa: F401 - which needs this one
    wait_dead,
    wait_for,
)


def test_writable_start_needs_an_open_armed_epoch(rig: Rig) -> None:
    agent = rig.agent()
    agent.hello()
    assert agent.ask("start", **rig.start_order(epoch=1)) == ("StartRefused", {"reason": "no lease is armed"})
    agent.arm(3, in_s=60)
    assert "not the armed epoch" in agent.ask("start", **rig.start_order(epoch=4))[1]["reason"]
    assert agent.ask("close_epoch", 3)[0] == "Done"
    assert "is closed" in agent.ask("start", **rig.start_order(epoch=3))[1]["reason"]
    agent.arm(4, in_s=0.5, budget_s=0.1)
    agent.event("Fencing")
    assert "is closed" in agent.ask("start", **rig.start_order(epoch=4))[1]["reason"]
    assert rig.processes() == []


def test_role_on_disk_must_fit_the_start(rig: Rig) -> None:
    agent = rig.agent()
    agent.hello()
    agent.arm(1, in_s=60)
    assert "standby.signal" in agent.ask("start", **rig.start_order(writable=False, epoch=None))[1]["reason"]
    rig.be_standby()
    assert "standby.signal" in agent.ask("start", **rig.start_order())[1]["reason"]
    rig.start(agent, writable=False)
    assert "still lives" in agent.ask("start", **rig.start_order())[1]["reason"]


def test_server_that_runs_unguarded_is_in_the_way_of_a_start(rig: Rig) -> None:
    pid, _ = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    agent.arm(1, in_s=60)
    name, body = agent.ask("start", **rig.start_order())
    assert name == "StartRefused"
    assert "still runs in the data directory" in body["reason"]
    assert guardian_os.is_alive(pid)


def test_start_that_cannot_be_is_refused_with_the_cause(rig: Rig) -> None:
    agent = rig.agent()
    agent.hello()
    agent.arm(1, in_s=60)
    missing = rig.start_order() | {"argv": ["/nonexistent/postgres"]}
    assert agent.ask("start", **missing)[1] == {"reason": "/nonexistent/postgres: No such file or directory"}
    no_log = agent.ask("start", **rig.start_order(), log="/nonexistent/log")
    assert no_log == ("StartRefused", {"reason": "/nonexistent/log: No such file or directory"})
    broken = rig.start_order()
    broken["argv"] = [*broken["argv"], "--no_such_setting=1"]
    assert agent.ask("start", **broken)[0] == "Started"
    assert agent.event("PostmasterExited")["status"] == 1
    assert "no_such_setting" in Path(f"{rig.state_dir}/postgresql.log").read_text()
    rig.start(agent)


def test_promotion_needs_the_armed_epoch(rig: Rig) -> None:
    rig.be_standby()
    agent = rig.agent()
    agent.hello()
    rig.start(agent, writable=False)
    assert agent.ask("promote", 1) == ("Refused", {"reason": "no lease is armed"})
    agent.arm(1, in_s=60)
    assert agent.ask("close_epoch", 1)[0] == "Done"
    assert "is closed" in agent.ask("promote", 1)[1]["reason"]
    session = rig.connect()
    assert session.execute("select pg_is_in_recovery()").fetchone() == (True,)
    agent.arm(2, in_s=60)
    assert agent.ask("promote", 2)[0] == "Done"
    wait_for(lambda: session.execute("select pg_is_in_recovery()").fetchone() == (False,), "the promotion")
    assert agent.ask("status")[1]["postmaster"]["writable_epoch"] == 2
    assert "already writable" in agent.ask("promote", 2)[1]["reason"]


def test_adopted_standby_is_promoted(rig: Rig) -> None:
    rig.be_standby()
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    agent.arm(2, in_s=60)
    assert agent.ask("promote", 2)[0] == "Done"
    session = rig.connect()
    wait_for(lambda: session.execute("select pg_is_in_recovery()").fetchone() == (False,), "the promotion")


def test_promotion_that_waited_past_the_deadline_is_refused(rig: Rig) -> None:
    rig.be_standby()
    agent = rig.agent()
    guardian = agent.hello()["guardian_pid"]
    rig.start(agent, writable=False)
    _, hard_at = agent.arm(1, in_s=0.5, budget_s=0.1)
    freeze(guardian)
    agent.send("promote", 1, deadline_s=DEADLINE_S)
    wait_for(lambda: boottime() > hard_at, "the deadline")
    os.kill(guardian, signal.SIGCONT)
    assert agent.receive()[0] == "Refused"
    assert agent.event("PostmasterExited")["fenced"]
    assert not Path(f"{rig.data_dir}/promote").exists()


def test_clean_stop_then_close_disarms(rig: Rig) -> None:
    agent, _, pid = rig.primary()
    assert agent.ask("stop", "fast")[0] == "Done"
    assert agent.event("PostmasterExited") == {"pid": pid, "status": 0, "fenced": False, "leftovers": []}
    assert agent.ask("close_epoch", 1)[0] == "Done"
    _, state = agent.ask("status")
    assert state["armed"] is None
    assert state["postmaster"] is None
    rig.be_standby()
    rig.start(agent, writable=False)


def test_log_collector_writes_its_last_words(rig: Rig) -> None:
    with open(f"{rig.data_dir}/postgresql.conf", "a") as file:
        file.write("logging_collector = on\nlog_directory = 'log'\nlog_filename = 'server.log'\n")
    agent, _, _ = rig.primary()
    agent.ask("stop", "fast")
    agent.event("PostmasterExited")
    assert "database system is shut down" in Path(f"{rig.data_dir}/log/server.log").read_text()


def test_adoption_checks_whom_it_adopts(rig: Rig) -> None:
    pid, ticks = rig.start_alone()
    agent = rig.agent()
    agent.hello()
    assert agent.ask("adopt", pid, ticks + 1)[0] == "Refused"
    own = guardian_os.read_stat(agent.process.pid)
    assert own is not None
    assert "not in" in agent.ask("adopt", agent.process.pid, own.start_ticks)[1]["reason"]
    assert agent.ask("adopt", pid, ticks)[0] == "Done"
    assert agent.ask("exit", force=True)[0] == "Refused"
    assert agent.ask("disarm")[0] == "Done"
    assert agent.ask("exit", force=True)[0] == "Done"
    assert guardian_os.is_alive(pid)


def test_newer_controller_wins(rig: Rig) -> None:
    first, guardian, _ = rig.primary()
    second = rig.agent()
    assert second.hello()["guardian_pid"] == guardian
    assert "another agent took over" in first.event("GuardianLost")["cause"]
    assert first.ask("close_epoch", 1)[0] == "NoAnswer"
    assert second.ask("status")[1]["closed_epoch"] == 0


def test_agents_that_race_get_one_guardian(rig: Rig) -> None:
    agents = [rig.agent() for _ in range(3)]
    guardians = {agent.hello()["guardian_pid"] for agent in agents}
    assert len(guardians) == 1
    assert rig.lock_holder() in guardians


def test_exit_leaves_nothing_and_waits_for_the_server(rig: Rig) -> None:
    agent, guardian, _ = rig.primary()
    assert agent.ask("exit")[0] == "Refused"
    os.kill(guardian, signal.SIGTERM)  # ignored while a server lives
    assert agent.ask("stop", "immediate")[0] == "Done"
    agent.event("PostmasterExited")
    assert agent.ask("exit")[0] == "Done"
    wait_dead(guardian)
    assert not Path(f"{rig.state_dir}/guardian.sock").exists()


def test_idle_guardian_leaves(rig: Rig) -> None:
    agent = rig.agent(idle_exit_s=0.1)
    guardian = agent.hello()["guardian_pid"]
    assert agent.ask("status")[0] == "GuardianState"
    agent.kill()
    wait_dead(guardian)
    assert rig.agent().hello()["guardian_pid"] != guardian


def test_foreign_state_directory_is_refused(rig: Rig) -> None:
    os.mkdir(rig.state_dir, 0o755)
    agent = rig.agent()
    name, body = agent.receive()
    assert name == "str"
    assert "must be a directory of this user with mode 0700" in body


class Raw:
    """A connection that says anything."""

    def __init__(self, rig: Rig) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        rig.sockets.append(self.socket)
        self.socket.settimeout(DEADLINE_S)
        self.socket.connect(f"{rig.state_dir}/guardian.sock")

    def ask(self, data: bytes) -> dict[str, Any]:
        self.socket.send(data)
        answer: dict[str, Any] = json.loads(self.socket.recv(65536))
        return answer


HELLO = {"v": 1, "id": 1, "op": "hello", "instance": "raw"}


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (b"\xff\x00garbage", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "v: "),
        (b'{"v": 2, "id": 3, "op": "status"}', "v: "),
        ({"op": "no_such"}, "unknown request"),
        ({"op": ["status"]}, "unknown request"),
        ({"op": "arm"}, "handle: "),
        ({"op": "arm", "handle": {"session": "s", "epoch": True}}, "epoch: "),
        ({"op": "arm", "handle": {"session": "s", "epoch": 1}, "fence_at": "1", "hard_at": 2}, "fence_at: "),
        (
            {"op": "arm", "handle": {"session": "s", "epoch": 1}, "fence_at": 1e400, "hard_at": 2},
            "fence_at: ",
        ),
        ({"op": "arm", "handle": {"session": "s", "epoch": 1}, "fence_at": 3, "hard_at": 2}, "hard_at: "),
        ({"op": "start", "writable": False, "argv": [], "env": {}, "cwd": "/"}, "argv: "),
        ({"op": "start", "writable": False, "argv": ["x"], "env": {"a=b": ""}, "cwd": "/"}, "env: "),
        ({"op": "stop", "mode": "gently"}, "mode: "),
        ({"op": "hold", "held": "x" * 40_000}, "held: "),
    ],
)
def test_garbage_gets_an_error_and_no_more(
    garbage_rig: Raw, message: bytes | dict[str, Any], word: str
) -> None:
    assert garbage_rig.ask(json.dumps(HELLO).encode())["ok"]
    data = message if isinstance(message, bytes) else json.dumps({"v": 1, "id": 7, **message}).encode()
    answer = garbage_rig.ask(data)
    assert not answer["ok"]
    assert word in answer["error"]
    assert answer["id"] == (7 if isinstance(message, dict) else answer["id"])
    assert garbage_rig.ask(json.dumps(HELLO).encode())["ok"]


@pytest.fixture
def garbage_rig(rig: Rig) -> Raw:
    rig.agent().hello()
    return Raw(rig)


def test_only_the_controller_commands(rig: Rig) -> None:
    agent, _, _ = rig.primary()
    onlooker = Raw(rig)
    assert onlooker.ask(b'{"v": 1, "id": 1, "op": "status"}')["ok"]
    assert "say hello first" in onlooker.ask(b'{"v": 1, "id": 2, "op": "disarm"}')["error"]
    for _ in range(20):
        Raw(rig)  # many that never speak do not shut anybody out
    agent.arm(1, in_s=70)
    Writer(rig)
