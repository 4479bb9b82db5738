"""haagentctl as a program: real store (`local`), real process, members played by a small HTTP server."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dcs.api import Dcs, Taken, boottime
from dcs.codec import encode_config
from dcs.factory import make_dcs
from tests.support.etcd import EtcdServer

#: Generous: nothing here waits for it unless something is broken.
DEADLINE_S = 60.0
ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "ttl": 30,
    "loop_wait": 1,
    "retry_timeout": 10,
    "maximum_lag_on_failover": 1048576,
    "postgresql": {"use_pg_rewind": True},
}


# --- parts --------------------------------------------------------------------------------------


@dataclass
class Request:
    method: str
    path: str
    body: Any
    authorization: str | None


class StandIn:
    """A member's REST API: answers what it was told to, remembers what it was asked.

    An answer is (status, body) or a function of the body that returns one; None drops the connection.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str], Any] = {}
        self.seen: list[Request] = []
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                text = self.rfile.read(length).decode()
                body = json.loads(text) if text else None
                request = Request(self.command, self.path, body, self.headers.get("Authorization"))
                stand_in.seen.append(request)
                answer = stand_in.answers.get((self.command, self.path), (501, "not expected"))
                answer = answer(body) if callable(answer) else answer
                if answer is None:
                    self.close_connection = True
                    return
                content = answer[1] if isinstance(answer[1], str) else json.dumps(answer[1])
                self.send_response(answer[0])
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        self.up = True

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/patroni"

    def posts(self) -> list[tuple[str, Any]]:
        return [(r.path, r.body) for r in self.seen if r.method != "GET"]

    def stop(self) -> None:
        if self.up:
            self.up = False
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass
class Cluster:
    """Three members in a store: n0 leads."""

    #: Configuration of haagentctl.
    file: Path
    dcs: Dcs
    nodes: dict[str, StandIn] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def filled(self) -> Iterator[Cluster]:
        """With keys and members; both are gone afterwards."""
        try:
            self.dcs.put("initialize", "7710469456714918895", 5)
            self.dcs.put("config", encode_config(CONFIG), 5)
            self.dcs.put("status", json.dumps({"optime": 67108960}), 5)
            for name in ("n0", "n1", "n2"):
                self.nodes[name] = StandIn()
                self.sessions[name] = self.dcs.open_session(600, 5)
                self.member(name)
            assert isinstance(self.dcs.take_leader(self.sessions["n0"], "n0", 5), Taken)
            yield self
        finally:
            for node in self.nodes.values():
                node.stop()
            self.dcs.close()

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "haagent.ctl", "-c", str(self.file), *args]

    def run(self, *args: str, stdin: str = "", **env: str) -> Result:
        done = subprocess.run(
            self.command(*args),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            cwd=ROOT,
            env={**os.environ, **env},
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def member(self, name: str, **fields: Any) -> None:
        """Write the member key; the first one leads."""
        number = int(name[1:])
        value: dict[str, Any] = {
            "conn_url": f"postgres://127.0.0.1:{21100 + number}/postgres",
            "api_url": self.nodes[name].api_url,
            "state": "running",
            "role": "replica" if number else "primary",
            "version": "4.1.5",
            "agent": "haagent/0.1.0",
            "xlog_location": 67108960,
            "timeline": 1,
        }
        if number:
            value |= {"replay_lsn": 67108960, "receive_lsn": 67108960, "replication_state": "streaming"}
        self.dcs.put_member(self.sessions[name], name, json.dumps({**value, **fields}), 5)

    def config(self) -> dict[str, Any]:
        record = self.dcs.snapshot(5).config
        assert record is not None
        return dict(record.data)

    def answer_all(self, method: str, path: str, answer: Any) -> None:
        for node in self.nodes.values():
            node.answers[method, path] = answer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def cluster(tmp_path: Path, store: Path) -> Iterator[Cluster]:
    file = tmp_path / "ctl.yml"
    text = f"scope: faceoff\nlocal: {{path: {store}}}\n"
    file.write_text(text + "restapi: {authentication: {username: admin, password: secret}}\n")
    with Cluster(file, make_dcs("local", {"path": str(store)}, "service", "faceoff")).filled() as made:
        yield made


TABLE = """\
+ Cluster: faceoff (7710469456714918895) --------+----+-------------+-----+------------+-----+
| Member | Host            | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag |
+--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+
| n0     | 127.0.0.1:21100 | Leader  | running   |  1 |             |     |            |     |
| n1     | 127.0.0.1:21101 | Replica | streaming |  1 |   0/4000060 |   0 |  0/4000060 |   0 |
| n2     | 127.0.0.1:21102 | Replica | streaming |  1 |   0/4000060 |   0 |  0/4000060 |   0 |
+--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+
"""
BEFORE = "Current cluster topology\n" + TABLE
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{5}"


# --- looking ------------------------------------------------------------------------------------


def test_list_prints_the_table(cluster: Cluster) -> None:
    assert cluster.run("list") == Result(0, TABLE, "")
    assert cluster.run("list", "faceoff", "-W", "--help").code == 0


def test_list_with_the_time_first(cluster: Cluster) -> None:
    result = cluster.run("list", "-t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", result.out.split("\n")[0])
    assert result.out.split("\n", 1)[1] == TABLE


def test_the_store_is_named_by_url(cluster: Cluster, store: Path) -> None:
    other = cluster.run("-d", f"local:{store}?namespace=elsewhere", "list")
    assert "Cluster: faceoff (uninitialized)" in other.out
    assert cluster.run("--dcs-url", f"local://{store}", "list").out == TABLE
    assert cluster.run("list", DCS_URL=f"local:{store}").out == TABLE


def test_no_name_and_no_scope_lists_nothing(store: Path, tmp_path: Path) -> None:
    args = [sys.executable, "-m", "haagent.ctl", "-d", f"local:{store}", "list"]
    env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=DEADLINE_S, env=env, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert "no cluster name" in done.stderr


def test_a_broken_member_key_is_told_after_the_rest_is_shown(cluster: Cluster) -> None:
    cluster.dcs.put("members/n1", "{broken", 5)
    result = cluster.run("list")
    assert result.code == 1
    assert "| n2     |" in result.out
    assert re.fullmatch(r"Error: key members/n1 in the DCS cannot be understood: .+\n", result.err)


def test_an_unreachable_store_is_one_line(cluster: Cluster, tmp_path: Path) -> None:
    result = cluster.run("-d", "local:/nonexistent/dir/x.db", "list")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"Error: the DCS cannot be used: .+\n", result.err)
    (tmp_path / "garbage.db").write_text("this is no database " * 1000)
    result = cluster.run("-d", f"local:{tmp_path}/garbage.db", "list")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"Error: the DCS cannot be (used|reached): .+\n", result.err)


def test_etcd_version_2_is_refused_with_a_hint(cluster: Cluster) -> None:
    result = cluster.run("-d", "127.0.0.1:2379", "list")
    assert (result.code, result.err) == (
        1,
        "Error: etcd v2 is not supported, use etcd3://127.0.0.1:2379\n",
    )


def test_wrong_use_ends_with_2(cluster: Cluster) -> None:
    assert cluster.run("list", "--nonsense").code == 2
    assert cluster.run("restart").code == 2


def test_watch_shows_again_until_interrupted(cluster: Cluster) -> None:
    with subprocess.Popen(
        cluster.command("list", "-f", "json", "-w", "0.1"), stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        cluster.member("n1", state="stopped", replication_state=None)
        states = {json.loads(first)[1]["State"]}
        deadline = boottime() + DEADLINE_S
        while "stopped" not in states and boottime() < deadline:
            states.add(json.loads(process.stdout.readline())[1]["State"])
        process.terminate()
    assert states == {"streaming", "stopped"}


def test_show_config_and_history_and_version(cluster: Cluster) -> None:
    assert cluster.run("show-config").out == (
        "loop_wait: 1\nmaximum_lag_on_failover: 1048576\npostgresql:\n  use_pg_rewind: true\n"
        "retry_timeout: 10\nttl: 30\n\n"
    )
    assert cluster.run("history").out.split("\n")[1] == "| TL | LSN | Reason | Timestamp | New Leader |"
    assert cluster.run("history", "-f", "json").out == "[]\n"
    assert re.fullmatch(r"haagentctl version \S+\n", cluster.run("version").out)


def test_dsn(cluster: Cluster) -> None:
    assert cluster.run("dsn").out == "host=127.0.0.1 port=21100\n"
    assert cluster.run("dsn", "-r", "replica").out == "host=127.0.0.1 port=21101\n"
    assert cluster.run("dsn", "-m", "n2").out == "host=127.0.0.1 port=21102\n"
    assert cluster.run("dsn", "-m", "n9") == Result(1, "", "Error: Can not find a suitable member\n")
    assert cluster.run("dsn", "-m", "n1", "-r", "any").code == 1


def test_flush_of_a_scheduled_switchover(cluster: Cluster) -> None:
    flush = ("flush", "faceoff", "switchover", "--force")
    assert cluster.run(*flush) == Result(0, "No pending scheduled switchover\n", "")
    cluster.dcs.put("failover", '{"leader":"n0","scheduled_at":"2099-01-01T00:00:00+00:00"}', 5)
    cluster.nodes["n0"].answers["DELETE", "/switchover"] = (200, "scheduled switchover deleted")
    assert cluster.run(*flush) == Result(0, "Success: scheduled switchover deleted\n", "")
    assert cluster.nodes["n0"].posts() == [("/switchover", None)]
    for node in cluster.nodes.values():
        node.stop()
    assert cluster.run(*flush).code == 0
    assert cluster.dcs.snapshot(5).failover is None


def test_flush_of_scheduled_restarts(cluster: Cluster) -> None:
    cluster.member("n1", scheduled_restart={"schedule": "2099-01-01T00:00:00+00:00"})
    cluster.nodes["n1"].answers["DELETE", "/restart"] = (200, "scheduled restart deleted")
    result = cluster.run("flush", "faceoff", "n1", "n2", "restart", "--force")
    assert result.code == 0
    assert result.out.endswith(
        "\nSuccess: flush scheduled restart for member n1\nNo scheduled restart for member n2\n"
    )
    cluster.nodes["n1"].answers["DELETE", "/restart"] = (404, "no restarts are scheduled")
    again = cluster.run("flush", "faceoff", "n1", "restart", "--force")
    assert (again.code, again.out.split("\n")[-2]) == (0, "No scheduled restart for member n1")


def test_version_of_members(cluster: Cluster) -> None:
    status = {"server_version": 150020, "patroni": {"version": "4.1.5"}}
    cluster.answer_all("GET", "/patroni", (200, status))
    cluster.nodes["n2"].stop()
    lines = cluster.run("version", "faceoff").out.split("\n")
    assert lines[1:4] == [
        "",
        "n0: Patroni 4.1.5 PostgreSQL 15.20 (haagent/0.1.0)",
        "n1: Patroni 4.1.5 PostgreSQL 15.20 (haagent/0.1.0)",
    ]
    assert lines[4].startswith("n2: failed to get version: ")


def test_explain_asks_each_member(cluster: Cluster) -> None:
    rules = [{"id": "lag", "passed": False, "detail": "2 MB behind"}]
    answer = {"name": "n1", "can_lead": False, "role": "replica", "rules": rules}
    cluster.nodes["n1"].answers["GET", "/explain"] = (
        200,
        {**answer, "expected_loss_bytes": 2097152, "expected_loss_text": "at most 2097152 bytes"},
    )
    cluster.nodes["n2"].stop()
    result = cluster.run("explain")
    assert result.code == 0
    assert "n1 (replica): could not take over now\n  [NO] lag: 2 MB behind\n" in result.out
    assert "n2 (replica): unknown\n  [NO] member.answers: it does not answer: " in result.out
    report = json.loads(cluster.run("explain", "-f", "json").out)
    assert [m["can_lead"] for m in report["members"]] == [None, False, None]
    assert [m["leads"] for m in report["members"]] == [True, False, False]


# --- switchover and failover --------------------------------------------------------------------


def test_switchover_is_sent_once_to_the_leader_with_the_login(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["POST", "/switchover"] = (200, 'Successfully switched over to "n1"')
    result = cluster.run("switchover", "--leader", "n0", "--candidate", "n1", "--scheduled", "now", "--force")
    assert (result.code, result.err) == (0, "")
    expected = re.escape(BEFORE) + STAMP + ' Successfully switched over to "n1"\n' + re.escape(TABLE)
    assert re.fullmatch(expected, result.out)
    assert cluster.nodes["n0"].posts() == [("/switchover", {"leader": "n0", "candidate": "n1"})]
    assert cluster.nodes["n0"].seen[0].authorization == "Basic YWRtaW46c2VjcmV0"
    assert not cluster.nodes["n1"].seen


@pytest.mark.parametrize(
    ("status", "text", "shown"),
    [
        (412, "candidate does not exists", "Switchover failed, details: 412, candidate does not exists\n"),
        (
            503,
            "Switchover status unknown after 20 seconds; operation may still be in progress",
            "Switchover result unknown, details: 503, Switchover status unknown after 20 seconds; "
            "operation may still be in progress\n",
        ),
    ],
)
def test_refused_switchover_prints_the_answer_and_fails(
    cluster: Cluster, status: int, text: str, shown: str
) -> None:
    cluster.nodes["n0"].answers["POST", "/switchover"] = (status, text)
    assert cluster.run("switchover", "--force") == Result(1, BEFORE + shown, "")


def test_a_lost_answer_is_never_sent_to_somebody_else(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["POST", "/switchover"] = lambda _body: None
    result = cluster.run("switchover", "--force")
    assert result.code == 1
    assert result.out.removeprefix(BEFORE).startswith("Switchover result unknown, details: ")
    assert not cluster.nodes["n1"].seen
    assert not cluster.nodes["n2"].seen
    assert cluster.dcs.snapshot(5).failover is None


def test_the_next_member_is_asked_when_the_leader_cannot_be_reached(cluster: Cluster) -> None:
    cluster.nodes["n0"].stop()
    cluster.nodes["n2"].answers["POST", "/failover"] = (200, 'Successfully failed over to "n2"')
    assert cluster.run("failover", "--candidate", "n2", "--force").code == 0
    assert cluster.nodes["n2"].posts() == [("/failover", {"candidate": "n2"})]


def test_the_wish_is_left_in_the_store_when_nobody_can_be_reached(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.stop()
    result = cluster.run("switchover", "--candidate", "n1", "--force")
    assert (result.code, result.err) == (0, "")
    assert "left the switchover request in the DCS" in result.out
    request = cluster.dcs.snapshot(5).failover
    assert request is not None
    assert (request.leader, request.candidate, request.scheduled_at) == ("n0", "n1", None)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("switchover", "--leader", "nobody"), "Member nobody is not the leader of cluster faceoff"),
        (("switchover", "--candidate", "n0"), "Member n0 is already the leader of cluster faceoff"),
        (
            ("switchover", "--candidate", "n9"),
            "Member n9 does not exist in cluster faceoff or is tagged as nofailover",
        ),
        (("failover",), "Failover could be performed only to a specific candidate"),
        (
            ("switchover", "--scheduled", "tomorrow-ish"),
            "Unable to parse scheduled timestamp (tomorrow-ish). "
            "It should be in an unambiguous format (e.g. ISO 8601)",
        ),
    ],
)
def test_wishes_that_make_no_sense(cluster: Cluster, args: tuple[str, ...], error: str) -> None:
    assert cluster.run(*args, "--force") == Result(1, BEFORE, f"Error: {error}\n")
    assert not any(node.seen for node in cluster.nodes.values())


def test_scheduled_switchover_sends_the_time_with_its_zone(cluster: Cluster, store: Path) -> None:
    cluster.nodes["n0"].answers["POST", "/switchover"] = (202, "Switchover scheduled")
    schedule = ("switchover", "--scheduled", "2099-07-01 12:00", "--force")
    result = cluster.run(*schedule, TZ="Europe/Berlin")
    assert re.match(re.escape(BEFORE) + STAMP + " Switchover scheduled\n", result.out)
    wish = {"leader": "n0", "scheduled_at": "2099-07-01T12:00:00+02:00"}
    assert cluster.nodes["n0"].posts() == [("/switchover", wish)]
    cluster.nodes["n0"].answers["POST", "/switchover"] = (400, "not supported yet: scheduled_at")
    refused = "Switchover failed, details: 400, not supported yet: scheduled_at\n"
    assert cluster.run(*schedule) == Result(1, BEFORE + refused, "")


def test_schedule_is_left_in_the_store_unless_its_time_has_passed(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.stop()
    result = cluster.run("switchover", "--scheduled", "2019-01-01T00:00Z", "--force")
    assert result.code == 1
    assert result.err == "Error: no member could be reached, and the time of the switchover has passed\n"
    assert cluster.dcs.snapshot(5).failover is None
    assert cluster.run("switchover", "--scheduled", "2099-01-01T00:00Z", "--force").code == 0
    request = cluster.dcs.snapshot(5).failover
    assert request is not None
    assert (request.leader, request.scheduled_at) == ("n0", "2099-01-01T00:00:00+00:00")
    listed = cluster.run("list").out
    assert listed.endswith(
        "+\n Switchover scheduled at: 2099-01-01T00:00:00+00:00\n                    from: n0\n"
    )


def test_cluster_without_leader_has_no_switchover(cluster: Cluster) -> None:
    cluster.dcs.delete("leader", 5)
    result = cluster.run("switchover", "--force")
    assert (result.code, result.err) == (1, "Error: This cluster has no leader\n")


@pytest.mark.parametrize(
    "args",
    [
        ("switchover",),
        ("switchover", "--leader", "n0", "--candidate", "n1", "--scheduled", "now"),
        ("failover",),
        ("failover", "--candidate", "n1"),
        ("restart", "faceoff"),
        ("reload", "faceoff"),
        ("reinit", "faceoff", "n1"),
        ("edit-config",),
        ("edit-config", "-s", "ttl=40"),
    ],
)
def test_without_terminal_nothing_is_asked_and_nothing_done(cluster: Cluster, args: tuple[str, ...]) -> None:
    result = cluster.run(*args, stdin="y\ny\ny\n")
    assert result.code == 1
    assert result.err.startswith("Error: standard input is not a terminal")
    assert "--force" in result.err
    assert not any(node.posts() for node in cluster.nodes.values())
    assert cluster.config() == CONFIG


# --- on a terminal ------------------------------------------------------------------------------


class Terminal:
    """A command on a pseudo terminal: wait for text, type answers."""

    def __init__(self, command: list[str], **env: str) -> None:
        self.master, slave = pty.openpty()
        full_env = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={**full_env, "TERM": "xterm", **env},
        )
        os.close(slave)
        self.shown = ""

    def expect(self, text: str) -> None:
        deadline = boottime() + DEADLINE_S
        while text not in self.shown:
            assert self._read(deadline), f"ended without {text!r}: {self.shown}"

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def finish(self) -> int:
        deadline = boottime() + DEADLINE_S
        while self._read(deadline):
            pass
        code = self.process.wait(DEADLINE_S)
        os.close(self.master)
        return code

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - boottime()))
        assert ready, f"nothing more than {self.shown!r}"
        try:
            chunk = os.read(self.master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.shown += chunk.decode()
        return bool(chunk)


def test_switchover_asks_on_a_terminal(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["POST", "/switchover"] = (200, 'Successfully switched over to "n1"')
    terminal = Terminal(cluster.command("switchover"))
    terminal.expect("Primary [n0]: ")
    terminal.type("\n")
    terminal.expect("Candidate ['n1', 'n2'] []: ")
    terminal.type("n1\n")
    terminal.expect(" )  [now]: ")
    assert re.search(
        r"When should the switchover take place \(e\.g\. \d{4}-\d\d-\d\dT\d\d:\d\d \)  \[now\]: ",
        terminal.shown,
    )
    terminal.type("\n")
    terminal.expect("demoting current leader n0? [y/N]: ")
    terminal.type("y\n")
    assert terminal.finish() == 0
    assert cluster.nodes["n0"].posts() == [("/switchover", {"leader": "n0", "candidate": "n1"})]


def test_declined_switchover_sends_nothing(cluster: Cluster) -> None:
    args = ("switchover", "--leader", "n0", "--candidate", "n1", "--scheduled", "now")
    terminal = Terminal(cluster.command(*args))
    terminal.expect("[y/N]: ")
    terminal.type("n\n")
    assert terminal.finish() == 1
    assert "Error: Aborting switchover" in terminal.shown
    assert not cluster.nodes["n0"].seen


def test_a_schedule_is_confirmed_with_its_time(cluster: Cluster) -> None:
    questions = {
        ("switchover", "--leader", "n0", "--candidate", "n1"): (
            "schedule switchover of cluster faceoff at 2099-01-01T00:00:00+00:00, demoting current leader n0",
            "Aborting scheduled switchover",
        ),
        ("restart", "faceoff", "n1"): (
            "schedule restart of members n1 at 2099-01-01 00:00:00+00:00",
            "Aborted restart",
        ),
    }
    for command, (question, end) in questions.items():
        terminal = Terminal(cluster.command(*command, "--scheduled", "2099-01-01T00:00Z"))
        terminal.expect(f"Are you sure you want to {question}? [y/N]: ")
        terminal.type("n\n")
        assert terminal.finish() == 1
        assert f"Error: {end}" in terminal.shown
    assert not any(node.seen for node in cluster.nodes.values())


def test_terminal_shows_colour_unless_told_not_to(cluster: Cluster) -> None:
    coloured = Terminal(cluster.command("list"))
    assert coloured.finish() == 0
    assert "\x1b[32mLeader" in coloured.shown
    plain = Terminal(cluster.command("list"), NO_COLOR="1")
    assert plain.finish() == 0
    assert plain.shown.replace("\r\n", "\n") == TABLE
    without = re.sub(r"\x1b\[\d+m", "", coloured.shown)
    assert without == plain.shown


# --- restart, reload, reinit --------------------------------------------------------------------


def test_restart_tells_each_members_answer(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["POST", "/restart"] = (503, "restart conditions are not satisfied")
    cluster.nodes["n1"].answers["POST", "/restart"] = (200, "restarted successfully")
    cluster.nodes["n2"].answers["POST", "/restart"] = (409, "Another restart is already scheduled")
    result = cluster.run("restart", "faceoff", "--pg-version", "15.3", "--timeout", "2min", "--force")
    assert result == Result(
        1,
        TABLE
        + "Failed: restart for member n0, status code=503, (restart conditions are not satisfied)\n"
        + "Success: restart on member n1\n"
        + "Failed: another restart is already scheduled on member n2\n",
        "",
    )
    assert cluster.nodes["n1"].posts() == [("/restart", {"postgres_version": "15.3", "timeout": "2min"})]


def test_only_members_with_a_pending_restart_are_asked_for_one(cluster: Cluster) -> None:
    assert cluster.run("restart", "faceoff", "--pending", "--force") == Result(0, TABLE, "")
    reason = {"max_connections": {"old_value": "100", "new_value": "120"}}
    cluster.member("n1", pending_restart=True, pending_restart_reason=reason)
    cluster.answer_all("POST", "/restart", (200, "restarted successfully"))
    result = cluster.run("restart", "faceoff", "--pending", "--any", "--force")
    assert result.code == 0
    assert result.out.endswith("\nSuccess: restart on member n1\n")
    assert [node.posts() for node in cluster.nodes.values()] == [
        [], [("/restart", {"restart_pending": True})], [],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("version", "error"),
    [
        ("new", "Invalid PostgreSQL version: new"),
        ("17", "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 17"),
    ],
)
def test_restart_below_something_that_is_no_version(cluster: Cluster, version: str, error: str) -> None:
    result = cluster.run("restart", "faceoff", "--pg-version", version, "--force")
    assert result == Result(1, TABLE, f"Error: {error}\n")
    assert not any(node.seen for node in cluster.nodes.values())


def test_a_misspelt_cluster_has_no_members(cluster: Cluster) -> None:
    for command in (("restart", "faceof"), ("flush", "faceof", "restart")):
        assert cluster.run(*command) == Result(1, "", "Error: faceof cluster doesn't have any members\n")


def test_restart_of_one_member(cluster: Cluster) -> None:
    cluster.answer_all("POST", "/restart", (200, "restarted successfully"))
    result = cluster.run("restart", "faceoff", "n1", "n9", "--force")
    assert (result.code, result.out) == (0, TABLE + "Success: restart on member n1\n")
    assert [name for name, node in cluster.nodes.items() if node.seen] == ["n1"]


def test_member_selection_by_role(cluster: Cluster) -> None:
    result = cluster.run("restart", "faceoff", "n0", "-r", "replica", "--force")
    assert (result.code, result.err) == (1, "Error: No 'replica' among provided members\n")
    cluster.answer_all("POST", "/reload", (202, "reload scheduled"))
    result = cluster.run("reload", "faceoff", "-r", "replica", "--force")
    assert result == Result(
        0,
        TABLE
        + "Reload request received for member n1 and will be processed within 1 seconds\n"
        + "Reload request received for member n2 and will be processed within 1 seconds\n",
        "",
    )


def test_scheduled_restart_replaces_the_one_before_when_forced(cluster: Cluster) -> None:
    cluster.member("n1", scheduled_restart={"schedule": "2098-01-01T00:00:00+00:00"})
    cluster.nodes["n1"].answers["DELETE", "/restart"] = (200, "scheduled restart deleted")
    cluster.answer_all("POST", "/restart", (202, "Restart scheduled"))
    cluster.nodes["n2"].answers["POST", "/restart"] = (400, "not supported yet: schedule")
    at = "2099-01-01T00:00:00+00:00"
    args = ("--scheduled", "2099-01-01 00:00Z", "--pg-version", "17.1", "--force")
    result = cluster.run("restart", "faceoff", "n1", "n2", *args)
    assert result.code == 1
    assert result.out.endswith(
        "\nSuccess: restart scheduled on member n1\n"
        "Failed: restart for member n2, status code=400, (not supported yet: schedule)\n"
    )
    wish = {"postgres_version": "17.1", "schedule": at}
    assert cluster.nodes["n1"].posts() == [("/restart", None), ("/restart", wish)]


def test_nothing_is_scheduled_in_a_pause(cluster: Cluster) -> None:
    cluster.dcs.put("config", encode_config({**CONFIG, "pause": True}), 5)
    for action, *args in (("restart", "faceoff"), ("switchover", "--candidate", "n1")):
        result = cluster.run(action, *args, "--scheduled", "2099-01-01T00:00Z", "--force")
        assert (result.code, result.err) == (1, f"Error: Can't schedule {action} in the paused state\n")
    assert not any(node.seen for node in cluster.nodes.values())


def test_reinit_waits_until_the_clone_is_done(cluster: Cluster) -> None:
    states = iter(["creating replica", "running"])
    node = cluster.nodes["n1"]
    node.answers["POST", "/reinitialize"] = (200, "reinitialize started")
    node.answers["GET", "/patroni"] = lambda _body: (200, {"state": next(states)})
    result = cluster.run("reinit", "faceoff", "n1", "--from-leader", "--wait", "--force")
    assert result == Result(
        0,
        TABLE
        + "Success: reinitialize for member n1\n"
        + "Waiting for reinitialize to complete on: n1\n"
        + "Reinitialize is completed on: n1\n",
        "",
    )
    assert node.posts() == [("/reinitialize", {"force": True, "from_leader": True})]
    assert next(states, None) is None


def test_the_leader_is_never_reinitialized(cluster: Cluster) -> None:
    result = cluster.run("reinit", "faceoff", "n0", "--force")
    assert (result.code, result.err) == (1, "Error: No 'replica' among provided members\n")
    result = cluster.run("reinit", "faceoff", "--force")
    assert result.code == 1
    assert not any(node.seen for node in cluster.nodes.values())


def test_running_job_may_be_cancelled_for_the_reinit(cluster: Cluster) -> None:
    node = cluster.nodes["n1"]

    def answer(body: Any) -> tuple[int, str]:
        return (200, "reinitialize started") if body["force"] else (503, "restart already in progress")

    node.answers["POST", "/reinitialize"] = answer
    terminal = Terminal(cluster.command("reinit", "faceoff", "n1"))
    terminal.expect("Are you sure you want to reinitialize members n1? [y/N]: ")
    terminal.type("y\n")
    terminal.expect("reinitialize anyway? [y/N]: ")
    terminal.type("y\n")
    assert terminal.finish() == 0
    assert [body["force"] for _, body in node.posts()] == [False, True]


# --- pause and resume ---------------------------------------------------------------------------


def patching(cluster: Cluster, publish: Callable[[bool], None]) -> Callable[[Any], tuple[int, Any]]:
    """What an agent does with PATCH /config, `publish` being the members' reaction."""

    def answer(body: Any) -> tuple[int, Any]:
        changed = {k: v for k, v in {**cluster.config(), **body}.items() if v is not None}
        cluster.dcs.put("config", encode_config(changed), 5)
        publish(bool(body["pause"]))
        return 200, changed

    return answer


def publish_all(cluster: Cluster) -> Callable[[bool], None]:
    def publish(paused: bool) -> None:
        for name in cluster.nodes:
            cluster.member(name, **({"pause": True} if paused else {}))

    return publish


def test_pause_waits_for_every_member_and_resume_too(cluster: Cluster) -> None:
    cluster.answer_all("GET", "/patroni", (200, {"state": "running"}))
    cluster.nodes["n0"].answers["PATCH", "/config"] = patching(cluster, publish_all(cluster))
    assert cluster.run("pause", "--wait") == Result(
        0,
        "'pause' request sent, waiting until it is recognized by all nodes\n"
        "Success: cluster management is paused\n",
        "",
    )
    assert cluster.config()["pause"] is True
    assert cluster.run("pause") == Result(1, "", "Error: Cluster is already paused\n")
    assert cluster.run("resume", "--wait").out == (
        "'resume' request sent, waiting until it is recognized by all nodes\n"
        "Success: cluster management is resumed\n"
    )
    assert cluster.config() == CONFIG
    assert cluster.run("resume") == Result(1, "", "Error: Cluster is not paused\n")


def test_pause_names_members_that_did_not_see_it(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["PATCH", "/config"] = patching(
        cluster, lambda paused: cluster.member("n0", pause=paused)
    )
    result = cluster.run("pause", "--wait")
    assert result.code == 1
    assert result.out.endswith("\nn1, n2 members didn't recognized pause state after 2 seconds\n")


def test_pause_goes_through_any_member(cluster: Cluster) -> None:
    cluster.nodes["n0"].stop()
    cluster.nodes["n1"].answers["PATCH", "/config"] = patching(cluster, lambda _paused: None)
    assert cluster.run("pause").code == 0
    for node in cluster.nodes.values():
        node.stop()
    cluster.dcs.put("config", encode_config(CONFIG), 5)
    result = cluster.run("pause")
    assert (result.code, result.err) == (1, "Error: Can not find accessible cluster member\n")


def test_refused_pause_fails(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["PATCH", "/config"] = (409, "busy")
    result = cluster.run("pause")
    assert result == Result(1, "Failed: pause cluster management, status code=409, (busy)\n", "")


def test_resume_needs_force_while_members_are_missing(cluster: Cluster) -> None:
    cluster.answer_all("GET", "/patroni", (200, {"state": "running"}))
    cluster.dcs.put("config", encode_config({**CONFIG, "pause": True}), 5)
    cluster.dcs.put("status", json.dumps({"optime": 67108960, "retain_slots": ["n0", "n1", "n2", "n3"]}), 5)
    cluster.nodes["n2"].stop()
    result = cluster.run("resume")
    assert result.code == 1
    assert re.match(r"Missing members: n2 \(.+\), n3 \(no member key\)\.", result.out)
    assert "--force" in result.err
    cluster.nodes["n0"].answers["PATCH", "/config"] = patching(cluster, lambda _paused: None)
    assert cluster.run("resume", "--force").code == 0
    assert cluster.config() == CONFIG


def test_the_same_through_etcd(tmp_path: Path) -> None:
    with EtcdServer() as server:
        file = tmp_path / "ctl.yml"
        file.write_text(f"scope: faceoff\nnamespace: test\netcd3: {{host: '{server.hostport}'}}\n")
        dcs = make_dcs("etcd3", {"host": server.hostport}, "test", "faceoff")
        made = Cluster(file, dcs)
        with made.filled():
            made.nodes["n0"].answers["PATCH", "/config"] = patching(made, publish_all(made))
            assert made.run("list") == Result(0, TABLE, "")
            assert made.run("pause", "--wait").code == 0
            assert made.run("edit-config", "-q", "-s", "pause=null", "-s", "ttl=40", "--force").code == 0
            assert made.config() == {**CONFIG, "ttl": 40}


# --- edit-config --------------------------------------------------------------------------------


def test_edit_config_shows_the_difference_and_writes(cluster: Cluster) -> None:
    result = cluster.run("edit-config", "-p", "max_connections=120", "--force")
    assert result == Result(
        0,
        "--- \n+++ \n@@ -1,6 +1,8 @@\n loop_wait: 1\n maximum_lag_on_failover: 1048576\n postgresql:\n"
        "+  parameters:\n+    max_connections: 120\n   use_pg_rewind: true\n retry_timeout: 10\n ttl: 30\n"
        "Configuration changed\n",
        "",
    )
    assert cluster.config()["postgresql"] == {"use_pg_rewind": True, "parameters": {"max_connections": 120}}
    assert cluster.run("edit-config", "-p", "max_connections=120", "--force").out == "Not changed\n"
    assert cluster.run("edit-config", "-q", "-p", "max_connections=null", "--force").out == (
        "Configuration changed\n"
    )
    assert cluster.config() == CONFIG


def test_a_long_difference_is_paged_before_the_question(cluster: Cluster) -> None:
    command = cluster.command("edit-config", "-s", "ttl=40")
    terminal = Terminal(command, LINES="5", PAGER="sed s/^/paged:/", NO_COLOR="1")
    terminal.expect("Apply these changes? [y/N]: ")
    terminal.type("n\n")
    assert terminal.finish() == 0
    assert "paged:+ttl: 40" in terminal.shown
    assert cluster.config() == CONFIG


def test_edit_config_from_standard_input(cluster: Cluster) -> None:
    result = cluster.run("edit-config", "-q", "--apply", "-", stdin="ttl: 60\nloop_wait: null\n")
    assert (result.code, result.out) == (1, "Use --force option to apply changes\n")
    assert (
        cluster.run("edit-config", "-q", "--apply", "-", "--force", stdin="ttl: 60\nloop_wait: null\n").code
        == 0
    )
    assert cluster.config() == {**{k: v for k, v in CONFIG.items() if k != "loop_wait"}, "ttl": 60}
    assert cluster.run("edit-config", "-q", "--replace", "-", "--force", stdin="ttl: 40\n").code == 0
    assert cluster.config() == {"ttl": 40}


def test_edit_config_by_editor_loses_against_another_writer(
    cluster: Cluster, store: Path, tmp_path: Path
) -> None:
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import sys\nfrom dcs.local import LocalDcs\n"
        f"dcs = LocalDcs({str(store)!r}, 'service', 'faceoff')\n"
        "dcs.put('config', '{\"ttl\":50}', 5)\ndcs.close()\n"
        "open(sys.argv[1], 'a').write('check_timeline: true\\n')\n"
    )
    command = f"{sys.executable} {editor}"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {"EDITOR": command, "PYTHONPATH": path}
    result = cluster.run("edit-config", "-q", "--force", **env)
    assert (result.code, result.err) == (1, "Error: Config modification aborted due to concurrent changes\n")
    assert cluster.config() == {"ttl": 50}
    editor.write_text("import sys\nopen(sys.argv[1], 'a').write('check_timeline: true\\n')\n")
    assert cluster.run("edit-config", "-q", "--force", **env).out == "Configuration changed\n"
    assert cluster.config() == {"ttl": 50, "check_timeline": True}


def test_edit_config_without_key(cluster: Cluster) -> None:
    cluster.dcs.delete("config", 5)
    result = cluster.run("edit-config", "-s", "ttl=40", "--force")
    assert (result.code, result.err) == (
        1,
        "Error: The config key does not exist in the cluster faceoff\n",
    )


def test_edit_config_refuses_what_the_agents_would_refuse(cluster: Cluster) -> None:
    result = cluster.run("edit-config", "-q", "-s", "standby_cluster=yes", "--force")
    assert result.code == 1
    assert result.err.startswith("Error: standby_cluster")
    assert cluster.config() == CONFIG


# --- remove -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ("nope\n", "Cluster names specified do not match"),
        ("faceoff\nyes\n", 'You did not exactly type "Yes I am aware"'),
        ("faceoff\nYes I am aware\nn1\n", "You did not specify the current leader of the cluster"),
        ("faceoff\n", "standard input ended: give each answer as a line of it"),
    ],
)
def test_remove_needs_every_answer(cluster: Cluster, answers: str, error: str) -> None:
    result = cluster.run("remove", "faceoff", stdin=answers)
    assert (result.code, result.err.strip()) == (1, f"Error: {error}")
    assert cluster.config() == CONFIG


def test_remove_takes_the_cluster_out_of_the_store(cluster: Cluster, store: Path) -> None:
    other = make_dcs("local", {"path": str(store)}, "service", "faceoff2")
    other.put("config", encode_config(CONFIG), 5)
    result = cluster.run("remove", "faceoff", stdin="faceoff\nYes I am aware\nn0\n")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(TABLE)
    left = cluster.dcs.snapshot(5)
    assert (left.initialize, left.leader, left.config, left.members) == (None, None, None, ())
    assert other.snapshot(5).config is not None
    other.close()


# --- standby clusters ---------------------------------------------------------------------------


def test_demote_cluster_is_refused_where_it_cannot_be(cluster: Cluster) -> None:
    result = cluster.run("demote-cluster", "--host", "10.0.0.9,", "--port", "5432", "--force")
    assert (result.code, result.out) == (1, "")
    assert re.match("Error: standby_cluster.host '10.0.0.9,' must be a host", result.err)
    assert cluster.config() == CONFIG
    assert not any(node.seen for node in cluster.nodes.values())
    nothing = cluster.run("demote-cluster", "--force")
    wanted = "At least --host, --port or --restore-command should be specified"
    assert (nothing.code, nothing.err) == (1, f"Error: {wanted}\n")
    promoted = cluster.run("promote-cluster", "--force")
    assert (promoted.code, promoted.err) == (1, "Error: Cluster is already in the required state\n")


def test_cluster_of_patroni_is_demoted_and_promoted(cluster: Cluster) -> None:
    def answer(body: Any) -> tuple[int, Any]:
        changed = {k: v for k, v in {**cluster.config(), **body}.items() if v is not None}
        cluster.dcs.put("config", encode_config(changed), 5)
        role = "primary" if body["standby_cluster"] is None else "standby_leader"
        cluster.member("n0", agent=None, role=role)
        return 200, changed

    for name in cluster.nodes:
        cluster.member(name, agent=None)
    cluster.nodes["n0"].answers["PATCH", "/config"] = answer
    result = cluster.run("demote-cluster", "--host", "h", "--primary-slot-name", "s", "--force")
    assert result.code == 0
    assert re.fullmatch(STAMP + " cluster is successfully demoted\n", result.out.removeprefix(BEFORE))
    assert cluster.config()["standby_cluster"] == {"host": "h", "primary_slot_name": "s"}
    again = cluster.run("demote-cluster", "--host", "h", "--force")
    assert (again.code, again.err) == (1, "Error: Cluster is already in the required state\n")
    result = cluster.run("promote-cluster", "--force")
    assert result.code == 0
    assert re.search(STAMP + " cluster is successfully promoted\n", result.out)
    assert cluster.config() == CONFIG


def test_a_demotion_on_its_way_is_told(cluster: Cluster) -> None:
    for name in cluster.nodes:
        cluster.member(name, agent=None)
    cluster.nodes["n0"].answers["PATCH", "/config"] = (200, {})
    terminal = Terminal(cluster.command("demote-cluster", "--host", "h", "--force"))
    terminal.expect(" cluster is unlocked: False, leader role: primary, leader state: running\r\n")
    cluster.member("n0", agent=None, role="standby_leader", state="starting")
    terminal.expect(" cluster is unlocked: False, leader role: standby_leader, leader state: starting\r\n")
    cluster.member("n0", agent=None, role="standby_leader")
    assert terminal.finish() == 0
    assert terminal.shown.endswith(" cluster is successfully demoted\r\n")
    cluster.dcs.delete("leader", 5)
    without = cluster.run("demote-cluster", "--host", "h", "--force")
    assert (without.code, without.err) == (1, "Error: Cluster has no leader, demotion is not possible\n")


def test_failover_to_an_asynchronous_member_is_asked_for(cluster: Cluster) -> None:
    cluster.dcs.put("sync", json.dumps({"leader": "n0", "quorum": 0, "sync_standby": "n1"}), 5)
    terminal = Terminal(cluster.command("failover", "--candidate", "n2"))
    terminal.expect("Are you sure you want to failover to the asynchronous node n2? [y/N]: ")
    terminal.type("n\n")
    assert terminal.finish() == 1
    assert not any(node.seen for node in cluster.nodes.values())


# --- the program itself -------------------------------------------------------------------------


def test_called_patronictl_it_is_patronictl(cluster: Cluster, tmp_path: Path) -> None:
    program, alias = tmp_path / "haagentctl", tmp_path / "patronictl"
    program.write_text(f"#!{sys.executable}\nfrom haagent.ctl.__main__ import main\nmain()\n")
    program.chmod(0o755)
    alias.symlink_to(program)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*command: str, **more: str) -> str:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=DEADLINE_S, env={**env, **more}, check=True
        ).stdout

    assert run(str(alias), "version") == "patronictl version 4.1.5\n"
    assert "_HAAGENTCTL_COMPLETE" in run(str(program), _HAAGENTCTL_COMPLETE="bash_source")
    words = {"COMP_WORDS": "patronictl re", "COMP_CWORD": "1", "_PATRONICTL_COMPLETE": "bash_complete"}
    assert run(str(alias), **words).split() == [
        f"plain,{name}" for name in ("reinit", "reload", "remove", "restart", "resume")
    ]


def test_log_level_comes_from_the_environment(cluster: Cluster) -> None:
    cluster.nodes["n0"].answers["GET", "/patroni"] = (200, {"patroni": {"version": "4.1.5"}})
    loud = cluster.run("version", "faceoff", "n0", LOGLEVEL="error", PATRONI_LOG_LEVEL="debug")
    assert "DEBUG: " in loud.err
    assert "secret" not in loud.err
    assert cluster.run("list", LOGLEVEL="nonsense") == Result(0, TABLE, "")
