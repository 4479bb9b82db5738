"""A guardian that is lost in the very moment in which the agent makes its acquaintance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from haagent import guardian_types as types
from haagent.instance import LocalInstance
from haagent.ports import GuardianPort, Postgres
from tests.simulation.config import agent_config
from tests.simulation.engine import Engine, HostClock, Process, SimRuntime

STATE = types.GuardianState(1, 1, 1, None, (), None, 0, False, False, None, None, False)


class Disk:
    """A postmaster runs here that no guardian knows."""

    def session(self, target: object, name: str) -> object:
        return object()

    def running_port(self, data_dir: str) -> None: ...

    def make_state_dir(self, path: str) -> None: ...

    def read_text(self, path: str) -> None: ...

    def find_postmaster(self, data_dir: str) -> tuple[int, int]:
        return 7, 1

    def has_signal_file(self, data_dir: str) -> bool:
        return False


class DyingGuardian:
    """Says hello, then dies over the first request."""

    hello = STATE

    def connect(
        self, state_dir: str, data_dir: str, on_event: Callable[[types.GuardianEvent], None]
    ) -> DyingGuardian:
        self._on_event = on_event
        return self

    def adopt(self, *args: Any, **words: Any) -> types.NoAnswer:
        self._on_event(types.GuardianLost("killed"))
        return types.NoAnswer("killed")


def test_a_guardian_that_dies_while_it_is_given_the_postmaster_is_simply_lost() -> None:
    """Found by seed 7179: the step failed, because the link was gone when its hello was asked for."""
    engine = Engine(1)
    runtime = SimRuntime(Process(engine, "agent"), HostClock(engine))
    port = DyingGuardian()
    instance = LocalInstance(
        runtime, cast(Postgres, Disk()), cast(GuardianPort, port), agent_config("pg0", {}, {}), lambda: None
    )

    def lost(event: types.GuardianEvent) -> None:
        if isinstance(event, types.GuardianLost):
            instance.link = None

    assert instance.connect_guardian(lost) == STATE
    assert instance.link is None
