"""What this member writes down beside its data directory: how far its way back is, and what was discarded.

`rejoin.json` is the state of `haagent.core.rejoin`, of this very directory; `discards.json` lists what went,
newest last, `discards-told.json` those of them that the store has. The first two are written and synced
before the thing happens. A file that cannot be understood is told, and counts as empty: it holds up nothing.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime

from dcs import codec
from dcs.records import Discard
from haagent.core import rejoin
from haagent.core.rejoin_state import Rejoin
from haagent.ports import Postgres
from haagent.runtime import Runtime
from postgres_ctl.errors import PostgresError

log = logging.getLogger(__name__)

#: Discards that are remembered here.
KEPT = 20


class RejoinFiles:
    """Both files. `note` is the job's, all else the loop's; each file is written by one thread only."""

    def __init__(self, runtime: Runtime, pg: Postgres, state_dir: str, data_dir: str) -> None:
        self._rt, self._pg, self._data_dir = runtime, pg, data_dir
        self._state_path, self._list_path = f"{state_dir}/rejoin.json", f"{state_dir}/discards.json"
        self._told_path = f"{state_dir}/discards-told.json"
        self.state = self._read_state()
        self._discards = self._read_list(self._list_path)
        self._told = frozenset(discard.key for discard in self._read_list(self._told_path))

    # --- the state

    def keep(self, state: Rejoin) -> None:
        """Durable when this returns. Raises PostgresError."""
        if state != self.state:
            text = f"{self._pg.directory_id(self._data_dir)}\n{rejoin.encode(state)}\n"
            self._pg.write_synced(self._state_path, text)
            self.state = state

    def _read_state(self) -> Rejoin:
        text = self._read(self._state_path)
        if not text:
            return Rejoin()
        directory, _, state = text.partition("\n")
        if directory not in ("", self._pg.directory_id(self._data_dir)):
            log.info("%s is about another directory: ignored", self._state_path)
            return Rejoin()
        try:
            return rejoin.decode(state, self._rt.now())
        except ValueError as fault:
            log.warning("%s cannot be understood and is ignored: %s", self._state_path, fault)
            return Rejoin()

    # --- what was discarded

    def note(self, discard: Discard) -> Discard:
        """Remember it, durably, unless an earlier try did. As it stands in the file. Raises PostgresError."""
        before = next((d for d in self._discards if _same(d, discard)), None)
        if before is not None:
            return before
        discard = replace(discard, at=self._now())
        discards = (*self._discards, discard)[-KEPT:]
        self._pg.write_synced(self._list_path, codec.encode_discards(discards))
        self._discards = discards
        return discard

    @property
    def untold(self) -> tuple[Discard, ...]:
        """Those that the store does not know of, as far as we know."""
        return tuple(d for d in self._discards if d.key not in self._told)

    @property
    def discards(self) -> tuple[Discard, ...]:
        """All that are remembered, newest last."""
        return self._discards

    def told(self, news: tuple[Discard, ...]) -> None:
        """The store has them. Raises PostgresError."""
        self._told |= {discard.key for discard in news}
        known = tuple(d for d in self._discards if d.key in self._told)
        self._pg.write_synced(self._told_path, codec.encode_discards(known))

    def _read_list(self, path: str) -> tuple[Discard, ...]:
        text = self._read(path)
        try:
            return codec.decode_discards(text) if text else ()
        except ValueError as fault:
            log.warning("%s cannot be understood and is ignored: %s", path, fault)
            return ()

    def _read(self, path: str) -> str | None:
        try:
            return self._pg.read_text(path)
        except PostgresError as fault:
            log.warning("%s", fault)
            return None

    def _now(self) -> str:
        return datetime.fromtimestamp(self._rt.wall(), UTC).isoformat(timespec="milliseconds")


def _same(one: Discard, other: Discard) -> bool:
    """What a try writes down that goes on where another was cut off."""
    return one.start is not None and (one.start, one.end) == (other.start, other.end)
