"""One SQLite file and several processes that die, freeze and come back after a reboot."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from dcs.api import KeyEvent, LeaseHandle, Ok, Refused, Renewed, Taken, Unknown
from dcs.errors import DcsConfigError, DcsUnavailable
from dcs.factory import make_dcs
from dcs.local import LocalDcs
from tests.contract import local_peer
from tests.contract.conftest import CALL_S, Events, at_once

SHORT_S = 0.3
SLACK_S = 5.0

Peer = subprocess.Popen[str]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@pytest.fixture
def client(path: str) -> Iterator[LocalDcs]:
    client = LocalDcs(path)
    yield client
    client.close()


@pytest.fixture
def start_peer(path: str) -> Iterator[Callable[[str], Peer]]:
    """Starts `local_peer` and returns it once it has said its first line."""
    peers: list[Peer] = []

    def start(task: str) -> Peer:
        command = [sys.executable, "-m", local_peer.__name__, path, task]
        peers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert _line(peers[-1]), "the peer said nothing"
        return peers[-1]

    yield start
    for peer in peers:
        peer.kill()
        peer.wait()
        assert peer.stdout is not None
        peer.stdout.close()


def _line(peer: Peer) -> str:
    assert peer.stdout is not None
    return peer.stdout.readline().strip()


def take(client: LocalDcs, ttl_s: float = 60) -> LeaseHandle:
    taken = client.take_leader(client.open_session(ttl_s, CALL_S), "pg0", CALL_S)
    assert isinstance(taken, Taken)
    return taken.handle


# --- several processes ----------------------------------------------------------------------------


def test_another_process_hears_the_bell(client: LocalDcs, start_peer: Callable[[str], Peer]) -> None:
    events = Events(client)
    start_peer("write")
    events.until_key("status")
    events.until_key("status")


def test_the_keys_of_a_killed_process_expire_for_a_watcher(
    client: LocalDcs, start_peer: Callable[[str], Peer]
) -> None:
    events = Events(client)
    peer = start_peer("take")
    peer.kill()
    assert events.until_key("leader") == KeyEvent("leader", created=True)
    assert events.until_key("leader") == KeyEvent("leader", deleted=True)
    take(client)


def test_writers_killed_at_any_moment_leave_a_sound_file(
    client: LocalDcs, path: str, start_peer: Callable[[str], Peer]
) -> None:
    for lines in range(8):
        peer = start_peer("write")
        said = [_line(peer) for _ in range(lines)]
        peer.kill()
        peer.wait()
        status = client.snapshot(CALL_S).status
        assert status is not None
        assert status.optime >= int(said[-1] if said else 0)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_process_frozen_with_the_lock_makes_writes_unknown_in_time(
    client: LocalDcs, start_peer: Callable[[str], Peer]
) -> None:
    handle = take(client)
    peer = start_peer("hold")
    peer.send_signal(signal.SIGSTOP)
    outcomes: dict[str, Callable[[], object]] = {
        "put": lambda: client.put("status", "1", SHORT_S),
        "renew_leader": lambda: client.renew_leader(handle, "pg0", SHORT_S),
        "release_leader": lambda: client.release_leader(handle, "pg0", SHORT_S),
        "close_session": lambda: client.close_session(handle.session, SHORT_S),
    }
    for name, call in outcomes.items():
        begin = time.monotonic()
        assert isinstance(call(), Unknown), name
        assert time.monotonic() - begin < SHORT_S + SLACK_S, name
    with pytest.raises(DcsUnavailable):
        client.open_session(10, SHORT_S)
    assert client.snapshot(CALL_S).leader is not None  # readers need no lock
    peer.kill()
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Renewed)


def test_an_expired_key_is_not_shown_while_the_lock_is_held(
    client: LocalDcs, path: str, start_peer: Callable[[str], Peer]
) -> None:
    take(client)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE sessions SET expires_at = 0")
        connection.commit()
    start_peer("hold")
    with pytest.raises(DcsUnavailable):
        client.snapshot(SHORT_S)


def test_many_first_openers_agree_on_one_file(path: str) -> None:
    clients = [LocalDcs(path) for _ in range(8)]
    results = at_once([partial(c.create, "initialize", "", CALL_S) for c in clients])
    assert sum(isinstance(result, Ok) for result in results) == 1
    for client in clients:
        assert client.snapshot(CALL_S).initialize == ""
        client.close()
    assert not [name for name in os.listdir(os.path.dirname(path)) if name.endswith(".new")]


# --- the file -------------------------------------------------------------------------------------


def test_only_the_owner_may_read_the_file(client: LocalDcs, path: str) -> None:
    Events(client)
    take(client)
    directory = Path(path).parent
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
    assert {"store.db", "store.db-wal", "store.db.bell"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_after_a_reboot_every_session_is_over(client: LocalDcs, path: str) -> None:
    handle = take(client)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE sessions SET boot_id = 'of another boot'")
        connection.commit()
    assert client.snapshot(CALL_S).leader is None
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    assert take(client).epoch > handle.epoch


def test_in_a_replaced_file_nothing_is_ours(client: LocalDcs, path: str) -> None:
    handle = take(client)
    os.rename(path, path + ".away")
    for suffix in ("-wal", "-shm"):
        os.rename(path + suffix, path + ".away" + suffix)
    assert isinstance(client.renew_leader(handle, "pg0", CALL_S), Refused)
    assert client.snapshot(CALL_S).leader is None


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to look like one" * 20])
def test_a_foreign_file_is_unavailable_and_left_alone(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)
    client = LocalDcs(path)
    with pytest.raises(DcsUnavailable, match=r"store\.db"):
        client.snapshot(CALL_S)
    assert isinstance(client.put("status", "1", CALL_S), Unknown)
    client.close()
    assert Path(path).read_bytes() == content


def test_a_lost_bell_is_hung_up_again(client: LocalDcs, path: str) -> None:
    events = Events(client)
    os.unlink(path + ".bell")
    events.until_gap()
    assert isinstance(client.put("status", "1", CALL_S), Ok)
    events.until_key("status")


@pytest.mark.parametrize("section", [{}, {"path": ""}, {"path": 7}, {"path": "/no/such/directory/x.db"}])
def test_a_bad_section_names_the_key(section: dict[str, object]) -> None:
    with pytest.raises(DcsConfigError, match=r"local\.path"):
        make_dcs("local", section, "service", "batman")
