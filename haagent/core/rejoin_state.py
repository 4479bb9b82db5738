"""How far a data directory is on its way back under a leader: the state of `haagent.core.rejoin`. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rejoin:
    """Tries to bring this data directory back under the leader."""

    tries: int = 0
    not_before: float = 0.0
    reason: str = ""
    #: Our WAL is known to have left the leader's history.
    diverged: bool = False
    #: And pg_rewind does not see it (of a promotion without a checkpoint): it cannot help.
    unseen: bool = False
    #: The divergence from the leader of this epoch was looked at and is fine or mended.
    settled_epoch: int = 0
    #: Started as it was, because pg_rewind cannot run here, under the leader of this epoch.
    as_it_is_epoch: int = 0
    #: The leader against whom all this holds, 0 before the first; another one starts afresh.
    epoch: int = 0
    #: "rewind" or "clone": a try was begun, and nothing was heard of its end.
    under_way: str = ""
    #: How often the leader could not be asked how the histories fit.
    unanswered: int = 0
    #: Nothing that would mend it is allowed: an operator has to decide.
    stays_out: bool = False


#: Nothing was tried.
AFRESH = Rejoin()
