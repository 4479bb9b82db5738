"""Threads, waiting and time, behind one small port, so that the simulator can run the agent's code as it is.

`SystemRuntime` is the kernel's: real threads, CLOCK_BOOTTIME. Everything in the agent that waits, starts a
thread or looks at a clock does so through the `Runtime` it was given, never through `threading` or `time`.
Locks guard memory only: nobody holds one across a call that may block (the simulator raises when one does).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from dcs.api import boottime
from postgres_ctl.api import Cancellation


class Lock(Protocol):
    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...


class Condition(Lock, Protocol):
    """As `threading.Condition`; timeouts in seconds."""

    def wait(self, timeout: float | None = None) -> bool: ...

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool: ...

    def notify_all(self) -> None: ...


class Event(Protocol):
    """As `threading.Event`; timeouts in seconds."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...

    def wait(self, timeout: float | None = None) -> bool: ...


class Thread(Protocol):
    def start(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


class Runtime(Protocol):
    """One process's threads and clocks."""

    def now(self) -> float:
        """Seconds on CLOCK_BOOTTIME of this host."""

    def wall(self) -> float:
        """Seconds since 1970: for people, and for what they scheduled; it may jump."""

    def boot_id(self) -> str:
        """Another one for each boot of this host: times on its CLOCK_BOOTTIME belong to it."""

    def lock(self) -> Lock: ...

    def condition(self) -> Condition: ...

    def event(self) -> Event: ...

    def cancellation(self) -> Cancellation:
        """An event that PostgreSQL's tools can wait for as well."""

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        """A daemon thread, not yet started."""


class SystemRuntime:
    """The real one."""

    def now(self) -> float:
        return boottime()

    def wall(self) -> float:
        return time.time()

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def lock(self) -> Lock:
        return threading.Lock()

    def condition(self) -> Condition:
        return threading.Condition()

    def event(self) -> Event:
        return threading.Event()

    def cancellation(self) -> Cancellation:
        return Cancellation()

    def thread(self, target: Callable[[], None], name: str) -> Thread:
        return threading.Thread(target=target, name=name, daemon=True)
