"""Writes of `/sync`, and whether one of them may still be under way. Used by the loop thread only.

A write whose answer is lost may be applied long after, as long as the key has the version it was based on.
So may the last write of an agent that was killed. Until the key has been seen to have another version, it
is in doubt; what rests on it (`haagent.core.sync_leader`) writes it anew first.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from dcs import codec
from dcs.api import Dcs, Ok, Unknown

log = logging.getLogger(__name__)


class SyncKey:
    def __init__(self, dcs: Dcs) -> None:
        self._dcs = dcs
        #: The version that a write with an unknown end was based on; None: there is no such write.
        self._based_on: int | None = None
        self._looked = False

    def in_doubt(self, version: int) -> bool:
        """With the key at `version` now (0: absent), a write of before may still arrive."""
        if not self._looked:
            # Whoever was here before this agent may have sent one.
            self._looked, self._based_on = True, version
        if self._based_on != version:
            self._based_on = None
        return self._based_on is not None

    def write(
        self, leader: str, standbys: Iterable[str], quorum: int, version: int, deadline_s: float
    ) -> bool:
        """True when it was written, at `version`."""
        text = codec.encode_sync(leader, standbys, quorum)
        outcome = self._dcs.compare_and_set(codec.SYNC, text, version, deadline_s)
        return self._ended(text, outcome, version)

    def delete(self, version: int, deadline_s: float) -> bool:
        return self._ended("deleted", self._dcs.delete(codec.SYNC, deadline_s, version), version)

    def _ended(self, what: str, outcome: object, version: int) -> bool:
        if isinstance(outcome, Ok):
            log.info("sync: %s", what)
            return True
        if isinstance(outcome, Unknown):
            self._based_on = version
        log.warning("sync was not written: %s", outcome)
        return False
