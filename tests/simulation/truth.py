"""Who looks at the truth, and the land of hosts it is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.simulation.events import Engine
    from tests.simulation.host import SimHost
    from tests.simulation.network import Network
    from tests.simulation.postgres import Server
    from tests.simulation.wal import DataDir, Record


class Truth:
    """What really happened, for those who check. Every method is called as it happens; override some."""

    def writable(self, server: Server) -> None:
        """Some backend of it can commit from now on."""

    def not_writable(self, server: Server) -> None:
        """None can any more."""

    def promoted(self, server: Server, timeline: int, count: int) -> None:
        """It began `timeline` behind its first `count` records."""

    def written(self, server: Server, record: Record) -> None:
        """A client's record is durable on the server (unless `commit` was "off")."""

    def acknowledged(self, server: Server, record: Record) -> None:
        """The client is about to be told that its record is committed."""

    def waits_changed(self, server: Server) -> None:
        """Its backends wait by another synchronous_standby_names from now on."""

    def discarded(self, host: SimHost, records: tuple[Record, ...], why: str) -> None:
        """Records left a data directory: "wiped", "rewound", "lost" (power), "crashed", "mixed"."""

    def rewinding(self, host: SimHost) -> None:
        """pg_rewind begins to work on its data directory."""

    def rewind_succeeded(self, host: SimHost) -> None:
        """It was rewound, or need not be."""

    def copied_without_leader(self, host: SimHost) -> None:
        """A program of the user's begins to restore a backup, with nobody to copy from."""

    def mixed(self, host: SimHost, why: str) -> None:
        """WAL or pages of another history got into the directory, and PostgreSQL did not notice."""


class Land:
    """All hosts, by name and by address, and who listens to the truth."""

    def __init__(self, engine: Engine, network: Network) -> None:
        self.engine, self.network = engine, network
        self.hosts: dict[str, SimHost] = {}
        self.truths: list[Truth] = []
        self._addresses: dict[tuple[str, int], SimHost] = {}
        self._systems = 0
        #: Lists of hosts under one name: whom they stand for now.
        self.lists: dict[tuple[str, int], Callable[[], SimHost]] = {}
        #: What a program of the user's restores; None: nothing was ever backed up.
        self.backup: DataDir | None = None

    def add(self, host: SimHost) -> None:
        self.hosts[host.name] = host
        self._addresses[host.address] = host

    def host_at(self, address: tuple[str, int] | None) -> SimHost | None:
        if address is None:
            return None
        chosen = self.lists.get(address)
        return chosen() if chosen is not None else self._addresses.get(address)

    def connected(self, one: str, other: str) -> bool:
        """Both ways."""
        return self.network.up(one, other) and self.network.up(other, one)

    def new_system_id(self) -> str:
        self._systems += 1
        return str(7_300_000_000_000_000_000 + self._systems)
