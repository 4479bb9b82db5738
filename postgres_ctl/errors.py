"""Faults of a PostgreSQL instance and its tools, translated at the edge.

PostgresError
├── PostgresUnavailable   no answer from the server within the deadline
├── QueryFailed           the server answered with an error
├── ToolFailed            initdb, pg_basebackup, pg_rewind, … exited non-zero or was cancelled
├── DataDirError          the data directory is not what it should be
└── ConfigFileError       a configuration file cannot be read or written
"""


class PostgresError(Exception):
    """Base of every fault in this package."""


class PostgresUnavailable(PostgresError):
    """The server could not be reached or did not answer in time."""


class QueryFailed(PostgresError):
    """The server refused a statement; `sqlstate` is its code."""

    def __init__(self, message: str, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ToolFailed(PostgresError):
    """A PostgreSQL program failed; `output` is the tail of what it printed, without secrets."""

    def __init__(self, message: str, output: str = "", cancelled: bool = False) -> None:
        super().__init__(message)
        self.output = output
        self.cancelled = cancelled


class DataDirError(PostgresError):
    """The data directory is missing, foreign or damaged."""


class ConfigFileError(PostgresError):
    """A configuration file cannot be read or written, or a value cannot be put into it."""
