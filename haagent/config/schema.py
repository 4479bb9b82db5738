"""Every key of the local file, once: kind, default, meaning, when it is read, and whether it is built.

The table drives validation, the hints for misspelt keys, the environment variables and the reference in
docs/configuration.md. What `load` makes of the values is in `types`.

Status of a key
- BUILT: works as described.
- NO_EFFECT: understood; there is nothing here that it would have to change.
- LATER: not built yet and harmless to leave out: ignored with a warning.
- REFUSED: not built yet (or gone), and says which data to use: the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from haagent.config import values as v
from haagent.config.values import ValueType, choice, seconds, size, whole


class Status(Enum):
    BUILT = "built"
    NO_EFFECT = "no effect"
    LATER = "ignored"
    REFUSED = "refused"


@dataclass(frozen=True)
class Key:
    """One key; `path` with dots. Secret values are never shown."""

    path: str
    type: ValueType
    meaning: str
    default: object = None
    #: Takes effect on SIGHUP and `POST /reload`; otherwise when the agent is started again.
    reload: bool = True
    status: Status = Status.BUILT
    required: bool = False
    secret: bool = False
    #: May stand in the dynamic configuration too.
    dynamic: bool = False
    #: For LATER and REFUSED: values that ask for nothing, accepted without a word.
    harmless: tuple[object, ...] = ()
    #: For LATER: values that promise safety, refused.
    refused: tuple[object, ...] = ()
    #: For REFUSED, and where it differs for LATER: why, and what to do instead.
    hint: str = "is not built yet"

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]


_START = False  # reads as reload=_START: when the agent starts


def _top() -> Iterator[Key]:
    yield Key("scope", v.PATH_WORD, "Name of the cluster", reload=_START, required=True)
    yield Key(
        "name", v.MEMBER_NAME, "Name of this member, unique in the cluster", reload=_START, required=True
    )
    yield Key("namespace", v.WORD, "First part of every key in the DCS", "service", reload=_START)
    yield Key("tags", v.SCALARS, "Tags of this member (nofailover, failover_priority, noloadbalance, …)", {})
    for name, kind in (("thread_pool_size", whole(1)), ("thread_stack_size", size(65536))):
        yield Key(name, kind, "The agent has no thread pool", reload=_START, status=Status.NO_EFFECT)


def _log() -> Iterator[Key]:
    level = choice("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL", ignore_case=True)
    yield Key(
        "log.type", choice("plain", "logfmt", "json"), "Lines for people, or events for machines", "plain"
    )
    yield Key("log.level", level, "Least level that is written", "INFO")
    yield Key("log.traceback_level", level, "Tracebacks are written when `level` is this or finer", "ERROR")
    yield Key(
        "log.format",
        v.ANY,
        "Line format; for json also a list of field names, or of {field: alias}",
        "%(asctime)s %(levelname)s: %(message)s",
    )
    yield Key("log.dateformat", v.WORD, "strftime format; without it date, time and milliseconds")
    yield Key("log.static_fields", v.SCALARS, "Fields added to every event (logfmt, json)", {})
    yield Key("log.max_queue_size", whole(1), "Records that may wait to be written; more are counted", 1000)
    yield Key("log.dir", v.PATH, "Write `patroni.log` here instead of stderr")
    yield Key("log.file_num", whole(0), "Rotated files to keep", 4)
    yield Key("log.file_size", size(1024), "Size at which a file is rotated, bytes", 25000000)
    yield Key("log.mode", v.MODE, "Permissions of the files; by umask when left out")
    yield Key("log.loggers", v.TEXTS, "Level per logger", {})
    yield Key("log.deduplicate_heartbeat_logs", v.FLAG, "Write a heartbeat only when it changed", False)


def _restapi() -> Iterator[Key]:
    yield Key("restapi.listen", v.HOST_PORT, "Address of the REST server", required=True)
    yield Key("restapi.connect_address", v.HOST_PORT, "How others reach it; default: `listen`")
    yield Key("restapi.authentication.username", v.WORD, "User for calls that change something")
    yield Key("restapi.authentication.password", v.TEXT, "Its password", secret=True)
    yield Key("restapi.certfile", v.FILE, "Certificate (PEM); turns on HTTPS")
    yield Key("restapi.keyfile", v.FILE, "Its private key; default: in `certfile`")
    yield Key("restapi.keyfile_password", v.TEXT, "Password of the key", secret=True)
    yield Key("restapi.cafile", v.FILE, "Authorities for client certificates")
    yield Key("restapi.ciphers", v.WORD, "OpenSSL cipher list")
    yield Key(
        "restapi.verify_client",
        choice("none", "optional", "required"),
        "Client certificates: never, for changes, always",
    )
    yield Key("restapi.allowlist", v.STRINGS, "Hosts and networks that may change something", ())
    yield Key("restapi.allowlist_include_members", v.FLAG, "Members may change something too", False)
    yield Key("restapi.http_extra_headers", v.TEXTS, "Headers of every answer", {})
    yield Key("restapi.https_extra_headers", v.TEXTS, "Headers of every HTTPS answer", {})
    yield Key(
        "restapi.server_tokens",
        choice("Original", "Minimal", "ProductOnly", ignore_case=True),
        "What the Server header tells",
        "Original",
    )
    yield Key(
        "restapi.request_queue_size",
        whole(0, 4096),
        "Connections that may wait (at least 1024)",
        5,
        reload=_START,
    )
    yield Key("restapi.thread_pool_size", whole(1), "Requests served at a time", 5, reload=_START)


def _ctl() -> Iterator[Key]:
    yield Key("ctl.authentication.username", v.WORD, "User sent to REST; default: that of `restapi`")
    yield Key("ctl.authentication.password", v.TEXT, "Its password", secret=True)
    yield Key("ctl.insecure", v.FLAG, "Do not check server certificates", False)
    yield Key("ctl.cacert", v.FILE, "Authorities for server certificates")
    yield Key("ctl.certfile", v.FILE, "Client certificate")
    yield Key("ctl.keyfile", v.FILE, "Its private key")
    yield Key("ctl.keyfile_password", v.TEXT, "Password of the key", secret=True)


CONN_OPTIONS = (
    "sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "sslcrldir", "gssencmode",
    "channel_binding", "sslnegotiation",
)  # fmt: skip
ROLES = ("superuser", "replication", "rewind")
#: Roles with settings of their own; who is promoted counts as primary, who is demoted as replica.
OVERLAYS = ("primary", "replica", "standby_leader")
TOOLS = (
    "pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "postgres", "pg_isready", "pg_rewind",
)  # fmt: skip


def _authentication() -> Iterator[Key]:
    users = {
        "superuser": ("Superuser the agent connects as", "postgres"),
        "replication": ("User the standbys stream as", None),
        "rewind": ("User pg_rewind reads the primary as; default: the superuser", None),
    }
    for role, (meaning, default) in users.items():
        base = f"postgresql.authentication.{role}"
        yield Key(f"{base}.username", v.WORD, meaning, default, required=role == "replication")
        yield Key(f"{base}.password", v.TEXT, "Its password", secret=True)
        for option in CONN_OPTIONS:
            yield Key(f"{base}.{option}", v.WORD, f"libpq's `{option}`", secret=option == "sslpassword")


def _postgresql() -> Iterator[Key]:
    p = "postgresql."
    yield Key(p + "listen", v.LISTEN, "GUCs `listen_addresses` and `port` (5432)", required=True)
    yield Key(p + "connect_address", v.HOST_PORT, "How other members reach PostgreSQL")
    yield Key(p + "proxy_address", v.HOST_PORT, "Address of a pooler before it, shown as `proxy_url`")
    yield Key(p + "data_dir", v.PATH, "Data directory", reload=_START, required=True)
    yield Key(p + "config_dir", v.PATH, "Where postgresql.conf is; default: `data_dir`", reload=_START)
    yield Key(
        p + "bin_dir", v.PATH, "PostgreSQL's programs; default: by PATH, else the newest installed",
        reload=_START, dynamic=True,
    )  # fmt: skip
    for tool in TOOLS:
        yield Key(p + f"bin_name.{tool}", v.WORD, f"Name of the program {tool}", tool, dynamic=True)
    yield Key(
        p + "config_base_name", v.PATH_WORD, "Stem of the configuration file", "postgresql",
        reload=_START, dynamic=True,
    )  # fmt: skip
    yield Key(p + "custom_conf", v.WORD, "File included instead of postgresql.base.conf", dynamic=True)
    yield Key(
        p + "database", v.WORD, "Database the agent connects to", "postgres", reload=_START, dynamic=True
    )
    yield Key(p + "pgpass", v.PATH, "Password file the agent writes", "~/pgpass", reload=_START)
    yield from _authentication()
    yield Key(p + "parameters", v.SCALARS, "PostgreSQL parameters", {}, dynamic=True)
    yield Key(p + "pg_hba", v.LINES, "Lines of pg_hba.conf; untouched when left out", dynamic=True)
    yield Key(p + "pg_ident", v.LINES, "Lines of pg_ident.conf; untouched when left out", dynamic=True)
    for overlay in OVERLAYS:
        where = f"while this member is a {overlay.replace('_', ' ')}"
        yield Key(p + f"parameters_{overlay}", v.SCALARS, f"Laid over `parameters` {where}", {}, dynamic=True)
        for kind in ("pg_hba", "pg_ident"):
            yield Key(p + f"{kind}_{overlay}", v.LINES, f"Instead of `{kind}` {where}", (), dynamic=True)
    yield Key(p + "recovery_conf", v.SCALARS, "Recovery settings of standbys", {}, dynamic=True)
    yield Key(p + "use_unix_socket", v.FLAG, "Connect through the socket directory", False, dynamic=True)
    yield Key(
        p + "use_unix_socket_repl", v.FLAG, "Nothing here connects to its own server for replication", False,
        status=Status.NO_EFFECT, dynamic=True,
    )  # fmt: skip
    yield Key(p + "use_pg_rewind", v.FLAG, "Mend a diverged member with pg_rewind", False, dynamic=True)
    for case in ("rewind_failure", "diverged_timelines"):
        yield Key(
            p + f"remove_data_directory_on_{case}", v.FLAG, "Clone again in that case", False, dynamic=True
        )
    yield Key(p + "basebackup", v.OPTIONS, "Options of pg_basebackup", (), dynamic=True)
    yield Key(p + "rewind", v.OPTIONS, "Options of pg_rewind", (), dynamic=True)
    kept = "WAL that pg_rewind or a clone discards, kept beside the data directory: "
    yield Key(p + "keep_diverged_wal", whole(0), kept + "of so many times; 0: none", 3, dynamic=True)
    yield Key(
        p + "keep_diverged_wal_size", size(0), kept + "so much each time, the oldest first", 1024**3,
        dynamic=True,
    )  # fmt: skip
    yield Key(p + "pg_ctl_timeout", seconds(1), "How long a start may take, seconds", 60, dynamic=True)
    yield Key(p + "krbsrvname", v.WORD, "Kerberos service name", dynamic=True)
    yield Key(p + "use_slots", v.FLAG, "Replication slots; only from the DCS", True, dynamic=True)
    methods = "Ways to make a replica, tried in order: basebackup, or names of sections here (docs/backup.md)"
    yield Key(p + "create_replica_methods", v.STRINGS, methods, "basebackup", dynamic=True)
    yield Key(
        p + "create_replica_method", v.STRINGS, "Old name of `create_replica_methods`", (), dynamic=True
    )


def _hooks() -> Iterator[Key]:
    """See docs/hooks.md."""
    p = "postgresql."
    for name in CALLBACKS:
        meaning = f"Run as `<command> {name} <role> <scope>`, not waited for"
        yield Key(p + f"callbacks.{name}", v.COMMAND, meaning, dynamic=True)
    yield Key(
        p + "pre_promote", v.COMMAND, "Run before a promotion, which it forbids by failing", dynamic=True
    )
    yield Key(p + "before_stop", v.COMMAND, "Run before each planned stop", dynamic=True)


def _watchdog() -> Iterator[Key]:
    """See docs/guardian.md."""
    w = "watchdog."
    yield Key(
        w + "mode", choice("off", "automatic", "required"),
        "A device that resets a host which cannot fence itself: never, where it can be used, or else no lead",
        "automatic",
    )  # fmt: skip
    yield Key(w + "device", v.PATH, "The device; this user must be allowed to write to it", "/dev/watchdog")
    yield Key(
        w + "safety_margin", whole(-1), "The host is reset so many seconds before `ttl`; -1: at half of it", 5
    )
    yield Key(w + "driver", choice("default", "testing"), "`testing`: the device is a FIFO", "default")


#: Actions of callbacks (contract 6.6).
CALLBACKS = ("on_start", "on_stop", "on_restart", "on_reload", "on_role_change")


def _bootstrap() -> Iterator[Key]:
    b = "bootstrap."
    yield Key(b + "dcs", v.MAPPING, "First dynamic configuration of a new cluster", {}, reload=_START)
    yield Key(b + "initdb", v.OPTIONS, "Options of initdb", (), reload=_START)
    yield Key(b + "pg_hba", v.LINES, "Lines added to initdb's pg_hba.conf", (), reload=_START)
    made = "How a new cluster is made: initdb, or the name of a section here (docs/backup.md)"
    yield Key(b + "method", v.WORD, made, "initdb", reload=_START)
    completes = "Program that completes a new cluster, with a conninfo as its last argument"
    yield Key(b + "post_bootstrap", v.WORD, completes, reload=_START)
    yield Key(b + "post_init", v.WORD, "Old name of `post_bootstrap`", reload=_START)
    yield Key(
        b + "users", v.ANY, "Gone since Patroni 4.0", status=Status.LATER, harmless=({},), reload=_START,
        hint="is gone since Patroni 4.0, no users are made: ignored",
    )  # fmt: skip


def _later_sections() -> Iterator[Key]:
    yield Key(
        "citus.group",
        v.ANY,
        "Citus group",
        status=Status.REFUSED,
        hint="is not supported: there is no Citus support",
    )
    yield Key("citus.database", v.ANY, "Citus database", status=Status.LATER)
    for name in ("ttl", "loop_wait", "retry_timeout"):
        yield Key(
            name, v.ANY, "Only from the dynamic configuration: see `bootstrap.dcs`", status=Status.LATER,
            hint="counts in the dynamic configuration only: ignored here (see bootstrap.dcs)",
        )  # fmt: skip


def _dcs() -> Iterator[Key]:
    e = "etcd3."
    yield Key(e + "host", v.ENDPOINTS, "One etcd server, port 2379", reload=_START)
    yield Key(e + "hosts", v.ENDPOINTS, "All etcd servers", reload=_START)
    yield Key(
        e + "url", v.URL, "One etcd server with its scheme (and login), instead of hosts", reload=_START
    )
    yield Key(e + "port", v.PORT, "Port of hosts without one", 2379, reload=_START)
    yield Key(e + "protocol", choice("http", "https"), "Scheme of hosts", "http", reload=_START)
    yield Key(e + "username", v.WORD, "etcd user")
    yield Key(e + "password", v.TEXT, "Its password", secret=True)
    for name, meaning in (
        ("cacert", "Authorities for etcd's certificate"),
        ("cert", "Client certificate"),
        ("key", "Its private key"),
    ):
        yield Key(e + name, v.FILE, meaning, reload=_START)
    yield Key(e + "proxy", v.URL, "A proxy before etcd; the same as `url`", reload=_START)
    yield Key(
        e + "use_proxies", v.FLAG, "Servers are always used as named, never looked up in etcd", False,
        reload=_START, status=Status.NO_EFFECT,
    )  # fmt: skip
    yield Key(e + "srv", v.WORD, "Domain whose SRV records name the servers", reload=_START)
    yield Key(e + "srv_suffix", v.WORD, "Last part of the name of these records", reload=_START)
    yield from _consul()
    yield from _zookeeper()
    yield Key("local.path", v.PATH, "SQLite file that all agents of this machine share", reload=_START)


def _consul() -> Iterator[Key]:
    c = "consul."
    yield Key(c + "host", v.WORD, "Consul's agent on this host, port 8500", "127.0.0.1:8500", reload=_START)
    yield Key(c + "url", v.URL, "The same with its scheme, instead of host", reload=_START)
    yield Key(c + "port", v.PORT, "Port of a host without one", reload=_START)
    yield Key(c + "scheme", choice("http", "https"), "Scheme of host", "http", reload=_START)
    yield Key(c + "token", v.TEXT, "ACL token", secret=True, reload=_START)
    yield Key(c + "verify", v.FLAG, "Check Consul's certificate", True, reload=_START)
    yield Key(c + "cacert", v.FILE, "Authorities for Consul's certificate", reload=_START)
    yield Key(c + "cert", v.FILE, "Client certificate", reload=_START)
    yield Key(c + "key", v.FILE, "Its private key", reload=_START)
    yield Key(c + "dc", v.WORD, "Consul's data centre", reload=_START)
    yield Key(
        c + "consistency", choice("default", "consistent", "stale"),
        "Of the watch only: what decides is always read consistently", "default", reload=_START,
    )  # fmt: skip
    yield Key(c + "checks", v.STRINGS, "Node checks that end the session when they fail", (), reload=_START)
    yield Key(
        c + "register_service", v.FLAG, "Register the member in Consul's catalogue", False, reload=_START
    )
    yield Key(c + "service_tags", v.STRINGS, "Tags of that service, beside its role", (), reload=_START)
    yield Key(c + "service_check_interval", v.WORD, "How often Consul checks its health", "5s", reload=_START)
    yield Key(
        c + "service_check_tls_server_name", v.WORD, "Name in the certificate of the REST API", reload=_START
    )


def _zookeeper() -> Iterator[Key]:
    z = "zookeeper."
    yield Key(z + "hosts", v.ENDPOINTS, "All ZooKeeper servers, port 2181", reload=_START)
    yield Key(z + "use_ssl", v.FLAG, "Connect with TLS", False, reload=_START)
    yield Key(z + "cacert", v.FILE, "Authorities for ZooKeeper's certificate", reload=_START)
    yield Key(z + "cert", v.FILE, "Client certificate", reload=_START)
    yield Key(z + "key", v.FILE, "Its private key", reload=_START)
    yield Key(z + "key_password", v.TEXT, "Password of the key", secret=True, reload=_START)
    yield Key(z + "verify", v.FLAG, "Check ZooKeeper's certificate", True, reload=_START)
    yield Key(z + "set_acls", v.ANY, "Principals with their permissions, of every key made", reload=_START)
    yield Key(z + "auth_data", v.TEXTS, "Schemes with their credentials", secret=True, reload=_START)


KEYS: dict[str, Key] = {
    key.path: key
    for part in (
        _top,
        _log,
        _restapi,
        _ctl,
        _postgresql,
        _hooks,
        _watchdog,
        _bootstrap,
        _later_sections,
        _dcs,
    )
    for key in part()
}


def _dynamic() -> Iterator[Key]:
    yield Key("ttl", whole(3), "Life of the leader key and of members, seconds; with etcd3 3 or more", 30)
    yield Key("loop_wait", whole(1), "Longest time between two looks at the cluster, seconds", 10)
    yield Key("retry_timeout", whole(1), "Deadline of one DCS operation, retries included, seconds", 10)
    yield Key(
        "maximum_lag_on_failover", whole(0), "A standby further behind may not take over, bytes", 1048576
    )
    yield Key("check_timeline", v.FLAG, "Only a standby on the newest timeline may take over", False)
    yield Key(
        "primary_start_timeout", whole(0), "Crash recovery may take so long, then the primary fails over", 300
    )
    yield Key(
        "primary_stop_timeout",
        whole(0),
        "With a synchronous mode: a stop that lasts longer is forced; 0 is off",
        0,
    )
    yield Key(
        "synchronous_mode", v.SYNC_MODE, "No acknowledged write is lost in an unplanned failover", "off"
    )
    yield Key("synchronous_mode_strict", v.FLAG, "No writes without a synchronous standby", False)
    yield Key("synchronous_node_count", whole(1), "So many standbys have each acknowledged write", 1)
    yield Key(
        "maximum_lag_on_syncnode",
        whole(-1),
        "A standby further behind is not waited for, bytes; -1 is off",
        -1,
    )
    yield Key("primary_race_backoff", whole(0), "Parsed, not acted upon yet", 0)
    yield Key("max_timelines_history", whole(0), "Rows of `history` to keep; 0 keeps all", 0)
    yield Key("member_slots_ttl", seconds(0), "Slots of members that left are kept so long", 1800)
    yield Key("slots", v.ANY, "Permanent replication slots by name: type, database, plugin, cluster_type")
    for old in ("permanent_slots", "permanent_replication_slots"):
        yield Key(old, v.ANY, "Old name of `slots`; wins over it")
    yield Key("ignore_slots", v.ANY, "Slots of others: list of name, type, database, plugin; all have to fit")
    yield Key("pause", v.FLAG, "Hands off: no automatic action", False)
    yield Key("standby_cluster", v.MAPPING, "Follow another cluster (standby-clusters.md)", {})
    yield Key("failsafe_mode", v.FLAG, "Without the DCS the primary goes on while all members agree", False)
    yield Key("postgresql", v.MAPPING, "As in the local file, where marked DCS", {})
    for old in ("master_start_timeout", "master_stop_timeout"):
        yield Key(old, whole(0), f"Old name of `{old.replace('master', 'primary')}`")


#: Keys of the dynamic configuration, for the reference; `core.settings` parses them.
DYNAMIC: dict[str, Key] = {key.path: key for key in _dynamic()}

#: Every mapping that has keys of its own in the table: "", "postgresql", "postgresql.authentication", …
SECTIONS: frozenset[str] = frozenset(
    prefix
    for key in KEYS.values()
    for parts in [key.section.split(".")]
    for prefix in (".".join(parts[:n]) for n in range(len(parts) + 1))
)

#: DCS sections that work, with the shortest ttl each keeps reliably (seconds).
BACKENDS = {"consul": 10.0, "etcd3": 3.0, "zookeeper": 4.0, "local": 3.0}
#: Not built yet: harmless beside one that works.
BACKENDS_LATER = ("kubernetes",)
#: Never: what to use instead.
BACKENDS_REFUSED = {
    "etcd": "is the v2 API, which is not supported: name the section etcd3 (same keys)",
    "exhibitor": "is not supported: use etcd3",
    "raft": "is not supported: use etcd3",
}
#: Of the section postgresql, never taken from the DCS.
POSTGRESQL_LOCAL_ONLY = tuple(
    sorted(
        {"authentication"}
        | {key.name for key in KEYS.values() if key.section == "postgresql" and not key.dynamic}
    )
)


def children(section: str) -> tuple[str, ...]:
    """Names that may stand directly in `section` ("" = top of the file)."""
    prefix = f"{section}." if section else ""
    paths = [*KEYS, *SECTIONS]
    names = {p[len(prefix) :].split(".")[0] for p in paths if p.startswith(prefix) and p != section}
    if not section:
        names |= {*BACKENDS_LATER, *BACKENDS_REFUSED}
    return tuple(sorted(names - {""}))
