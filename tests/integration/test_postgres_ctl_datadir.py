"""Life of a data directory with the real programs: bootstrap, clone, rewind, wipe, left-over processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest

from postgres_ctl.api import Cancellation, ConnectionTarget
from postgres_ctl.basebackup import CloneSpec, clone, copied_bytes
from postgres_ctl.bootstrap import InitdbSpec, RoleSpec, bootstrap, create_roles
from postgres_ctl.config_files import RecoveryConfig, ServerConfig, write_config, write_pgpass
from postgres_ctl.controldata import (
    history_mtime,
    major_version,
    read_controldata,
    read_history,
    shutdown_checkpoint_lsn,
)
from postgres_ctl.datadir import data_dir_state, move_aside, wipe
from postgres_ctl.errors import ConfigFileError, DataDirError, PostgresError, ToolFailed
from postgres_ctl.facts import ControlState, DataDirState, Lsn
from postgres_ctl.gucs import protected_parameters
from postgres_ctl.process import children, find_postmaster, leftovers, postmaster_argv, read_postmaster_pid
from postgres_ctl.queries import Session, identify_system, timeline_history
from postgres_ctl.rewind import (
    NotNeeded,
    RewindFailed,
    RewindSpec,
    Rewound,
    diverged_dir,
    interrupted,
    keep_diverged_wal,
    possible,
    rewind,
)
from postgres_ctl.standby import Change, needs_change
from postgres_ctl.timelines import free_numbers, hold_numbers
from tests.support.postgres import (
    BIN_DIR,
    SUPERUSER,
    Server,
    as_postgres_user,
    postgres_user,  # noqa: F401
    scratch_dir,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("postgres_user")

PLENTY_S = 60.0
HOSTILE_PASSWORD = 'it\'s \\ a $r$ "secret"; -- ä'
HBA = ("local all all scram-sha-256", "host all all 127.0.0.1/32 scram-sha-256",
       "host replication all 127.0.0.1/32 scram-sha-256")  # fmt: skip


@pytest.fixture
def scratch(postgres_user: None) -> Iterator[Path]:  # noqa: F811
    with scratch_dir("datadir") as path:
        yield path


@pytest.fixture
def server(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.create("one")
    try:
        yield one
    finally:
        one.destroy()


@pytest.fixture
def other(postgres_user: None) -> Iterator[Server]:  # noqa: F811
    one = Server.empty("other")
    try:
        yield one
    finally:
        one.destroy()


def target(server: Server, user: str = SUPERUSER, password: str | None = None) -> ConnectionTarget:
    return ConnectionTarget("127.0.0.1", server.port, user, password=password)


def server_config(server: Server, **parameters: str) -> ServerConfig:
    """What the agent would write for `server`."""
    return ServerConfig(
        data_dir=str(server.data_dir),
        listen_addresses="127.0.0.1",
        port=server.port,
        cluster_name="batman",
        parameters={"unix_socket_directories": str(server.root), "fsync": "off", "shared_buffers": "8MB"}
        | parameters,
        protected=protected_parameters({})[0],
        hba=HBA,
    )


def start_as_agent(server: Server, config: ServerConfig, ready: bool = True) -> None:
    server.start(
        postmaster_argv(BIN_DIR, config.data_dir, config.config_file, config.command_line()), ready=ready
    )


# --- bootstrap to streaming, as the agent would do it -----------------------------------------------


def test_bootstrap_clone_and_stream_with_passwords(server: Server, other: Server) -> None:
    """The whole way of a new cluster: nobody can log in without the passwords that were configured."""
    wipe(str(server.data_dir))
    admin = RoleSpec("Admin", HOSTILE_PASSWORD, superuser=True)
    replication = RoleSpec('repli"cator', "rep:word\\", replication=True)
    rewinder = RoleSpec("rewind_user", "rew", rewind=True)
    options: list[str | Mapping[str, object]] = [{"encoding": "UTF8"}, "data-checksums", "nosync"]
    spec = InitdbSpec(str(server.data_dir), BIN_DIR, admin, options, [replication, rewinder])
    warnings = bootstrap(spec, PLENTY_S)
    assert warnings == ("bootstrap.initdb.nosync: not allowed here, ignored",)
    assert data_dir_state(str(server.data_dir)) is DataDirState.VALID
    assert read_controldata(BIN_DIR, str(server.data_dir)).shut_down_cleanly
    assert read_controldata(BIN_DIR, str(server.data_dir)).data_checksums

    config = server_config(server)
    write_config(config, None)
    start_as_agent(server, config, ready=False)
    login = target(server, "Admin", HOSTILE_PASSWORD)
    session = Session(login, "test")
    wait_for(lambda: _answers(session), "the bootstrapped server answers with the password")
    roles = session.query(
        "select rolname, rolsuper, rolreplication, rolcanlogin from pg_roles where rolname !~ '^pg_'",
        PLENTY_S,
    )
    assert set(roles) == {
        ("Admin", "t", "t", "t"),
        ('repli"cator', "f", "t", "t"),
        ("rewind_user", "f", "f", "t"),
    }
    hashes = session.query(
        "select rolpassword like 'SCRAM-SHA-256$%' from pg_authid where rolcanlogin", PLENTY_S
    )
    assert hashes == [("t",)] * 3
    assert session.query(
        "select has_function_privilege('rewind_user', 'pg_read_binary_file(text)', 'execute')", 10
    ) == [("t",)]
    with pytest.raises(PostgresError):
        Session(target(server, "Admin", "wrong"), "test").query("select 1", PLENTY_S)
    assert HOSTILE_PASSWORD not in server.log

    session.create_physical_slot("other", PLENTY_S)
    passfile = str(other.root / "pgpass")
    source = target(server, 'repli"cator', "rep:word\\")
    write_pgpass(passfile, [source])
    assert os.stat(passfile).st_mode & 0o777 == 0o600
    clone(CloneSpec(str(other.data_dir), BIN_DIR, source, passfile), PLENTY_S)
    assert (other.data_dir / "standby.signal").exists()
    assert copied_bytes(str(other.data_dir)) > 10_000_000

    follow = RecoveryConfig(source, "other", passfile, "other")
    other_config = server_config(other)
    write_config(other_config, follow)
    start_as_agent(other, other_config, ready=False)
    standby = Session(target(other, "Admin", HOSTILE_PASSWORD), "test")
    wait_for(lambda: _answers(standby) and standby.sample(10).walreceiver_status == "streaming", "it streams")
    sample = standby.sample(PLENTY_S)
    assert sample.walreceiver_slot == "other"
    assert needs_change(sample, follow) is Change.NONE
    assert needs_change(sample, RecoveryConfig(source, "other", passfile, "new_slot")) is Change.RELOAD
    assert needs_change(session.sample(PLENTY_S), follow) is Change.RESTART
    assert identify_system(source, PLENTY_S).timeline == 1
    session.close()
    standby.close()


def _answers(session: Session) -> bool:
    try:
        return session.query("select 1", 10) == [("1",)]
    except PostgresError:
        return False


def test_failed_bootstrap_leaves_nothing_behind(scratch: Path) -> None:
    data = scratch / "data"
    spec = InitdbSpec(str(data), BIN_DIR, RoleSpec("postgres", "secret-word"), [{"encoding": "NOSUCH"}])
    with pytest.raises(ToolFailed) as failed:
        bootstrap(spec, PLENTY_S)
    assert "NOSUCH" in failed.value.output
    assert "secret-word" not in failed.value.output
    assert data_dir_state(str(data)) is DataDirState.MISSING_OR_EMPTY
    assert [p.name for p in scratch.iterdir()] == ["data"]


def test_password_with_line_break_is_refused_before_anything_is_made(scratch: Path) -> None:
    spec = InitdbSpec(str(scratch / "data"), BIN_DIR, RoleSpec("postgres", "two\nlines"))
    with pytest.raises(ConfigFileError, match="'postgres'"):
        bootstrap(spec, PLENTY_S)
    assert list(scratch.iterdir()) == []


def test_roles_can_be_set_again(server: Server) -> None:
    for password in ("first", "second"):
        create_roles(BIN_DIR, str(server.data_dir), [RoleSpec("app", password, replication=True)], PLENTY_S)
    (server.data_dir / "pg_hba.conf").write_text(
        "host all postgres all trust\nhost all all all scram-sha-256\n"
    )
    server.start()
    assert _answers(Session(target(server, "app", "second"), "test"))
    assert not _answers(Session(target(server, "app", "first"), "test"))


# --- clone ------------------------------------------------------------------------------------------


def test_clone_into_a_used_directory_is_refused(server: Server, other: Server) -> None:
    server.start()
    other.data_dir.mkdir()
    precious = other.data_dir / "precious"
    precious.write_text("x")
    with pytest.raises(DataDirError):
        clone(CloneSpec(str(other.data_dir), BIN_DIR, target(server), "/dev/null"), PLENTY_S)
    assert precious.exists()


def test_failed_clone_removes_what_it_copied(server: Server, other: Server) -> None:
    server.start()
    spec = CloneSpec(
        str(other.data_dir), BIN_DIR, target(server), "/dev/null", [{"label": "x"}, "no-such-option"]
    )
    with pytest.raises(ToolFailed) as failed:
        clone(spec, PLENTY_S)
    assert not failed.value.cancelled
    assert list(other.data_dir.iterdir()) == []
    assert [p.name for p in other.root.iterdir()] == ["data"]


def test_cancelled_clone_ends_and_removes_what_it_copied(server: Server, other: Server) -> None:
    server.start()
    # So slow that it cannot end by itself within the test.
    spec = CloneSpec(str(other.data_dir), BIN_DIR, target(server), "/dev/null", [{"max-rate": "32k"}])
    cancel = Cancellation()
    seen: list[str] = []

    def watch() -> None:
        wait_for(lambda: copied_bytes(str(other.data_dir)) > 0, "the clone copies")
        seen.append("copying")
        cancel.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    with pytest.raises(ToolFailed) as failed:
        clone(spec, PLENTY_S, cancel)
    watcher.join()
    assert seen == ["copying"]
    assert failed.value.cancelled
    assert list(other.data_dir.iterdir()) == []


def test_clone_abandoned_by_a_dead_agent_counts_as_empty_and_is_replaced(
    server: Server, other: Server
) -> None:
    """The agent is killed while pg_basebackup runs on: the orphan is ended, its copy made anew."""
    server.start()
    code = (
        "from postgres_ctl.basebackup import *; from postgres_ctl.api import ConnectionTarget as T;"
        f"clone(CloneSpec({str(other.data_dir)!r}, {BIN_DIR!r}, T('127.0.0.1', {server.port}, 'postgres'),"
        " '/dev/null', [{'max-rate': '32k'}]), 60)"
    )
    agent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    wait_for(lambda: copied_bytes(str(other.data_dir)) > 0, "the clone copies")
    agent.kill()
    agent.wait()
    assert len(leftovers(str(other.data_dir))) >= 1
    assert data_dir_state(str(other.data_dir)) is DataDirState.MISSING_OR_EMPTY
    clone(CloneSpec(str(other.data_dir), BIN_DIR, target(server), "/dev/null"), PLENTY_S)
    assert data_dir_state(str(other.data_dir)) is DataDirState.VALID
    assert leftovers(str(other.data_dir)) == []


# --- numbers of timelines ---------------------------------------------------------------------------


def test_a_promotion_passes_over_the_numbers_that_were_claimed(server: Server, other: Server) -> None:
    server.start()
    other.clone_from(server)
    other.start()
    other.wait_streaming()
    server.stop()
    hold_numbers(str(other.data_dir), above=1, wanted=4)
    other.sql("select pg_promote(true, 30)")
    other.sql("create table kept as select 7 as n")
    switches = read_history(str(other.data_dir), 4)
    assert switches is not None
    assert [s.timeline for s in switches] == [1]
    recover_as_standby(server)
    server.make_standby_conf(other)
    server.start()
    server.wait_streaming()
    server.wait_replayed(other.value("select pg_current_wal_flush_lsn()::text"))
    assert server.value("select n from kept") == 7


def test_a_number_that_exists_is_refused(server: Server) -> None:
    data = str(server.data_dir)
    hold_numbers(data, above=1, wanted=3)
    with pytest.raises(DataDirError, match="timeline 2 exists already"):
        hold_numbers(data, above=1, wanted=2)


def test_a_number_held_in_vain_does_not_keep_a_standby_from_starting(server: Server) -> None:
    server.start()
    server.stop()
    (server.data_dir / "standby.signal").touch()
    data = str(server.data_dir)
    hold_numbers(data, above=1, wanted=4)
    assert read_history(data, 3) == ()
    free_numbers(data, read_controldata(BIN_DIR, data))
    assert read_history(data, 2) is None
    assert read_history(data, 3) is None
    server.start()


def test_the_history_of_a_child_is_kept(server: Server, other: Server) -> None:
    switch = diverge(server, other)
    assert switch
    data = str(other.data_dir)
    other.stop(signal.SIGQUIT)
    control = read_controldata(BIN_DIR, data)
    hold_numbers(data, above=2, wanted=5)
    free_numbers(data, control)
    assert read_history(data, 2) is not None
    assert read_history(data, 3) is None


# --- rewind -----------------------------------------------------------------------------------------


def diverge(old: Server, new: Server) -> Lsn:
    """`new` follows `old`, is promoted, and `old` goes on writing and crashes. Returns the switch point."""
    old.start()
    new.clone_from(old)
    new.start()
    new.wait_streaming()
    new.sql("select pg_promote(true, 30)")
    old.sql("create table lost as select generate_series(1, 1000) as n")
    new.sql("create table kept as select 7 as n")
    new.sql("checkpoint")
    old.stop(signal.SIGQUIT)
    return timeline_history(target(new), 2, PLENTY_S)[0].switch_lsn


def recover_as_standby(server: Server) -> None:
    """Crash recovery without a record of its own, then a clean stop."""
    (server.data_dir / "standby.signal").touch()
    server.start()
    server.stop()


def test_rewind_after_divergence_keeps_what_it_discards(server: Server, other: Server) -> None:
    switch = diverge(server, other)
    data = str(server.data_dir)
    control = read_controldata(BIN_DIR, data)
    assert control.state is ControlState.IN_PRODUCTION
    recover_as_standby(server)
    control = read_controldata(BIN_DIR, data)
    assert control.shut_down_cleanly
    assert possible(control, BIN_DIR)

    kept = diverged_dir(data, 1, switch)
    report = keep_diverged_wal(data, control, switch, kept)
    assert report.lsn_from == switch
    assert report.lsn_to == control.min_recovery_end
    assert report.discarded_bytes > 0
    assert report.segments_left_out == 0
    assert len(os.listdir(kept)) == report.segments_kept >= 1
    lost = subprocess.run(
        [f"{BIN_DIR}/pg_waldump", "-p", kept, "-s", str(switch), "-e", str(report.lsn_to)],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "INSERT" in lost.stdout

    assert rewind(RewindSpec(data, BIN_DIR, target(other), "/dev/null"), PLENTY_S) == Rewound()
    assert not interrupted(data)
    assert (server.data_dir / "standby.signal").exists()
    server.make_standby_conf(other)
    server.start()
    server.wait_streaming()
    server.wait_replayed(other.value("select pg_current_wal_flush_lsn()::text"))
    assert server.value("select n from kept") == 7
    assert server.value("select to_regclass('lost')") is None
    assert read_history(data, 2) == timeline_history(target(other), 2, PLENTY_S)
    assert history_mtime(data, 2) is not None
    assert read_history(data, 9) is None


def test_rewind_without_divergence_is_not_needed(server: Server, other: Server) -> None:
    server.start()
    other.clone_from(server)
    other.start()
    other.wait_streaming()
    other.stop()
    assert (
        rewind(RewindSpec(str(other.data_dir), BIN_DIR, target(server), "/dev/null"), PLENTY_S) == NotNeeded()
    )


def test_rewind_that_cannot_reach_its_source_damages_nothing(server: Server) -> None:
    spec = RewindSpec(str(server.data_dir), BIN_DIR, target(server), "/dev/null")
    outcome = rewind(spec, PLENTY_S)
    assert isinstance(outcome, RewindFailed)
    assert not outcome.damaged
    assert not interrupted(str(server.data_dir))
    server.start()


def test_rewind_refuses_a_running_server(server: Server) -> None:
    server.start()
    outcome = rewind(RewindSpec(str(server.data_dir), BIN_DIR, target(server), "/dev/null"), PLENTY_S)
    assert isinstance(outcome, RewindFailed)
    assert "in use" in outcome.reason
    assert server.value("select 1") == 1


# --- pg_control and shutdown ------------------------------------------------------------------------


def test_controldata_matches_the_running_server(server: Server) -> None:
    server.start()
    control = read_controldata(BIN_DIR, str(server.data_dir))
    sample = Session(target(server), "test").sample(PLENTY_S)
    assert control.system_identifier == sample.system_identifier
    assert (control.state, control.timeline) == (ControlState.IN_PRODUCTION, 1)
    assert (control.max_connections, control.wal_log_hints, control.data_checksums) == (30, True, True)
    assert str(control.wal_segment_bytes // 1024 // 1024) + "MB" == server.value("show wal_segment_size")
    assert major_version(str(server.data_dir)) == sample.server_version // 10000
    assert shutdown_checkpoint_lsn(BIN_DIR, str(server.data_dir), control, False, PLENTY_S) is None


@pytest.mark.parametrize("archiving", [False, True])
def test_shutdown_position_is_the_switch_record_when_archiving(server: Server, archiving: bool) -> None:
    if archiving:
        server.set(archive_mode="on", archive_command="true")
    server.start()
    server.sql("create table t as select 1 as n")
    server.stop()
    data = str(server.data_dir)
    control = read_controldata(BIN_DIR, data)
    position = shutdown_checkpoint_lsn(BIN_DIR, data, control, archiving, PLENTY_S)
    assert position is not None
    if archiving:
        assert position < control.checkpoint_lsn
        assert control.checkpoint_lsn.value % control.wal_segment_bytes < 1024
    else:
        assert position == control.checkpoint_lsn


# --- processes --------------------------------------------------------------------------------------


def test_postmaster_pid_is_read_and_proven(server: Server) -> None:
    data = str(server.data_dir)
    assert find_postmaster(data) is None
    server.start()
    assert server.process is not None
    found = find_postmaster(data)
    assert found is not None
    assert (found.pid, found.data_dir, found.port) == (server.process.pid, data, server.port)
    assert (found.socket_dir, found.listen_addr, found.status) == (str(server.root), "127.0.0.1", "ready")
    assert found.pid in leftovers(data)
    assert set(children(found.pid)) & set(leftovers(data))
    server.stop()
    assert read_postmaster_pid(data) is None
    assert leftovers(data) == []


def test_foreign_pid_in_the_file_is_no_postmaster(server: Server) -> None:
    """After a crash the file stays; the number may be anybody's by now."""
    server.start()
    server.stop(signal.SIGKILL)
    file = server.data_dir / "postmaster.pid"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([f"{os.getppid()}\n", *lines[1:]]))
    assert read_postmaster_pid(str(server.data_dir)) is not None
    assert find_postmaster(str(server.data_dir)) is None


def test_orphaned_backend_of_a_killed_postmaster_is_a_leftover(server: Server) -> None:
    """H9: the postmaster is dead, the server is not stopped, and nothing may be wiped or moved."""
    server.start()
    data = str(server.data_dir)
    with psycopg.connect(server.conninfo, autocommit=True) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        server.stop(signal.SIGKILL)
        try:
            wait_for(lambda: leftovers(data) == [backend], "all but the stopped backend are gone")
            assert find_postmaster(data) is None
            for refused in (wipe, move_aside):
                with pytest.raises(DataDirError, match=str(backend)):
                    refused(data)
            assert data_dir_state(data) is DataDirState.VALID
        finally:
            os.kill(backend, signal.SIGKILL)
        wait_for(lambda: leftovers(data) == [], "the backend is gone")
    wipe(data)
    assert data_dir_state(data) is DataDirState.MISSING_OR_EMPTY


def test_living_directory_is_not_wiped(server: Server) -> None:
    server.start()
    with pytest.raises(DataDirError, match="in use"):
        wipe(str(server.data_dir))
    assert server.value("select 1") == 1


def test_wipe_and_move_follow_wal_and_tablespace_links(server: Server) -> None:
    wal, space = server.root / "wal", server.root / "space"
    (server.data_dir / "pg_wal").rename(wal)
    (server.data_dir / "pg_wal").symlink_to(wal)
    space.mkdir()
    server.start()
    server.sql(f"create tablespace fast location '{space}'")
    server.stop()
    moved = move_aside(str(server.data_dir))
    assert moved == f"{server.data_dir}.failed"
    assert data_dir_state(moved) is DataDirState.VALID
    assert not wal.exists()
    assert not space.exists()
    assert read_controldata(BIN_DIR, moved).shut_down_cleanly
    wipe(moved)
    assert list(Path(moved).iterdir()) == []
    assert list((server.root / "wal.failed").iterdir()) == []
    assert list((server.root / "space.failed").iterdir()) == []


def test_foreign_directory_is_told_from_an_empty_one(scratch: Path) -> None:
    assert data_dir_state(str(scratch / "none")) is DataDirState.MISSING_OR_EMPTY
    (scratch / "lost+found").mkdir()
    assert data_dir_state(str(scratch)) is DataDirState.MISSING_OR_EMPTY
    (scratch / "notes.txt").write_text("mine")
    assert data_dir_state(str(scratch)) is DataDirState.FOREIGN
    with as_postgres_user(), pytest.raises(DataDirError):
        data_dir_state(str(scratch / "notes.txt"))
