"""`haagent demo` as people run it: once whole, once stopped in the middle, once kept and stopped later.

Each run works in a directory of its own, so every process of it can be found afterwards by that directory.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from haagent.demo.bill import Bound, Load, Operation, settle
from haagent.demo.evidence import Ack, Notes, write_gap_s
from tests.support import processes
from tests.support.wait import DEADLINE_S, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
#: A whole run takes half a minute on an idle machine, seconds.
WHOLE_S = 150.0


class Demo:
    """One `haagent demo`, piped. Its TMPDIR is ours, so its scratch directory is found without its help."""

    def __init__(self, scratch: Path, *options: str) -> None:
        self.scratch = scratch
        self.output = scratch.parent / "output.txt"
        environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(REPOSITORY)}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "haagent", "demo", *options],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_told(self, words: str, deadline_s: float = DEADLINE_S) -> None:
        def told() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the demo ended with {self.process.returncode} before {words!r}:\n{self.text}")
            return words in self.text

        wait_for(told, deadline_s, f"the demo says {words!r}")

    def wait(self, deadline_s: float) -> int:
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"the demo did not end:\n{self.text}")

    def living(self) -> list[int]:
        """Everything of it but the command itself."""
        return [pid for pid in processes.processes_of(self.scratch) if pid != self.process.pid]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory that other users can go through, with a short path, for sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="hd-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        path = Path(name) / "t"
        path.mkdir(mode=0o755)
        try:
            yield path
        finally:
            processes.kill_all_of(path)


def test_the_whole_demo_loses_nothing_and_leaves_nothing(scratch: Path) -> None:
    result_file = scratch.parent / "result.json"
    demo = Demo(scratch, "--json", str(result_file))
    code = demo.wait(WHOLE_S)
    text = demo.text
    assert code == 0, text
    result = json.loads(result_file.read_text())
    switchover, restart, node_loss = result["operations"]
    assert (switchover["lost"], restart["lost"]) == (0, 0)
    assert all(operation["acknowledged"] > 0 for operation in result["operations"])
    assert all(operation["write_gap_s"] > 0 for operation in result["operations"])
    assert switchover["new_primary"] != switchover["old_primary"]
    assert node_loss["new_primary"] != node_loss["old_primary"]
    assert len(set(result["rows_by_member"].values())) == 1
    assert result["passed"] is True
    assert len(re.findall(r"write gap [\d.]+ s, acknowledged [\d,]+, lost [\d,]+", text)) == 3
    assert "promote.now" in text
    assert "\x1b" not in text, "no control codes in a pipe"
    assert demo.living() == []
    assert list(scratch.iterdir()) == []


def test_ctrl_c_in_the_middle_of_a_fault_cleans_up(scratch: Path) -> None:
    demo = Demo(scratch)
    demo.wait_told("postmaster ")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait(DEADLINE_S) == 128 + signal.SIGINT, demo.text
    assert "stopped by SIGINT" in demo.text
    assert demo.living() == []
    assert list(scratch.iterdir()) == []


def test_a_directory_in_use_is_refused_and_untouched(scratch: Path) -> None:
    (scratch / "mine").write_text("keep me")
    demo = Demo(scratch, "--dir", str(scratch))
    assert demo.wait(DEADLINE_S) == 1
    assert f"--dir {scratch}: is not empty" in demo.text
    assert (scratch / "mine").read_text() == "keep me"


def test_missing_programs_are_named(scratch: Path) -> None:
    demo = Demo(scratch, "--pg-bin-dir", str(scratch))
    assert demo.wait(DEADLINE_S) == 1
    assert re.search(r"--pg-bin-dir .*: initdb, .* not found there", demo.text)
    assert "Traceback" not in demo.text
    assert list(scratch.iterdir()) == []


def test_stop_refuses_a_directory_without_a_demo(scratch: Path) -> None:
    demo = Demo(scratch, "--stop", str(scratch))
    assert demo.wait(DEADLINE_S) == 1
    assert "there is no demo in here" in demo.text
    assert scratch.exists()


# --- the arithmetic -------------------------------------------------------------------------------


def acks(*times: float) -> list[Ack]:
    return [Ack(number, time - 0.001, time, 5432) for number, time in enumerate(times)]


def test_lost_rows_count_for_the_operation_after_their_acknowledgement() -> None:
    first = Operation("first", began_at=2.0, old="a", new="b", ended_at=4.0)
    second = Operation("second", began_at=6.0, old="b", new="c", ended_at=9.0)
    settle([first, second], acks(1.0, 2.0, 3.5, 5.0, 8.0), held={0, 1, 2, 4})
    assert (first.acknowledged, first.lost_ids, first.gap_s) == (3, [], 1.5)
    assert (second.acknowledged, second.lost_ids, second.gap_s) == (2, [3], 3.0)
    assert first.passed
    assert not second.passed


def test_a_gap_before_the_operation_is_not_its_gap() -> None:
    assert write_gap_s(acks(0.0, 5.0, 6.0, 6.5), since=5.5, until=7.0) == 1.0


def test_a_lost_node_passes_within_its_bound_only() -> None:
    bound = Bound(maximum_lag_bytes=900, status_every_s=1.0, load=Load(2.0, wal_bytes=200, rows=4))
    assert (bound.row_bytes, bound.rows) == (50.0, 20)
    operation = Operation("loss", 0.0, "a", new="b", must_keep_all=False, most_rows=bound.rows)
    operation.lost_ids = list(range(20))
    assert operation.passed
    operation.lost_ids.append(20)
    assert not operation.passed


def test_notes_are_read_as_they_grow(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    notes = Notes(file)
    notes.read()
    file.write_text("ack 4 1.0 1.5 5433\nunknown 8 1.6\nrefused 1.7 the data")
    notes.read()
    assert (len(notes.acks), notes.unknown, notes.last_refusal) == (1, [8], "")
    with file.open("a") as more:
        more.write("base is starting up\nack 12 2.0 2.5 5434\n")
    notes.read()
    assert notes.last_refusal == "the database is starting up"
    assert [ack.row_id for ack in notes.since(1.9)] == [12]
