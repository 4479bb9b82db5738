"""The local configuration as the rest of the agent sees it: frozen, typed, checked, secrets hidden.

Built by `load`; everything optional that the file leaves out carries its default here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from dcs.records import Tags
from haagent.config.values import HostPort, Listen
from haagent.core.settings import Problem

_EMPTY: Mapping[str, Any] = MappingProxyType({})


class ConfigErrors(Exception):
    """The configuration cannot be used. Carries every problem at once; prints one line for each."""

    def __init__(self, problems: tuple[Problem, ...], warnings: tuple[str, ...] = ()) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        self.warnings = warnings


@dataclass(frozen=True)
class LogConfig:
    """Section `log` (contract 5.2)."""

    type: str = "plain"
    level: str = "INFO"
    traceback_level: str = "ERROR"
    #: A format text, or for json (field, name in the output) pairs.
    format: str | tuple[tuple[str, str], ...] = "%(asctime)s %(levelname)s: %(message)s"
    dateformat: str | None = None
    static_fields: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    max_queue_size: int = 1000
    dir: str | None = None
    file_num: int = 4
    file_size_bytes: int = 25000000
    mode: int | None = None
    loggers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    deduplicate_heartbeat_logs: bool = False


@dataclass(frozen=True)
class RestApiConfig:
    """Section `restapi`."""

    listen: HostPort
    connect: HostPort
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    certfile: str | None = None
    keyfile: str | None = None
    keyfile_password: str | None = field(default=None, repr=False)
    cafile: str | None = None
    ciphers: str | None = None
    verify_client: str | None = None
    allowlist: tuple[str, ...] = ()
    allowlist_include_members: bool = False
    http_extra_headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    https_extra_headers: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    server_tokens: str = "Original"
    request_queue_size: int = 5
    thread_pool_size: int = 5

    @property
    def scheme(self) -> str:
        return "https" if self.certfile else "http"

    @property
    def api_url(self) -> str:
        """`api_url` of the member key."""
        return f"{self.scheme}://{self.connect}/patroni"


@dataclass(frozen=True)
class CtlConfig:
    """Section `ctl`: how haagentctl and the agent itself call REST servers."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    insecure: bool = False
    cacert: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    keyfile_password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class DcsSection:
    """The one DCS section in use."""

    backend: str
    #: Values of the section by key name, parsed; may hold secrets.
    section: Mapping[str, Any] = field(repr=False)
    #: `http://host:port` of every server; empty for `local`.
    endpoints: tuple[str, ...] = ()
    #: Shortest ttl the backend keeps reliably, seconds.
    minimum_ttl_s: float = 3.0


@dataclass(frozen=True)
class ReplicaMethod:
    """One way to make a replica; `basebackup` is pg_basebackup, and has no command."""

    name: str
    command: str = ""
    #: `--key=value`, in order, before what the agent adds.
    arguments: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    no_params: bool = False
    no_leader: bool = False
    keep_data: bool = False


@dataclass(frozen=True)
class BootstrapMethod:
    """How a new cluster is made instead of by initdb."""

    name: str
    command: str
    arguments: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    no_params: bool = False
    #: What the program has left to say how to recover is kept.
    keep_existing_recovery_conf: bool = False
    #: Recovery settings; None: nothing is to be recovered but what a crash leaves.
    recovery_conf: Mapping[str, str] | None = None


@dataclass(frozen=True)
class BootstrapConfig:
    """Section `bootstrap`: used once, for a new cluster."""

    dcs: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    #: Arguments of initdb: `--encoding=UTF8`, `--data-checksums`.
    initdb: tuple[str, ...] = ()
    pg_hba: tuple[str, ...] = ()
    #: Command line of the program that completes a new cluster.
    post_bootstrap: str | None = None
    #: None: initdb.
    method: BootstrapMethod | None = None


@dataclass(frozen=True)
class Role:
    """How to log in as one of the agent's PostgreSQL users."""

    username: str
    password: str | None = field(default=None, repr=False)
    sslmode: str | None = None
    sslpassword: str | None = field(default=None, repr=False)
    #: Further libpq keywords (sslcert, sslrootcert, gssencmode, …), without secrets.
    options: Mapping[str, str] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True)
class Authentication:
    superuser: Role
    replication: Role
    #: The superuser when the section is left out.
    rewind: Role


def state_dir(data_dir: str) -> str:
    """The agent's own directory for the server in `data_dir`."""
    return data_dir.rstrip("/") + ".haagent"


@dataclass(frozen=True)
class Overlay:
    """What a member has while it has one role (contract 5.2). None, and nothing: as without it."""

    parameters: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    pg_hba: tuple[str, ...] | None = None
    pg_ident: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PostgresConfig:
    """Section `postgresql`: of the local file alone, or merged by `dynamic.effective_postgresql`."""

    listen_addresses: tuple[str, ...]
    port: int
    connect_host: str
    connect_port: int
    #: Where the agent itself connects by TCP.
    local_host: str
    proxy_address: HostPort | None
    data_dir: str
    config_dir: str
    bin_dir: str
    bin_name: Mapping[str, str]
    pgpass: str
    database: str
    authentication: Authentication
    parameters: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    #: None: the file is left alone.
    pg_hba: tuple[str, ...] | None = None
    pg_ident: tuple[str, ...] | None = None
    recovery_conf: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    config_base_name: str = "postgresql"
    custom_conf: str | None = None
    use_unix_socket: bool = False
    use_unix_socket_repl: bool = False
    use_pg_rewind: bool = False
    remove_data_directory_on_rewind_failure: bool = False
    remove_data_directory_on_diverged_timelines: bool = False
    #: Directories of discarded WAL, and bytes in each.
    keep_diverged_wal: int = 3
    keep_diverged_wal_size: int = 1024**3
    pg_ctl_timeout_s: float = 60
    #: Arguments of pg_basebackup and pg_rewind.
    basebackup: tuple[str, ...] = ()
    rewind: tuple[str, ...] = ()
    #: Ways to make a replica, tried in this order.
    replica_methods: tuple[ReplicaMethod, ...] = (ReplicaMethod("basebackup"),)
    #: Those of a standby cluster's first member; empty: the same.
    remote_methods: tuple[ReplicaMethod, ...] = ()
    #: By role word: `primary`, `replica`, `standby_leader`.
    overlays: Mapping[str, Overlay] = field(default_factory=lambda: _EMPTY)
    krbsrvname: str | None = None
    #: Action -> command line, of those that are set.
    callbacks: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    #: Command lines; None when there is none.
    pre_promote: str | None = None
    before_stop: str | None = None

    @property
    def state_dir(self) -> str:
        """The agent's own directory, beside the data directory."""
        return state_dir(self.data_dir)

    def for_role(self, role: str) -> PostgresConfig:
        """The same with the overlay of `role` in place. An empty list of lines is no overlay."""
        overlay = self.overlays.get(role)
        if overlay is None:
            return self
        return replace(
            self,
            parameters=MappingProxyType({**self.parameters, **overlay.parameters}),
            pg_hba=overlay.pg_hba or self.pg_hba,
            pg_ident=overlay.pg_ident or self.pg_ident,
        )

    @property
    def listen(self) -> Listen:
        return Listen(self.listen_addresses, self.port)

    @property
    def conn_url(self) -> str:
        """`conn_url` of the member key."""
        return f"postgres://{HostPort(self.connect_host, self.connect_port)}/{self.database}"

    @property
    def unix_socket_dir(self) -> str | None:
        """First absolute directory of `unix_socket_directories`; None when there is none."""
        dirs = str(self.parameters.get("unix_socket_directories", "")).split(",")
        return next((d.strip() for d in dirs if d.strip().startswith("/")), None)


@dataclass(frozen=True)
class WatchdogConfig:
    """Section `watchdog`."""

    mode: str = "automatic"
    device: str = "/dev/watchdog"
    #: -1: half of the ttl.
    safety_margin_s: int = 5
    #: The device is a FIFO.
    testing: bool = False


@dataclass(frozen=True)
class AgentConfig:
    """One agent's local configuration, complete and checked."""

    scope: str
    name: str
    namespace: str
    restapi: RestApiConfig
    ctl: CtlConfig
    dcs: DcsSection
    bootstrap: BootstrapConfig
    postgresql: PostgresConfig
    tags: Tags
    log: LogConfig
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    #: File or directory it came from; None when from the environment alone.
    source: str | None = None
    warnings: tuple[str, ...] = ()
    #: Every value by its path, parsed, with nothing for what was left out. Holds secrets.
    values: Mapping[str, Any] = field(default_factory=lambda: _EMPTY, repr=False)
    #: Every secret, to keep them out of logs.
    secrets: tuple[str, ...] = field(default=(), repr=False)
