"""What every test run has: log tails in failures, a clean machine afterwards, and no silent skips.

A test that was skipped or failed as expected proves nothing, so each must be listed with its reason in
tests/skips.txt; one that is not makes the run fail.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support import cluster

SKIPS_FILE = Path(__file__).with_name("skips.txt")


# --- skips ----------------------------------------------------------------------------------------


def read_skips(text: str) -> dict[str, str]:
    """Lines `node id (shell pattern) # reason` -> {pattern: reason}. ValueError for one without a reason."""
    listed = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        pattern, _, reason = line.partition(" # ")
        if not reason.strip():
            raise ValueError(f"tests/skips.txt: no reason given: {line!r}")
        listed[pattern.strip()] = reason.strip()
    return listed


def is_listed(node_id: str, listed: dict[str, str]) -> bool:
    """Parameters in brackets are plain text in a pattern; only `*` and `?` mean something."""
    return any(fnmatch.fnmatchcase(node_id, pattern.replace("[", "[[]")) for pattern in listed)


class SkipGuard:
    """Collects what did not run, on the controller of a distributed run too."""

    def __init__(self, listed: dict[str, str]) -> None:
        self.listed = listed
        self.unlisted: list[str] = []

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        expected_failure = hasattr(report, "wasxfail")
        known = report.nodeid in self.unlisted or is_listed(report.nodeid, self.listed)
        if (report.skipped or expected_failure) and not known:
            self.unlisted.append(report.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unlisted:
            terminalreporter.section("did not run and not listed in tests/skips.txt", red=True, bold=True)
            for node_id in self.unlisted:
                terminalreporter.line(node_id)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the controller, or the only process
        listed = read_skips(SKIPS_FILE.read_text()) if SKIPS_FILE.exists() else {}
        config.pluginmanager.register(SkipGuard(listed), "haagent-skip-guard")
        cluster.sweep_abandoned()


# --- clusters -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _forget_reports() -> None:
    """Logs of an earlier test's cluster do not belong into this one's failure."""
    cluster.forget_reports()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure carries what agents and servers logged."""
    report = yield
    if report.failed:
        logs = cluster.failure_report()
        if logs:
            report.sections.append(("cluster logs", logs))
    return report


def pytest_sessionfinish() -> None:
    cluster.close_all()
