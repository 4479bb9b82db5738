"""Logging and the journal: what is written, and that nobody waits for it."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from haagent import log
from haagent.config.types import LogConfig
from haagent.journal import FILE_NAME, RECENT, Event, Journal
from postgres_ctl.facts import Lsn

DEADLINE_S = 60
HEARTBEAT = "no action. I am (n1), the leader with the lock"


class Output:
    """A pipe in the place of stderr."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()

    def text(self) -> str:
        """Everything written so far; logging is shut down."""
        assert log.shutdown(DEADLINE_S)
        os.set_blocking(self.read_fd, False)
        try:
            return os.read(self.read_fd, 1 << 20).decode()
        except BlockingIOError:
            return ""

    def lines(self) -> list[str]:
        return self.text().splitlines()


@pytest.fixture
def output() -> Iterator[Output]:
    found = Output()
    root = logging.getLogger()
    try:
        yield found
    finally:
        os.set_blocking(found.read_fd, False)
        log.shutdown(0.0)
        root.setLevel(logging.WARNING)
        os.close(found.read_fd)
        os.close(found.write_fd)


def configure(output: Output, secrets: tuple[str, ...] = (), **config: Any) -> log.QueueingHandler:
    root = logging.getLogger()
    for handler in list(root.handlers):  # pytest's own raise for bad records
        if not isinstance(handler, log.QueueingHandler):
            root.removeHandler(handler)
    return log.configure(LogConfig(**config), secrets, output.write_fd)


def fields_of(line: str) -> dict[str, str]:
    pairs = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


# --- lines --------------------------------------------------------------------------------------


def test_plain_lines_look_as_tools_expect(output: Output) -> None:
    configure(output)
    logging.getLogger("x").info("Lock owner: %s; I am %s", "n0", "n1")
    (line,) = output.lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO: Lock owner: n0; I am n1", line)


def test_logfmt_carries_fields_and_quotes_what_needs_it(output: Output) -> None:
    configure(output, type="logfmt", static_fields={"dc": "a b"})
    Journal().decision("P3", 'say "hi"\n', epoch=4, lsn=Lsn(5000), took_ms=3.14159, extra=None, ok=True)
    (line,) = output.lines()
    found = fields_of(line)
    assert found.pop("time").endswith("+00:00")
    assert found == {
        "level": "INFO",
        "msg": 'say "hi"\n',
        "kind": "decision",
        "rule": "P3",
        "seq": "1",
        "epoch": "4",
        "lsn": "0/1388",
        "took_ms": "3.1",
        "ok": "true",
        "dc": "a b",
    }


def test_json_has_the_chosen_fields_and_those_of_the_event(output: Output) -> None:
    configure(output, type="json", format=(("message", "message"), ("levelname", "severity")))
    Journal().decision("P3", "because", line="promoted self", level=logging.WARNING, timeline=7)
    (line,) = output.lines()
    assert json.loads(line) == {
        "message": "promoted self",
        "severity": "WARNING",
        "kind": "decision",
        "rule": "P3",
        "seq": 1,
        "reason": "because",
        "timeline": 7,
    }


def test_why_is_told_before_a_heartbeat_once(output: Output) -> None:
    configure(output)
    journal = Journal()
    for line in ("lag: too far behind\nI may not lead", "lag: too far behind\nI may not lead", "all is well"):
        journal.decision("P3", "a reason", line=line, heartbeat=True)
    said = [line.split(": ", 1)[1] for line in output.lines()]
    assert said == ["lag: too far behind", "I may not lead", "I may not lead", "all is well"]


def test_levels_per_logger_and_back_again(output: Output) -> None:
    configure(output, level="WARNING", loggers={"a.b": "DEBUG"})
    logging.getLogger("a.b").debug("one")
    logging.getLogger("a").info("two")
    configure(output, level="WARNING")
    logging.getLogger("a.b").debug("three")
    assert [line.rpartition(" ")[2] for line in output.lines()] == ["one"]


@pytest.mark.parametrize("kind", ["plain", "logfmt", "json"])
@pytest.mark.parametrize(("level", "shown"), [("ERROR", True), ("DEBUG", False)])
def test_tracebacks_by_level(output: Output, kind: str, level: str, shown: bool) -> None:
    configure(output, type=kind, traceback_level=level)
    try:
        raise KeyError("inner")
    except KeyError:
        logging.getLogger("x").exception("outer")
    text = output.text()
    assert "outer" in text
    assert ("Traceback" in text) == shown


@pytest.mark.parametrize("kind", ["plain", "logfmt", "json"])
def test_secrets_never_show(output: Output, kind: str) -> None:
    secrets = ('hunter2"\\quoted', "rep", "longpassword")
    configure(output, secrets, type=kind)
    try:
        raise ValueError(f"password={secrets[0]}")
    except ValueError:
        logging.getLogger("x").exception("user rep is a replica, %s, xlongpasswordx", secrets[0])
    Journal(secrets=secrets).event("x", "y", dsn=f"password={secrets[0]}", rep="rep")
    text = output.text()
    assert "hunter2" not in text
    assert "longpassword" not in text
    assert "user *** is a replica" in text


def test_a_record_that_cannot_be_rendered_disturbs_nobody(output: Output) -> None:
    configure(output)
    logging.getLogger("x").info("%d apples", "many")
    logging.getLogger("x").info("fine")
    assert [line.rpartition(" ")[2] for line in output.lines()] == ["fine"]


# --- nobody waits -------------------------------------------------------------------------------


def test_a_stuck_reader_holds_nobody_up_and_losses_are_told(output: Output) -> None:
    handler = configure(output, max_queue_size=10)
    big = "x" * 100_000  # more than a pipe holds: the writer is stuck in the first record
    done = threading.Event()

    def log_much() -> None:
        for _ in range(1000):
            logging.getLogger("x").info(big)
        done.set()

    threading.Thread(target=log_much, daemon=True).start()
    assert done.wait(DEADLINE_S)
    lost = log.lost_records()
    assert 1000 - 12 <= lost <= 990
    assert log.queued_records() >= 9
    assert not handler.spool.flush(0.0)
    text = drain(output, handler)
    assert text.count(big) == 1000 - lost + 1
    told = [int(n) for n in re.findall(r"WARNING: (\d+) log records were lost", text)]
    assert sum(told) == lost


def drain(output: Output, handler: log.QueueingHandler) -> str:
    """Read until everything queued is written, one more record included."""
    parts: list[bytes] = [b""]

    def read_to_the_mark() -> None:
        while not parts[-1].endswith(b"\0"):
            parts.append(os.read(output.read_fd, 1 << 20))

    reader = threading.Thread(target=read_to_the_mark, daemon=True)
    reader.start()
    assert handler.spool.flush(DEADLINE_S)
    logging.getLogger("x").info("x" * 100_000)
    assert log.shutdown(DEADLINE_S)
    os.write(output.write_fd, b"\0")
    reader.join(DEADLINE_S)
    return b"".join(parts).decode()


def test_shutdown_says_when_not_everything_was_written(output: Output) -> None:
    configure(output)
    logging.getLogger("x").info("x" * 1_000_000)
    assert not log.shutdown(0.0)
    os.set_blocking(output.read_fd, True)
    read = 0
    while read < 1_000_000:  # lets the writer end
        read += len(os.read(output.read_fd, 1 << 20))


# --- files --------------------------------------------------------------------------------------


def test_files_rotate_and_have_their_mode(output: Output, tmp_path: Path) -> None:
    configure(output, dir=f"{tmp_path}/logs", file_size_bytes=1000, file_num=2, mode=0o640)
    for n in range(100):
        logging.getLogger("x").info("record %03d", n)
    assert output.text() == ""
    names = sorted(p.name for p in (tmp_path / "logs").iterdir())
    assert names == ["patroni.log", "patroni.log.1", "patroni.log.2"]
    assert all(p.stat().st_size <= 1000 for p in (tmp_path / "logs").iterdir())
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "logs").iterdir()} == {0o640}
    kept = "".join((tmp_path / "logs" / name).read_text() for name in reversed(names))
    numbers = [int(n) for n in re.findall(r"record (\d+)", kept)]
    assert numbers == list(range(100))[-len(numbers) :]


def test_an_unusable_directory_means_stderr(output: Output, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configure(output, dir=f"{tmp_path}/file")
    logging.getLogger("x").info("still here")
    assert "still here" in output.text()


def test_a_reload_moves_the_log(output: Output, tmp_path: Path) -> None:
    handler = configure(output)
    logging.getLogger("x").info("one")
    assert configure(output, dir=str(tmp_path), type="json") is handler
    logging.getLogger("x").info("two")
    configure(output, type="logfmt")
    logging.getLogger("x").info("three")
    before, after = output.lines()
    assert before.endswith("INFO: one")
    assert "msg=three" in after
    assert json.loads((tmp_path / "patroni.log").read_text())["message"] == "two"


# --- journal ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "count"),
    [
        ({"type": "plain"}, 4),
        ({"type": "plain", "deduplicate_heartbeat_logs": True}, 2),
        ({"type": "logfmt"}, 2),
        ({"type": "json"}, 2),
    ],
)
def test_heartbeats_that_repeat(output: Output, config: dict[str, Any], count: int) -> None:
    configure(output, **config)
    journal = Journal()
    journal.decision("L1", "leading", line=HEARTBEAT, heartbeat=True)
    journal.decision("L1", "leading", line=HEARTBEAT, heartbeat=True)
    journal.event("noted", "something happened")
    journal.decision("L1", "leading", line=HEARTBEAT, heartbeat=True)
    journal.decision("L1", "leading", line=HEARTBEAT, heartbeat=True)
    assert journal.recent()[0].reason == "something happened"
    assert len(journal.recent()) == 1
    assert output.text().count(HEARTBEAT) == count


def test_recent_keeps_the_last_events_in_order() -> None:
    journal = Journal()
    for n in range(RECENT + 5):
        journal.event("n", f"event {n}")
    assert [e.reason for e in journal.recent()][:1] == ["event 5"]
    assert len(journal.recent()) == RECENT
    assert [e.seq for e in journal.recent(after_seq=RECENT + 3)] == [RECENT + 4, RECENT + 5]


def test_events_are_written_for_others_to_follow(tmp_path: Path) -> None:
    seen: list[Event] = []
    journal = Journal(str(tmp_path), on_event=seen.append, secrets=("hunter2",))
    journal.decision("P3", "took hunter2", lsn=Lsn(1), members=("a", "b"), why={"x": Lsn(2)})
    journal.event("fenced", "the lease ended", level=logging.ERROR)
    assert journal.close(DEADLINE_S)
    path = tmp_path / FILE_NAME
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["rule"], first["reason"], first["lsn"]) == ("P3", "took ***", "0/1")
    assert (first["members"], first["why"]) == (["a", "b"], {"x": "0/2"})
    assert (second["kind"], second["seq"]) == ("fenced", 2)
    assert [e.as_dict() for e in seen] == [first, second]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failing_listener_and_an_unwritable_directory_disturb_nobody(tmp_path: Path) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("listener")

    (tmp_path / "file").write_text("")
    journal = Journal(f"{tmp_path}/file", on_event=fail)
    assert journal.event("x", "y").seq == 1
    assert journal.close(DEADLINE_S)
    assert len(journal.recent()) == 1
