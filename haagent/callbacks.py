"""Calls the user's callbacks after each step, as `haagent.core.callbacks` finds them due."""

from __future__ import annotations

import shlex
from dataclasses import replace

from haagent.core.callbacks import RELOAD, Called, due
from haagent.core.model import Memory, Observation
from haagent.instance import LocalInstance
from haagent.lease_keeper import LeaseKeeper
from haagent.ports import ProgramsPort
from haagent.runtime import Runtime


class Caller:
    """Remembers what was called. Used by the loop thread only."""

    def __init__(
        self,
        runtime: Runtime,
        programs: ProgramsPort,
        instance: LocalInstance,
        keeper: LeaseKeeper,
        scope: str,
    ) -> None:
        self._now, self._programs = runtime.now, programs
        self._instance, self._keeper, self._scope = instance, keeper, scope
        self._called = Called()

    def after_step(self, obs: Observation, memory: Memory) -> None:
        """`memory` as it was before the step. The lease is looked at again: we may have been frozen."""
        latest = replace(obs, now=self._now(), lease=self._keeper.facts())
        calls, self._called = due(self._called, latest, memory, self._instance.reloads)
        if not calls:
            return
        commands = self._instance.effective.config.callbacks
        for call in calls:
            command = commands.get(call.action)
            if command:
                argv = (*shlex.split(command), call.action, call.role, self._scope)
                self._programs.call("reload" if call.action == RELOAD else "change", argv)
