"""haagent: a PostgreSQL high-availability agent, drop-in compatible with Patroni 4.1."""

__version__ = "0.1.0"

#: What peers and tools of a Patroni cluster read as our version (contract 8.1).
COMPATIBLE_VERSION = "4.1.5"
