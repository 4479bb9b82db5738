"""The watchdog device (contract 7.4): its timeout, whether it can be used, and when it has to be on. Pure.

It is the last fence, for a host on which neither agent nor guardian can act. Required, it must be on before a
server becomes writable; automatic, it is on where it can be. The guardian owns it (`guardian_watchdog`).
"""

from __future__ import annotations

from haagent.core.actions import CloseWatchdog, Guard, OpenWatchdog
from haagent.core.model import Observation
from haagent.core.settings import Settings

OFF, AUTOMATIC, REQUIRED = "off", "automatic", "required"
#: As `safety_margin`: half of the ttl.
HALF = -1


def timeout_s(settings: Settings, safety_margin_s: int) -> int:
    """The host is reset so long after the last keepalive, in whole seconds."""
    if safety_margin_s == HALF:
        return int(settings.ttl_s) // 2
    return int(settings.ttl_s) - safety_margin_s


def problem(obs: Observation) -> str | None:
    """Why the device cannot be used: the timings, the device itself, or how the last try ended."""
    seen = obs.watchdog
    wanted = timeout_s(obs.settings, seen.safety_margin_s)
    if wanted < max(1, obs.settings.loop_wait_s):
        return (
            f"a timeout of {wanted} s (ttl {obs.settings.ttl_s:g}, safety_margin {seen.safety_margin_s}) "
            f"is shorter than loop_wait {obs.settings.loop_wait_s:g}"
        )
    if seen.device_problem is not None:
        return seen.device_problem
    at, why = seen.failed or (0.0, None)
    return why if obs.now < at + obs.settings.ttl_s else None


def forbids(obs: Observation) -> str | None:
    """Why this member must not lead without its watchdog; None when it has it, or needs none."""
    seen = obs.watchdog
    return problem(obs) if seen.mode == REQUIRED and seen.on_s is None else None


def missing(obs: Observation) -> bool:
    """It has to be on before anything is written, and is not."""
    return obs.watchdog.mode == REQUIRED and obs.watchdog.on_s is None


def change(obs: Observation) -> tuple[OpenWatchdog | CloseWatchdog, ...]:
    """What to do with the device while we lead; nothing when it is as it should be, or cannot be."""
    seen, lease = obs.watchdog, obs.lease
    if seen.mode == OFF:
        return (CloseWatchdog(),) if seen.on_s is not None else ()
    wanted = timeout_s(obs.settings, seen.safety_margin_s)
    if lease.epoch is None or lease.disarmed or not lease.holds(obs.now) or seen.on_s == wanted:
        return ()
    return (OpenWatchdog(Guard(epoch=lease.epoch), wanted),) if problem(obs) is None else ()
