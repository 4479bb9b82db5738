"""Rule 7 and the way back: what goes is written down before, and tries of pg_rewind have a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dcs.codec import decode_discards
from dcs.records import Discard
from haagent.core.rejoin import REWIND_TRIES, SPENT_PAUSE_S
from tests.simulation.wal import DATA, Record, in_common

if TYPE_CHECKING:
    from tests.simulation.host import SimHost


def only_here(gone: Sequence[Record], line: list[Record]) -> list[Record]:
    """Clients' records among those that went which are not on the cluster's line."""
    if not gone or gone[0].index == 0:
        gone = gone[in_common(list(gone), line) :]
    return [record for record in gone if record.kind == DATA]


def is_written_down(host: SimHost, lost: Sequence[Record]) -> bool:
    """A report on its disk tells of all these records, or that it is not known what goes."""
    return any(_tells_of(discard, lost) for discard in _discards_on(host))


def _discards_on(host: SimHost) -> tuple[Discard, ...]:
    texts = [text for path, text in host.files.items() if path.endswith("/discards.json")]
    return decode_discards(texts[0]) if texts else ()


def _tells_of(discard: Discard, lost: Sequence[Record]) -> bool:
    if discard.start is None or discard.end is None or discard.transactions is None:
        return discard.note is not None
    within = discard.start <= lost[0].start and lost[-1].end <= discard.end
    return within and discard.transactions >= len(lost)


@dataclass
class Budget:
    """Tries of pg_rewind since the last that succeeded, by host and epoch of the leader."""

    _tries: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def begun(self, host: SimHost, epoch: int, now: float) -> str | None:
        """One more; why it is one too many."""
        tries = self._tries.setdefault((host.name, epoch), [])
        tries.append(now)
        if len(tries) <= REWIND_TRIES or now >= tries[-1 - REWIND_TRIES] + SPENT_PAUSE_S / 2:
            return None
        return f"{host.name}: try {len(tries)} of pg_rewind under epoch {epoch}, begun at {tries}"

    def succeeded(self, host: SimHost) -> None:
        self._tries = {key: tries for key, tries in self._tries.items() if key[0] != host.name}
