"""The test harness itself: processes by directory, overlaps, waits, the guard against silent skips."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import is_listed, read_skips
from tests.support import processes
from tests.support.wait import wait_for
from tests.support.writers import Evidence, Write

ROOT = Path(__file__).resolve().parents[2]


def _write(server: str, timeline: int, sent_at: float, acked_at: float) -> Write:
    return Write(int(sent_at * 1000), "any", sent_at, acked_at, server, timeline)


@pytest.mark.parametrize(
    ("writes", "overlaps"),
    [
        pytest.param([("a", 1, 1, 2), ("b", 2, 3, 4), ("b", 2, 5, 6)], 0, id="failover"),
        pytest.param([("a", 1, 1, 2), ("b", 2, 3, 4), ("a", 3, 5, 6), ("a", 3, 7, 8)], 0, id="and back"),
        pytest.param([("a", 1, 1, 9), ("b", 2, 3, 4)], 0, id="sent before, acknowledged after"),
        pytest.param([("a", 1, 1, 2), ("b", 2, 3, 4), ("a", 1, 5, 6)], 1, id="old primary goes on"),
        pytest.param([("a", 1, 1, 2), ("b", 1, 3, 4)], 1, id="two on one timeline"),
    ],
)
def test_overlap_is_an_acknowledged_write_sent_after_a_newer_tenure_began(
    writes: list[tuple[str, int, float, float]], overlaps: int
) -> None:
    assert len(Evidence(tuple(_write(*w) for w in writes)).overlaps()) == overlaps


def test_processes_of_a_directory_are_found_by_place_and_by_argument_and_ended(tmp_path: Path) -> None:
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    inside, outside, other = tmp_path / "n1", tmp_path, tmp_path / "n10"
    inside.mkdir()
    other.mkdir()

    def start(cwd: Path, argument: Path) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(argument)],
            cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    by_place, by_argument = start(inside, Path("/")), start(outside, inside / "file")
    stranger = start(other, other)
    try:
        assert set(processes.processes_of(inside)) == {by_place.pid, by_argument.pid}
        assert processes.working_in(inside) == [by_place.pid]
        processes.kill_all_of(inside)
        assert by_place.wait() == by_argument.wait() == -9
        assert processes.exists(stranger.pid)
    finally:
        for child in (by_place, by_argument, stranger):
            child.kill()
            child.communicate()


# --- waiting --------------------------------------------------------------------------------------


def test_waiting_returns_the_value_and_counts_faults_as_not_yet() -> None:
    looks = iter([OSError("not there"), 0, "value"])

    def look() -> object:
        seen = next(looks)
        if isinstance(seen, Exception):
            raise seen
        return seen

    assert wait_for(look, 60, "a value") == "value"


def test_waiting_that_ends_in_vain_says_what_for_and_what_was_seen() -> None:
    def look() -> bool:
        raise ConnectionRefusedError("nobody listens")

    with pytest.raises(pytest.fail.Exception, match=r"a server.*nobody listens"):
        wait_for(look, 0.05, "a server")


# --- skips ----------------------------------------------------------------------------------------


def run_with_guard(tmp_path: Path, listed: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A pytest session of its own: one passing test, one skipped, one that fails as expected."""
    (tmp_path / "conftest.py").write_text(
        textwrap.dedent(
            f"""
            from tests.conftest import SkipGuard, read_skips

            def pytest_configure(config):
                if not hasattr(config, "workerinput"):
                    config.pluginmanager.register(SkipGuard(read_skips({listed!r})))
            """
        )
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_sample.py").write_text(
        textwrap.dedent(
            """
            import pytest

            def test_passes(): pass

            def test_skips(): pytest.skip("no server")

            @pytest.mark.xfail(strict=True)
            def test_fails(): assert False
            """
        )
    )
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), ("-n", "1")], ids=["one process", "distributed"])
def test_a_skip_or_expected_failure_that_is_not_listed_fails_the_run(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done = run_with_guard(tmp_path, "test_sample.py::test_skips # there is no server here", *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    section = done.stdout.partition("not listed in tests/skips.txt")[2]
    assert "test_sample.py::test_fails" in section
    assert "test_skips" not in section


def test_listed_skips_and_expected_failures_pass(tmp_path: Path) -> None:
    done = run_with_guard(tmp_path, "test_sample.py::test_* # nothing of it matters")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout


def test_a_module_that_is_skipped_as_a_whole_counts(tmp_path: Path) -> None:
    (tmp_path / "test_whole.py").write_text("import pytest\npytest.skip('all', allow_module_level=True)\n")
    done = run_with_guard(tmp_path, "test_sample.py::* # nothing of it matters")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_whole.py" in done.stdout.partition("not listed in tests/skips.txt")[2]


def test_listed_patterns_take_brackets_literally() -> None:
    listed = read_skips("# comment\n\ntests/test_a.py::test_b[etcd-*] # no etcd\n")
    assert listed == {"tests/test_a.py::test_b[etcd-*]": "no etcd"}
    assert is_listed("tests/test_a.py::test_b[etcd-3]", listed)
    assert not is_listed("tests/test_a.py::test_b[zookeeper]", listed)


def test_a_listed_skip_needs_a_reason() -> None:
    with pytest.raises(ValueError, match="no reason"):
        read_skips("tests/test_a.py::test_b\n")
