"""Waiting for conditions that nobody can announce, with a deadline and a word about what was awaited.

A test never sleeps a fixed time: it waits until something is so. Deadlines are generous (a busy machine with
two cores must not fail a test) and cost nothing while all is well.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
import pytest

T = TypeVar("T")

#: Default deadline, seconds: for anything that takes less than a few seconds on an idle machine.
DEADLINE_S = 60.0
#: Between two looks, seconds: short against everything measured, long enough to leave the cores to others.
INTERVAL_S = 0.02

#: Faults of a look that mean "not yet": the server or the file is not there.
NOT_YET: tuple[type[Exception], ...] = (OSError, psycopg.OperationalError)


def pause(interval_s: float = INTERVAL_S) -> None:
    """Let `interval_s` seconds pass between two looks at a condition; for nothing else."""
    threading.Event().wait(interval_s)


def wait_for(
    condition: Callable[[], T],
    deadline_s: float,
    what: str,
    *,
    not_yet: tuple[type[Exception], ...] = NOT_YET,
    interval_s: float = INTERVAL_S,
) -> T:
    """Look at `condition` until it is true and return its value; the test fails after `deadline_s` seconds.

    Exceptions of the kinds `not_yet` count as false; the last one, or the last value, is in the failure.
    """
    end = time.monotonic() + deadline_s
    while True:
        try:
            value = condition()
            if value:
                return value
            last = repr(value)
        except not_yet as error:
            last = f"{type(error).__name__}: {str(error).strip()}"
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline_s:g} s: {what} (last look: {last[:500]})")
        pause(interval_s)


def holds_for(condition: Callable[[], object], duration_s: float, what: str) -> None:
    """The condition must be true at every look for `duration_s` seconds; fails at the first that is not.

    For "nothing happens": how long one looks is part of the claim, so say it.
    """
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        if not condition():
            pytest.fail(f"did not stay so for {duration_s:g} s: {what}")
        pause()
