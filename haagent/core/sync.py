"""Synchronous modes, the words: whose `/sync` it is, who is in it, what a server's setting begins as. Pure.

`/sync` speaks for itself: with a quorum above 0 a promotion needs votes whatever the mode is now, for members
hear of a changed mode at different moments (docs/decisions/0005-synchronous-modes.md).
"""

from __future__ import annotations

from dcs.records import ClusterSnapshot, SyncState
from haagent.core.model import Observation, unreadable
from haagent.core.quorum import Voters, Waits
from haagent.core.settings import Settings, SyncMode
from postgres_ctl.sync_standbys import ANYBODY, PLACEHOLDER, SyncNames, nobody, parse

KEY = "sync"


def is_on(settings: Settings) -> bool:
    """A synchronous mode is wanted: never in a cluster that follows another one (contract 5.3)."""
    return settings.synchronous_mode is not SyncMode.OFF and settings.standby_cluster is None


def in_force(settings: Settings, cluster: ClusterSnapshot) -> SyncState | None:
    """`/sync` where it binds whoever wants to lead; None while no mode is on, or nobody was promised anything
    yet. Whether it can be read at all is another question (`unreadable`)."""
    sync = cluster.sync
    return sync if is_on(settings) and sync is not None and sync.leader else None


def unknown(settings: Settings, cluster: ClusterSnapshot) -> str | None:
    """Why nobody can tell who misses no acknowledged commit; None when `/sync` can be read, or does not
    matter."""
    return unreadable(cluster, KEY) if is_on(settings) else None


def voters(sync: SyncState) -> Voters:
    """Leader and standbys, folded, with the quorum."""
    named = (sync.leader, *sync.standbys)
    return Voters(frozenset(name.lower() for name in named if name), sync.quorum)


def names(sync: SyncState) -> frozenset[str]:
    """All in it, folded."""
    return voters(sync).names


def is_listed(sync: SyncState, name: str) -> bool:
    """As a standby, not as the leader."""
    return name.lower() in (standby.lower() for standby in sync.standbys)


def takes_votes(settings: Settings, sync: SyncState) -> bool:
    """Who may be promoted is a question of votes, not of membership alone."""
    return settings.synchronous_mode is SyncMode.QUORUM or sync.quorum > 0


# --- the setting of a server ----------------------------------------------------------------------


def never_empty(settings: Settings) -> bool:
    """Commits wait from the first one after a promotion: the setting is never empty on a standby (H17)."""
    quorum = settings.synchronous_mode is SyncMode.QUORUM
    return is_on(settings) and (quorum or settings.synchronous_mode_strict)


def standby_names(settings: Settings, user: str) -> str:
    """Of a server that is no primary; `user` is what counts while no mode is on."""
    if not is_on(settings):
        return user
    return nobody(settings.synchronous_mode is SyncMode.QUORUM).text if never_empty(settings) else ""


def names_at_start(settings: Settings, user: str, before: str) -> str:
    """Of a server that is started to accept writes: it waits for whom it did when it ended.

    In strict mode that is never nobody: not of a new cluster either."""
    if not is_on(settings):
        return user
    if not before and settings.synchronous_mode_strict:
        return nobody(settings.synchronous_mode is SyncMode.QUORUM).text
    return before


def waits(setting: SyncNames | None) -> Waits:
    """What a setting makes commits wait for, as far as it can be relied on.

    By priority every member of the list may be among the first ones, so it counts like a quorum of them.
    Whoever `*` lets acknowledge has no name: nothing is known but that the primary has it."""
    if setting is None or ANYBODY in setting.names:
        return Waits()
    listed = frozenset(name.lower() for name in setting.names) - {PLACEHOLDER}
    return Waits(listed, setting.number)


def parsed(text: str) -> SyncNames | None:
    """A setting that somebody else wrote and that cannot be read protects nothing."""
    try:
        return parse(text)
    except ValueError:
        return None


def is_published(obs: Observation, pid: int | None, published: bool) -> bool:
    """Backends of this very server wait by its setting."""
    return published and pid is not None and pid == obs.instance.pid
