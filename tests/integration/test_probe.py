"""Probes on a real server and real directories: what each finds, and what it leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from postgres_ctl.api import ConnectionTarget
from postgres_ctl.facts import ProbeAnswer, ProbeFault
from postgres_ctl.probe import QUIET_BYTES, DiskProbe, ServerProbe
from tests.support.postgres import SUPERUSER, Server, postgres_user, scratch_dir, wait_for  # noqa: F401

pytestmark = pytest.mark.usefixtures("postgres_user")

#: Generous for a healthy server, seconds; and how long one is waited for that is not, seconds.
WELL_S, ILL_S = 30.0, 0.5
GOOD = ProbeAnswer()


@pytest.fixture(scope="module")
def shared(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.create("probed")
    try:
        one.start()
        yield one
    finally:
        one.destroy()


@pytest.fixture
def server(shared: Server) -> Server:
    shared.sql("checkpoint")
    return shared


def target(server: Server) -> ConnectionTarget:
    return ConnectionTarget("127.0.0.1", server.port, SUPERUSER)


def connect(server: Server) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=SUPERUSER, dbname="postgres", autocommit=True
    )


def end_of_wal(server: Server) -> int:
    return int(server.sql("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0])


def test_a_healthy_server_commits_and_an_idle_one_is_not_written_to_for_ever(server: Server) -> None:
    probe, before = ServerProbe(), end_of_wal(server)
    assert probe.look(target(server), WELL_S) == GOOD
    written = end_of_wal(server)
    assert before < written < before + QUIET_BYTES
    for _ in range(3):
        assert probe.look(target(server), WELL_S) == GOOD
    assert end_of_wal(server) == written
    server.sql("select pg_logical_emit_message(false, 'test', repeat('x', 9000))")
    others = end_of_wal(server)
    assert probe.look(target(server), WELL_S) == GOOD
    assert end_of_wal(server) > others
    probe.close()


def test_sessions_that_are_read_only_by_default_are_no_obstacle(server: Server) -> None:
    probe = ServerProbe()
    server.sql("alter system set default_transaction_read_only = on")
    server.sql("select pg_reload_conf()")
    try:
        before = end_of_wal(server)
        assert probe.look(target(server), WELL_S) == GOOD
        assert end_of_wal(server) > before
    finally:
        server.sql("alter system reset default_transaction_read_only")
        server.sql("select pg_reload_conf()")
        probe.close()


def test_a_server_without_room_for_one_more_session_is_written_to_through_the_last_one(
    server: Server,
) -> None:
    probe = ServerProbe()
    assert probe.look(target(server), WELL_S) == GOOD
    with contextlib.ExitStack() as stack:
        taken = []
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                taken.append(stack.enter_context(contextlib.closing(connect(server))))
        taken[0].execute("select pg_logical_emit_message(false, 'test', repeat('x', 9000))")
        row = taken[0].execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert row is not None
        assert probe.look(target(server), WELL_S) == GOOD
        after = taken[0].execute("select pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
        assert after is not None
        assert after != row, "nothing was written"
        nothing_to_go_by = ServerProbe().look(target(server), WELL_S)
        assert nothing_to_go_by.fault is None
        assert "too many clients" in nothing_to_go_by.cause
    probe.close()


def test_a_stopped_postmaster_is_unreached_until_it_goes_on(server: Server) -> None:
    probe = ServerProbe()
    assert probe.look(target(server), WELL_S) == GOOD
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        assert probe.look(target(server), ILL_S).fault is ProbeFault.UNREACHED
        assert probe.look(target(server), ILL_S).fault is ProbeFault.UNREACHED
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert probe.look(target(server), WELL_S) == GOOD
    probe.close()


def test_a_write_that_is_not_flushed_in_time_is_waited_for_and_no_other_begins(server: Server) -> None:
    """commit_delay makes every flush slow."""
    probe, deadlines = ServerProbe(), itertools.cycle((0.02, 0.04, 0.06, 0.08))
    for setting in ("fsync = on", "commit_delay = 100000", "commit_siblings = 0"):
        server.sql(f"alter system set {setting}")
    server.sql("select pg_reload_conf()")

    def hangs() -> bool:
        server.sql("select pg_logical_emit_message(false, 'test', repeat('x', 9000))")
        return probe.look(target(server), next(deadlines)).fault is ProbeFault.HANGS

    try:
        wait_for(hangs, "a write is late")
        late = end_of_wal(server)
        assert probe.look(target(server), WELL_S) == GOOD
        assert end_of_wal(server) - late < QUIET_BYTES
        assert probe.look(target(server), WELL_S) == GOOD
    finally:
        for setting in ("fsync", "commit_delay", "commit_siblings"):
            server.sql(f"alter system reset {setting}")
        server.sql("select pg_reload_conf()")
        probe.close()


def test_a_server_that_is_not_there_is_no_fault_of_a_probe() -> None:
    answer = ServerProbe().look(ConnectionTarget("127.0.0.1", 1, SUPERUSER), WELL_S)
    assert answer.fault is None
    assert answer.cause


def test_a_synchronous_standby_that_does_not_exist_is_not_waited_for(server: Server) -> None:
    probe = ServerProbe()
    server.sql("alter system set synchronous_standby_names = 'nobody'")
    server.sql("select pg_reload_conf()")
    try:
        assert probe.look(target(server), WELL_S) == GOOD
    finally:
        server.sql("alter system reset synchronous_standby_names")
        server.sql("select pg_reload_conf()")
        probe.close()


# --- disks ----------------------------------------------------------------------------------------


def listing(directory: Path) -> set[str]:
    return {str(path) for path in directory.rglob("*")}


def test_a_page_is_written_where_the_data_are_and_nothing_is_left(server: Server) -> None:
    before = listing(server.data_dir)
    assert DiskProbe().look(str(server.data_dir), WELL_S) == GOOD
    assert listing(server.data_dir) == before


def test_without_a_data_directory_nothing_can_be_told() -> None:
    with scratch_dir("probe") as empty:
        assert DiskProbe().look(str(empty), WELL_S) is None
        assert DiskProbe().look(str(empty / "missing"), WELL_S) is None
