"""Calls that end for the caller at a deadline, whatever they themselves do.

Theory. A name look-up, an fsync on a dying disk or a server that trickles a byte a second ignore every
timeout one can set. So such a call runs on a spare daemon thread and the caller leaves when its time is
over. The thread comes back to the pool when the call ends; a call that never ends costs one thread, and
at `MAX_THREADS` of those further calls are refused at once instead of piling up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from dcs.errors import DcsUnavailable

T = TypeVar("T")

#: One agent has at most a handful of calls at the same time; more than this means that they hang.
MAX_THREADS = 32


class TimedOut(Exception):
    """The time is over and the call still runs."""


class _Task(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    def perform(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # handed to the caller, who raises it
            self._error = error

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set by perform(), of type T


class BoundedCalls:
    """A pool of daemon threads that grows when needed. Thread safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._idle: list[SimpleQueue[_Task[Any] | None]] = []
        self._threads = 0
        self._closed = False

    def run(self, work: Callable[[], T], timeout_s: float) -> T:
        """The result of `work`, or what it raises. Raises TimedOut after `timeout_s`, DcsUnavailable
        when closed or when too many earlier calls still hang."""
        task = _Task(work)
        self._spare_thread().put(task)
        if not task.done.wait(max(timeout_s, 0.0)):
            raise TimedOut
        return task.result()

    def close(self) -> None:
        """Let idle threads end; busy ones end after their call."""
        with self._lock:
            self._closed = True
            for inbox in self._idle:
                inbox.put(None)
            self._idle.clear()

    def _spare_thread(self) -> SimpleQueue[_Task[Any] | None]:
        with self._lock:
            if self._closed:
                raise DcsUnavailable("closed")
            if self._idle:
                return self._idle.pop()
            if self._threads >= MAX_THREADS:
                raise DcsUnavailable(f"{self._threads} earlier calls still hang")
            self._threads += 1
        inbox: SimpleQueue[_Task[Any] | None] = SimpleQueue()
        threading.Thread(target=self._serve, args=(inbox,), name=self._name, daemon=True).start()
        return inbox

    def _serve(self, inbox: SimpleQueue[_Task[Any] | None]) -> None:
        while (task := inbox.get()) is not None:
            task.perform()
            with self._lock:
                closed = self._closed
                if not closed:
                    # Before `done`, so that a caller's next call finds this thread again.
                    self._idle.append(inbox)
            task.done.set()
            del task  # a result must not live until the next call
            if closed:
                break
        with self._lock:
            self._threads -= 1
