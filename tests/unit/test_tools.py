"""Running programs: deadline, cancellation, output, environment. Real processes, no PostgreSQL."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from postgres_ctl.api import Cancellation, ConnectionTarget, format_conninfo, option_arguments, run_tool
from postgres_ctl.errors import ToolFailed

PLENTY_S = 60.0


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def gone(pid: int) -> bool:
    """Gone or a zombie that only its parent has to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_output_is_kept_and_stdin_is_given() -> None:
    result = run_tool(sh("cat; echo problem >&2; exit 0"), PLENTY_S, stdin=b"hello\n", keep_stdout=True)
    assert result.stdout == "hello\n"
    assert sorted(result.output.split()) == ["hello", "problem"]


def test_failure_tells_the_last_line_and_hides_secrets() -> None:
    with pytest.raises(ToolFailed) as failed:
        run_tool(sh("echo first; echo word secret-word; exit 3"), PLENTY_S, secrets=["secret-word"])
    assert str(failed.value) == "sh failed with exit code 3: word ***"
    assert failed.value.output == "first\nword ***"
    assert not failed.value.cancelled


def test_only_the_tail_of_much_output_is_kept() -> None:
    code = "for i in range(200000): print('line', i)"
    result = run_tool([sys.executable, "-c", code], PLENTY_S)
    assert result.output.endswith("line 199999")
    assert len(result.output) <= 8192


def test_missing_program_is_a_failure() -> None:
    with pytest.raises(ToolFailed, match="no-such-program: No such file"):
        run_tool(["/no-such-program"], PLENTY_S)


def test_deadline_ends_a_program_that_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait; wait"
    with pytest.raises(ToolFailed, match="not finished within") as failed:
        run_tool(sh(script), 0.5, term_grace_s=0.2)
    assert not failed.value.cancelled
    for name in ("child", "self"):
        assert gone(int((tmp_path / name).read_text()))


def test_stopped_program_is_killed_at_its_deadline() -> None:
    with pytest.raises(ToolFailed, match="not finished within"):
        run_tool(sh("kill -STOP $$"), 0.3, term_grace_s=0.2)


def test_cancellation_wakes_the_caller_at_once() -> None:
    cancel = Cancellation()
    started = threading.Event()
    outcome: list[ToolFailed] = []

    def job() -> None:
        started.set()
        with pytest.raises(ToolFailed) as failed:
            run_tool(sh("exec sleep 1000"), 10_000, cancel=cancel)
        outcome.append(failed.value)

    thread = threading.Thread(target=job)
    thread.start()
    assert started.wait(PLENTY_S)
    cancel.set()
    thread.join(PLENTY_S)
    assert not thread.is_alive()
    assert outcome[0].cancelled


def test_program_that_leaves_a_child_with_its_output_open_is_over() -> None:
    result = run_tool(sh("sleep 5 & echo started"), PLENTY_S)
    assert result.output == "started"


def test_private_environment_is_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATRONI_SUPERUSER_PASSWORD", "HAAGENT_X", "KUBERNETES_PORT", "NOTIFY_SOCKET", "PGPASSWORD"):
        monkeypatch.setenv(name, "classified")
    monkeypatch.setenv("HARMLESS", "kept")
    result = run_tool(["/usr/bin/env"], PLENTY_S, passfile="/tmp/passfile", env={"PGOPTIONS": "-c x=1"})
    lines = result.output.splitlines()
    assert "classified" not in result.output
    assert {"HARMLESS=kept", "LC_ALL=C", "PGPASSFILE=/tmp/passfile", "PGOPTIONS=-c x=1"} <= set(lines)


def test_cancellation_is_final() -> None:
    cancel = Cancellation()
    cancel.set()
    cancel.set()
    assert cancel.is_set()
    with pytest.raises(NotImplementedError):
        cancel.clear()
    with pytest.raises(ToolFailed) as failed:
        run_tool(sh("exec sleep 1000"), PLENTY_S, cancel=cancel)
    assert failed.value.cancelled


def test_descriptors_do_not_leak() -> None:
    runs = 20
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(runs):
        run_tool(["/bin/true"], PLENTY_S)
        with pytest.raises(ToolFailed):
            run_tool(["/no-such-program"], PLENTY_S)
    # One descriptor a run would be a leak; what other tests left behind may come and go meanwhile.
    assert len(os.listdir("/proc/self/fd")) < before + runs


def test_conninfo_quotes_what_needs_it() -> None:
    assert format_conninfo({"user": "a b", "dbname": "it's", "host": "h", "x": ""}) == (
        "user='a b' dbname='it\\'s' host=h x=''"
    )


def test_secrets_have_fields_of_their_own() -> None:
    with pytest.raises(ValueError, match="password"):
        ConnectionTarget("h", 5432, "u", options={"password": "secret-word"})


def test_options_of_all_shapes() -> None:
    given: list[str | Mapping[str, object]] = [
        "a",
        "--b",
        {"c": 1, "d": True},
        {"e": False},
        {"pgdata": "/x"},
        {"bad name": 1},
    ]
    arguments, warnings = option_arguments("section", given, {"pgdata"})
    assert arguments == ["--a", "--b", "--c=1", "--d"]
    assert warnings == [
        "section.pgdata: not allowed here, ignored",
        "section.bad name: not allowed here, ignored",
    ]
