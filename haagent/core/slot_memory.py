"""What one agent remembers about logical slots. Pure; what was proven is proven anew after a restart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SlotMemory:
    """Times are seconds on CLOCK_BOOTTIME."""

    #: Creating or moving failed: not before then again.
    not_before: float = 0.0
    #: Slots to be copied are missing here since then; None while none is.
    missing_since: float | None = None
    #: A copy was made or failed: not before then again.
    copy_not_before: float = 0.0
    #: Slot -> why it could not be copied, and where it was then: tried again once it has moved.
    refused: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    #: The leader was last asked what catalog rows it keeps.
    checked_at: float = 0.0
    #: Slot -> catalog_xmin on the leader once this standby's own needs were known there.
    horizons: Mapping[str, int] = field(default_factory=dict)
    #: Slots whose catalog rows are known to be all here.
    safe: frozenset[str] = frozenset()
