"""The programs that a job waits for: `pre_promote` may forbid a promotion, `before_stop` only hears of a stop
(contract 6.6). Each may take `pg_ctl_timeout` seconds; a hook that hangs must not cost more.

While they run the loop renews the lease, or sees that it is lost and cancels the job.
"""

from __future__ import annotations

import logging
import shlex

from haagent.instance import LocalInstance
from haagent.ports import ProgramsPort
from postgres_ctl.api import TERM_GRACE_S, Cancellation

log = logging.getLogger(__name__)


class Hooks:
    """Those of the configuration in force."""

    def __init__(self, programs: ProgramsPort, instance: LocalInstance) -> None:
        self._programs, self._instance = programs, instance

    def pre_promote(self, cancel: Cancellation) -> str | None:
        """Why there must be no promotion; None when nothing is said against it."""
        command = self._instance.effective.config.pre_promote
        return self._run("pre_promote", command, cancel, TERM_GRACE_S) if command is not None else None

    def before_stop(self, cancel: Cancellation) -> None:
        """Its result is only logged. Cancelled means that the stop cannot wait: it is killed at once."""
        command = self._instance.effective.config.before_stop
        if command is not None and self._instance.pid() is not None:
            self._run("before_stop", command, cancel, 0.0)

    def _run(self, name: str, command: str, cancel: Cancellation, grace_s: float) -> str | None:
        log.info("running %s", name)
        limit_s = self._instance.effective.config.pg_ctl_timeout_s
        refusal = self._programs.run(shlex.split(command), limit_s, cancel, grace_s)
        if refusal is not None:
            log.error("%s: %s", name, refusal)
        return refusal
