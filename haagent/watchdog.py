"""The agent's side of the watchdog device: facts about it, and asking the guardian, which owns it."""

from __future__ import annotations

import logging

from haagent import guardian_types as guardian
from haagent.config.types import WatchdogConfig
from haagent.core.model import WatchdogFacts
from haagent.core.watchdog import OFF
from haagent.instance import LocalInstance
from haagent.ports import GuardianPort
from haagent.runtime import Runtime

log = logging.getLogger(__name__)

#: A child of the guardian opens the device: it may take longer than an answer from memory, seconds.
DEVICE_ANSWER_S = 3.0


class Watchdog:
    """Used by the loop thread, but for `guardian_lost`."""

    def __init__(
        self, runtime: Runtime, port: GuardianPort, instance: LocalInstance, config: WatchdogConfig
    ) -> None:
        self._now, self._port, self._instance = runtime.now, port, instance
        self._config = config
        self._failed: tuple[float, str] | None = None
        #: The guardian before this one died while the device was on.
        self._left_on = False
        self._said: str | None = None

    def use(self, config: WatchdogConfig) -> None:
        """A reloaded configuration; what failed with another one may work now."""
        if config != self._config:
            self._config, self._failed = config, None

    def facts(self) -> WatchdogFacts:
        config, on = self._config, self._instance.watchdog
        seen = None
        if config.mode != OFF:
            seen = self._port.device_problem(config.device, config.testing)
            self._say(seen)
        return WatchdogFacts(
            mode=config.mode,
            safety_margin_s=config.safety_margin_s,
            on_s=on.timeout_s if on is not None else None,
            device_problem=seen,
            failed=self._failed,
        )

    def open(self, epoch: int, timeout_s: int) -> None:
        """Or set it to another timeout. A failure is a fact of the next step."""
        link, config = self._instance.link, self._config
        if link is None:
            return
        outcome = link.watch(epoch, config.device, config.testing, timeout_s, DEVICE_ANSWER_S)
        self._failed = None
        if isinstance(outcome, guardian.Done):
            log.info("watchdog %s is on with a timeout of %s s", config.device, timeout_s)
            return
        why = outcome.reason if isinstance(outcome, guardian.Refused) else outcome.cause
        self._failed = self._now(), why
        log.warning("the watchdog cannot be used: %s", why)

    def close(self) -> None:
        """Switch it off."""
        link, config = self._instance.link, self._config
        if link is not None:
            outcome = link.unwatch(config.device, config.testing, DEVICE_ANSWER_S)
            log.info("watchdog %s is switched off: %s", config.device, type(outcome).__name__.lower())

    def guardian_lost(self) -> None:
        """It held the device: nobody keeps that alive now, and nobody has switched it off."""
        self._left_on = self._left_on or self._instance.watchdog is not None

    def guardian_found(self) -> None:
        """PostgreSQL died with the guardian before, so the host need not be reset: the device is switched
        off, and opened again before anything is written."""
        if self._left_on and self._instance.watchdog is None:
            self.close()
        self._left_on = False

    def _say(self, problem: str | None) -> None:
        if problem is not None and problem != self._said:
            log.info("no watchdog: %s", problem)
        self._said = problem
