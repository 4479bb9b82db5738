"""What this member has promised to a leader without a DCS, in memory and on disk (failsafe mode, H19).

Theory. A promise counts in memory at once, and is answered only when it is on disk, so that neither a freeze
nor a restart forgets it: `until` on CLOCK_BOOTTIME with the boot it belongs to, and its length for another
boot. It excludes taking the leader key, in both directions: no promise is given from the moment in which the
key is about to be taken until it is known what became of that, and none is overlooked by whoever decided to
take it before it was given. Where the file is missing or broken at the start, one ttl is waited.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from typing import Protocol

from haagent.core.model import PromiseFacts
from haagent.runtime import Runtime

log = logging.getLogger(__name__)

#: A promise that cannot be written in this time is not given, seconds.
WRITE_S = 5.0


class Files(Protocol):
    """Small files of this agent (`ports.Postgres`)."""

    def read_text(self, path: str) -> str | None: ...

    def write_synced(self, path: str, text: str) -> None: ...


class Promises:
    """Of one member. Thread safe; the file is written by one thread at a time, never under the lock."""

    def __init__(self, runtime: Runtime, files: Files, path: str) -> None:
        self._rt, self._files, self._path = runtime, files, path
        self._cond = runtime.condition()
        self._facts = PromiseFacts()
        self._length_s = 0.0
        #: The key is being taken, or it is not known yet whether it was.
        self._taking = False
        self._writing = False
        #: The promise on disk; None: nobody knows what is there.
        self._on_disk: PromiseFacts | None = None

    def load(self, ttl_s: float, failsafe_mode: bool) -> None:
        """At the start, before anybody can ask. Without a readable file nobody knows what was promised."""
        now = self._rt.now()
        known = self._read(now)
        with self._cond:
            if known is not None:
                self._facts, self._length_s = known
                self._on_disk = self._facts
            elif failsafe_mode:
                log.warning("no record of promises in failsafe mode: out of the race for %g s", ttl_s)
                self._facts, self._length_s = PromiseFacts(now + ttl_s), ttl_s
        if known is None and failsafe_mode:
            self._write()

    def _read(self, now: float) -> tuple[PromiseFacts, float] | None:
        """The promise and its length in seconds; of another boot nobody knows how much of it is over."""
        try:
            text = self._files.read_text(self._path)
            data = json.loads(text) if text is not None else None
            if data is None:
                return None
            boot, until, length_s = str(data["boot"]), float(data["until"]), float(data["length"])
            to = data["to"] if isinstance(data["to"], str) else None
        except Exception as fault:  # whatever is wrong with it: it tells nothing
            log.warning("%s cannot be read: %s", self._path, fault)
            return None
        if not (math.isfinite(until) and math.isfinite(length_s) and length_s >= 0):
            return None
        left_s = min(until - now, length_s) if boot == self._rt.boot_id() else length_s
        return PromiseFacts(now + left_s if left_s > 0 else 0.0, to), length_s

    def facts(self) -> PromiseFacts:
        return self._facts

    def give(
        self, to: str, length_s: float, refused: Callable[[], tuple[int, str] | None]
    ) -> tuple[int, str] | None:
        """Promise `to` to stay out of the race for `length_s` seconds from now. None: done, and on disk.

        `refused` is asked once the promise counts: HTTP status and text when it must not be given."""
        with self._cond:
            if self._taking:
                return 500, "Running as a leader"
            before = self._facts, self._length_s
            until = max(self._rt.now() + length_s, self._facts.until)
            mine = self._facts = PromiseFacts(until, to, self._facts.count + 1)
            self._length_s = until - self._rt.now()
        why = refused()
        if why is not None:
            with self._cond:
                if self._facts is mine:  # nobody has relied on it, nor was another one given
                    self._facts = PromiseFacts(before[0].until, before[0].to, mine.count)
                    self._length_s = before[1]
            return why
        return None if self._write_this(mine) else (503, "the promise could not be written to disk")

    def _write_this(self, mine: PromiseFacts) -> bool:
        """Wait for this one, or a later one, to be on disk."""
        end = self._rt.now() + WRITE_S
        while True:
            with self._cond:
                left_s = end - self._rt.now()
                if not self._cond.wait_for(lambda: not self._writing, max(0.0, left_s)):
                    return False
                done = self._on_disk
                if done is not None and done.count >= mine.count and done.until >= mine.until:
                    return True
            if not self._write():
                return False

    def _write(self) -> bool:
        """What counts now. False when it failed; True also when somebody else writes."""
        with self._cond:
            if self._writing:
                return True
            self._writing = True
            facts, length_s, self._on_disk = self._facts, self._length_s, None
        text = json.dumps(
            {"boot": self._rt.boot_id(), "until": facts.until, "length": length_s, "to": facts.to}
        )
        written = False
        try:
            self._files.write_synced(self._path, text)
            written = True
        except Exception as fault:
            log.error("%s cannot be written: %s", self._path, fault)
        finally:
            with self._cond:
                self._writing = False
                self._on_disk = facts if written else None
                self._cond.notify_all()
        return written

    def forget(self, write: Callable[[Callable[[], object]], object]) -> None:
        """What has run out is struck from the disk, by `write`: the next boot need not wait for it."""
        with self._cond:
            due = self._length_s > 0 and self._facts.until <= self._rt.now() and not self._writing
            if not due:
                return
            self._facts = PromiseFacts(0.0, self._facts.to, self._facts.count)
            self._length_s = 0.0
        write(self._write)

    # --- taking the leader key ----------------------------------------------------------------------

    def begin_to_take(self, count: int) -> bool:
        """The leader key is about to be taken by a decision that knew of `count` promises; False: there are
        more by now. Until `settled`, none is given."""
        with self._cond:
            if self._facts.count != count:
                return False
            self._taking = True
            return True

    def settled(self) -> None:
        """It is known whether the key is ours."""
        with self._cond:
            self._taking = False
