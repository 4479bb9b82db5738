"""Writes to storage that may hang: the loop waits no longer than told, nothing overtakes a late one."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from haagent.runtime import SystemRuntime
from haagent.storage import Storage, StorageHangs
from postgres_ctl.errors import ConfigFileError
from tests.support.wait import DEADLINE_S, wait_for


class Disk:
    """Takes what is written when it answers."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.content = ""

    def write(self, text: str) -> str:
        assert self.answers.wait(DEADLINE_S)
        self.content = text
        return f"wrote {text}"


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.answers.set()


@pytest.fixture
def woken() -> threading.Event:
    return threading.Event()


@pytest.fixture
def storage(woken: threading.Event) -> Storage:
    return Storage(SystemRuntime(), woken.set)


def test_what_is_written_in_time_comes_back(storage: Storage, disk: Disk, woken: threading.Event) -> None:
    disk.answers.set()
    assert storage.write("a file", lambda: disk.write("x"), DEADLINE_S) == "wrote x"
    assert storage.hangs is None
    assert not woken.is_set()


def test_a_fault_of_the_write_is_the_callers(storage: Storage) -> None:
    def full() -> None:
        raise ConfigFileError("no space left")

    with pytest.raises(ConfigFileError, match="no space"):
        storage.write("a file", full, DEADLINE_S)
    assert storage.hangs is None


def test_a_disk_that_hangs_holds_nobody_up_and_nothing_overtakes_the_late_write(
    storage: Storage, disk: Disk, woken: threading.Event
) -> None:
    with pytest.raises(StorageHangs, match="the first file"):
        storage.write("the first file", lambda: disk.write("first"), 0.0)
    assert storage.hangs == "the first file"
    with pytest.raises(StorageHangs, match="the first file: the storage has not answered yet"):
        storage.write("the second file", lambda: disk.write("second"), DEADLINE_S)

    disk.answers.set()
    assert woken.wait(DEADLINE_S), "the loop is told when the late write is done"
    wait_for(lambda: storage.hangs is None, DEADLINE_S, "the storage answers")
    assert disk.content == "first"
    assert storage.write("the second file", lambda: disk.write("second"), DEADLINE_S) == "wrote second"
