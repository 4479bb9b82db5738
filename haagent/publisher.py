"""Writing the member key, in a thread of its own: the loop never waits for news about itself.

The latest picture wins; what it overtook is never written. Order is kept, so a key that says `stopped` was
never followed by an older one that says `running`.
"""

from __future__ import annotations

import logging

from dcs.api import Dcs, Ok, Unknown, WriteOutcome
from haagent.runtime import Runtime

log = logging.getLogger(__name__)


class MemberPublisher:
    """Writes `members/<name>` when it changed. Thread safe."""

    def __init__(self, runtime: Runtime, dcs: Dcs, name: str) -> None:
        self._dcs, self._name = dcs, name
        self._cond = runtime.condition()
        self._wanted: tuple[str, str, float] | None = None
        self._written: tuple[str, str] | None = None
        self._ended = False
        self._thread = runtime.thread(self._run, "publisher")

    def start(self) -> None:
        self._thread.start()

    def publish(self, session: str, text: str, deadline_s: float, again: bool) -> None:
        """Let the key say `text` on `session`; `again`: it is missing in the store."""
        with self._cond:
            if again:
                self._written = None
            if self._written == (session, text):
                self._wanted = None
                return
            self._wanted = (session, text, deadline_s)
            self._cond.notify_all()

    def stop(self, deadline_s: float) -> None:
        """Write what is due, then end; at most `deadline_s` seconds."""
        with self._cond:
            self._ended = True
            self._cond.notify_all()
        if self._thread.is_alive():
            self._thread.join(deadline_s)

    def _put(self, session: str, text: str, deadline_s: float) -> WriteOutcome:
        try:
            return self._dcs.put_member(session, self._name, text, deadline_s)
        except Exception as fault:  # a dead publisher would make this member look gone
            log.exception("writing the member key failed unexpectedly")
            return Unknown(type(fault).__name__)

    def _run(self) -> None:
        while True:
            with self._cond:
                self._cond.wait_for(lambda: self._wanted is not None or self._ended)
                if self._wanted is None:
                    return
                session, text, deadline_s = self._wanted
                self._wanted = None
            outcome = self._put(session, text, deadline_s)
            if isinstance(outcome, Unknown):
                log.warning("the member key may not have been written: %s", outcome.cause)
            with self._cond:
                self._written = (session, text) if isinstance(outcome, Ok) else None
