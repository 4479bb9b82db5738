"""What the agent hears from the guardian: its state, outcomes of requests, events. Frozen values, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


class Handle(NamedTuple):
    """The tenure of the leader key a deadline belongs to."""

    session: str
    epoch: int


# --- state ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PostmasterState:
    """`start_ticks` since boot tells it from a later user of the pid. `writable_epoch` is None for a standby,
    and for an adopted one whose role nobody told."""

    pid: int
    start_ticks: int
    adopted: bool
    running: bool
    starting: bool
    writable_epoch: int | None
    death_signal: bool


@dataclass(frozen=True)
class ArmedState:
    """Times in seconds on CLOCK_BOOTTIME."""

    handle: Handle
    fence_at: float
    hard_at: float


@dataclass(frozen=True)
class LastExit:
    """`status` is the exit code, or minus the signal; None for an adopted postmaster."""

    pid: int
    status: int | None
    fenced: bool


@dataclass(frozen=True)
class WatchdogState:
    """The device is on. `fault`: why the last keepalive was not given; None while all is well."""

    timeout_s: int
    fault: str | None


@dataclass(frozen=True)
class GuardianState:
    """What the guardian knows. `armed` stays while disarmed: a restarted agent continues its handle (H5)."""

    guardian_pid: int
    protocol: int
    generation: int
    postmaster: PostmasterState | None
    leftovers: tuple[int, ...]
    armed: ArmedState | None
    closed_epoch: int
    disarmed: bool
    fencing: bool
    last_exit: LastExit | None
    held: str | None
    memory_locked: bool
    watchdog: WatchdogState | None = None


# --- outcomes and events ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Armed:
    """The kernel holds this deadline; it may be later than the one sent. Seconds on CLOCK_BOOTTIME."""

    fence_at: float
    hard_at: float


@dataclass(frozen=True)
class ArmRefused:
    reason: str


@dataclass(frozen=True)
class Started:
    """The child has become postgres; whether it accepts connections is another question."""

    pid: int
    start_ticks: int


@dataclass(frozen=True)
class StartRefused:
    """Nothing runs."""

    reason: str


@dataclass(frozen=True)
class Done:
    """The guardian did it."""


@dataclass(frozen=True)
class Refused:
    reason: str


@dataclass(frozen=True)
class NoAnswer:
    """It may or may not have happened."""

    cause: str


@dataclass(frozen=True)
class PostmasterExited:
    """Postmaster and all its processes are dead and reaped, but for `leftovers`: killed, not yet dead
    (uninterruptible sleep). With leftovers the event comes a second time when they are gone (H9, H13)."""

    pid: int
    status: int | None
    fenced: bool
    leftovers: tuple[int, ...]


@dataclass(frozen=True)
class Fencing:
    """The deadline passed: PostgreSQL is being stopped and the epoch is closed."""

    epoch: int
    #: A standby of a standby cluster goes on instead.
    spared: bool = False


@dataclass(frozen=True)
class GuardianLost:
    """The connection is gone: guardian dead, or another controller took over."""

    cause: str


GuardianEvent = PostmasterExited | Fencing | GuardianLost
Simple = Done | Refused | NoAnswer


# --- from messages -----------------------------------------------------------------------------------


def event_from(message: dict[str, Any]) -> GuardianEvent | None:
    """None for an event of a newer guardian that this agent does not know."""
    if message["event"] == "exited":
        leftovers = tuple(message["leftovers"])
        return PostmasterExited(message["pid"], message["status"], message["fenced"], leftovers)
    if message["event"] == "fencing":
        return Fencing(message["epoch"], message.get("spared", False) is True)
    return None


def state_from(message: dict[str, Any]) -> GuardianState:
    """Unknown keys are left aside: a guardian may be newer or older than the agent."""
    armed, postmaster, last = message["armed"], message["postmaster"], message["last_exit"]
    watchdog = message.get("watchdog")
    keys = ("pid", "start_ticks", "adopted", "running", "starting", "writable_epoch", "death_signal")
    return GuardianState(
        guardian_pid=message["guardian"],
        protocol=message["protocol"],
        generation=message["generation"],
        postmaster=None if postmaster is None else PostmasterState(**{key: postmaster[key] for key in keys}),
        leftovers=tuple(message["leftovers"]),
        armed=None
        if armed is None
        else ArmedState(
            Handle(armed["handle"]["session"], armed["handle"]["epoch"]), armed["fence_at"], armed["hard_at"]
        ),
        closed_epoch=message["closed_epoch"],
        disarmed=message["disarmed"],
        fencing=message["fencing"],
        last_exit=None if last is None else LastExit(last["pid"], last["status"], last["fenced"]),
        held=message["held"],
        memory_locked=message["memory_locked"],
        watchdog=None if watchdog is None else WatchdogState(watchdog["timeout_s"], watchdog["fault"]),
    )
