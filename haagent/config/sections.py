"""The sections log, restapi, ctl, bootstrap, tags and the DCS, put together from checked values."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from dcs.consul_options import options_from_section as consul_options
from dcs.errors import DcsConfigError
from dcs.records import Tags, whole
from dcs.zookeeper_options import options_from_section as zookeeper_options
from haagent.config import values as v
from haagent.config.check import Checked, allowed_options
from haagent.config.methods import bootstrap_method
from haagent.config.schema import BACKENDS, BACKENDS_LATER, BACKENDS_REFUSED, KEYS
from haagent.config.types import (
    BootstrapConfig,
    CtlConfig,
    DcsSection,
    LogConfig,
    RestApiConfig,
    WatchdogConfig,
)
from haagent.config.values import HostPort
from haagent.core.settings import parse_bool, parse_int, validate_dynamic


def log_config(checked: Checked) -> LogConfig:
    def get(name: str) -> Any:
        return checked.get(f"log.{name}")

    return LogConfig(
        type=get("type"),
        level=get("level"),
        traceback_level=get("traceback_level"),
        format=_log_format(checked),
        dateformat=get("dateformat"),
        static_fields=get("static_fields"),
        max_queue_size=get("max_queue_size"),
        dir=get("dir"),
        file_num=get("file_num"),
        file_size_bytes=get("file_size"),
        mode=get("mode"),
        loggers=_loggers(checked),
        deduplicate_heartbeat_logs=get("deduplicate_heartbeat_logs"),
    )


def _log_format(checked: Checked) -> str | tuple[tuple[str, str], ...]:
    """A %-format, or the fields of a JSON line as (field, name) pairs."""
    path = "log.format"
    value = checked.get(path)
    if isinstance(value, str):
        if not _is_record_format(value, checked.get("log.static_fields")):
            checked.refuse(path, value, "must be a %-format with fields of logging, like %(message)s")
        return value
    items = value if isinstance(value, list) else [value]
    pairs = [(i, i) if isinstance(i, str) else i for i in items]
    flat = [tuple(p.items()) if isinstance(p, Mapping) else (p,) for p in pairs]
    found = tuple((k, name) for group in flat for k, name in group if isinstance(name, str))
    if not found or len(found) != sum(len(group) for group in flat):
        checked.refuse(path, value, "must be text, or a list of fields and {field: alias}")
    return found


def _is_record_format(text: str, static_fields: Mapping[str, Any]) -> bool:
    """True when a log record can be rendered by `text`."""
    try:
        formatter = logging.Formatter(text, defaults=dict(static_fields))
        formatter.format(logging.makeLogRecord({"msg": ""}))
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _loggers(checked: Checked) -> Mapping[str, str]:
    level = KEYS["log.level"].type
    found = {}
    for name, value in checked.get("log.loggers").items():
        try:
            found[name] = level.parse(value)
        except ValueError:
            checked.refuse(f"log.loggers.{name}", value, f"must be {level.allowed}")
    return found


def restapi_config(checked: Checked) -> RestApiConfig | None:
    def get(name: str) -> Any:
        return checked.get(f"restapi.{name}")

    listen: HostPort | None = get("listen")
    if listen is None:
        return None
    connect: HostPort = get("connect_address") or listen
    if connect.is_wildcard:
        given = "connect_address" if get("connect_address") else "listen"
        allowed = "is no address others can connect to: set restapi.connect_address"
        checked.refuse(f"restapi.{given}", str(connect), allowed)
    if get("verify_client") in ("optional", "required") and not (get("cafile") and get("certfile")):
        checked.refuse(
            "restapi.verify_client", get("verify_client"), "needs restapi.cafile and restapi.certfile"
        )
    if (get("authentication.username") is None) != (get("authentication.password") is None):
        checked.refuse("restapi.authentication", "", "must have both username and password")
    return RestApiConfig(
        listen=listen,
        connect=connect,
        username=get("authentication.username"),
        password=get("authentication.password"),
        **{name: get(name) for name in _REST_SAME},
    )


_REST_SAME = (
    "certfile", "keyfile", "keyfile_password", "cafile", "ciphers", "verify_client", "allowlist",
    "allowlist_include_members", "http_extra_headers", "https_extra_headers", "server_tokens",
    "request_queue_size", "thread_pool_size",
)  # fmt: skip
_INITDB_FORBIDDEN = ("pgdata", "nosync", "pwfile", "sync-only", "version")
_CTL_SAME = ("insecure", "cacert", "certfile", "keyfile", "keyfile_password")


def ctl_config(checked: Checked) -> CtlConfig:
    """How to call REST servers; the login of `restapi` unless `ctl` has its own."""
    user, password = "authentication.username", "authentication.password"
    section = "ctl" if checked.get(f"ctl.{user}") else "restapi"
    return CtlConfig(
        username=checked.get(f"{section}.{user}"),
        password=checked.get(f"{section}.{password}"),
        **{name: checked.get(f"ctl.{name}") for name in _CTL_SAME},
    )


def bootstrap_config(checked: Checked, dcs: DcsSection | None) -> BootstrapConfig:
    data = checked.get("bootstrap.dcs")
    minimum_ttl_s = dcs.minimum_ttl_s if dcs else BACKENDS["etcd3"]
    problems, warnings = validate_dynamic(data, minimum_ttl_s, timings_must_fit=True)
    for found in problems:
        checked.refuse(f"bootstrap.dcs.{found.key}", found.value, found.allowed)
    checked.warnings += [f"bootstrap.dcs.{warning}" for warning in warnings]
    initdb = allowed_options(checked, "bootstrap.initdb", _INITDB_FORBIDDEN)
    post = next((n for n in ("post_bootstrap", "post_init") if checked.get(f"bootstrap.{n}")), None)
    command = checked.get(f"bootstrap.{post}") if post else None
    if command is not None and not _is_command_line(command):
        checked.refuse(f"bootstrap.{post}", command, "must be a command line, with its quotes in pairs")
    return BootstrapConfig(data, initdb, checked.get("bootstrap.pg_hba"), command, bootstrap_method(checked))


def _is_command_line(text: str) -> bool:
    try:
        return bool(shlex.split(text))
    except ValueError:
        return False


def watchdog_config(checked: Checked) -> WatchdogConfig:
    def get(name: str) -> Any:
        return checked.get(f"watchdog.{name}")

    return WatchdogConfig(get("mode"), get("device"), get("safety_margin"), get("driver") == "testing")


def member_tags(checked: Checked) -> Tags:
    """Tags (contract 6.5) with their right types."""
    tags = dict(checked.get("tags"))
    for name in ("nofailover", "noloadbalance", "clonefrom", "nosync", "nostream"):
        _convert(tags, name, parse_bool, "on or off", checked)
    for name in ("failover_priority", "sync_priority"):
        _convert(tags, name, parse_int, "a whole number", checked)
    if tags.get("replicatefrom") is not None:
        tags["replicatefrom"] = str(tags["replicatefrom"])
    for flag, priority in (("nofailover", "failover_priority"), ("nosync", "sync_priority")):
        if flag in tags and priority in tags and tags[flag] is not ((whole(tags[priority]) or 0) <= 0):
            checked.warn(
                f"Conflicting configuration between {flag}: {tags[flag]} and {priority}: {tags[priority]}. "
                f"Defaulting to {flag}: {tags[flag]}"
            )
    return Tags(MappingProxyType({k: value for k, value in tags.items() if _is_shown(k, value, tags)}))


#: Flags that say nothing when they are off, unless the number beside them says otherwise.
_SILENT_WHEN_OFF = {
    "clonefrom": None,
    "nofailover": "failover_priority",
    "noloadbalance": None,
    "nosync": "sync_priority",
    "nostream": None,
}


def _is_shown(name: str, value: Any, tags: Mapping[str, Any]) -> bool:
    """Contract 6.5: what goes into the member key."""
    if value is None:
        return False
    return value is not False or name not in _SILENT_WHEN_OFF or _SILENT_WHEN_OFF[name] in tags


def _convert(tags: dict[str, Any], name: str, parse: Any, allowed: str, checked: Checked) -> None:
    if tags.get(name) is None:
        tags.pop(name, None)
        return
    parsed = parse(tags[name])
    if parsed is None:
        checked.refuse(f"tags.{name}", tags.pop(name), f"must be {allowed}")
    elif whole(tags[name]) is None:  # a number written as text is published as it was written
        tags[name] = parsed


# --- the DCS ------------------------------------------------------------------------------------


def dcs_section(checked: Checked) -> DcsSection | None:
    """The one section in use; problems are noted when there is none, or more than one."""
    present = [name for name in BACKENDS if name in checked.tops]
    others = [name for name in (*BACKENDS_LATER, *BACKENDS_REFUSED) if name in checked.tops]
    for name in others:
        if name in BACKENDS_REFUSED:
            checked.refuse(name, "", BACKENDS_REFUSED[name])
        elif present:
            checked.warn(f"{name}: not supported yet: ignored")
        else:
            checked.refuse(name, "", "is not built yet: use etcd3, consul, zookeeper or local")
    if len(present) > 1 and present[-1] == "local":
        checked.refuse("local", "", f"stands beside {present[0]}: only one DCS section may be there")
        return None
    for name in present[1:]:
        checked.warn(f"{name}: ignored, as {present[0]} is there, which goes first")
    if not present and not others:
        checked.refuse(
            "etcd3", "", "is missing: one of the sections etcd3, consul, zookeeper, local must be there"
        )
    if not present:
        return None
    return {"consul": _consul, "etcd3": _etcd3, "local": _local, "zookeeper": _zookeeper}[present[0]](checked)


def _values_of(checked: Checked, section: str) -> Mapping[str, Any]:
    prefix = section + "."
    found = {key.name: checked.get(path) for path, key in KEYS.items() if path.startswith(prefix)}
    return MappingProxyType({name: value for name, value in found.items() if value is not None})


def _local(checked: Checked) -> DcsSection:
    return DcsSection("local", _values_of(checked, "local"), (), BACKENDS["local"])


def _consul(checked: Checked) -> DcsSection:
    section = _values_of(checked, "consul")
    try:
        options = consul_options(section)
    except DcsConfigError as error:
        checked.refuse("consul", "", str(error))
        return DcsSection("consul", section, (), BACKENDS["consul"])
    host = f"[{options.host}]" if ":" in options.host else options.host
    return DcsSection("consul", section, (f"{options.scheme}://{host}:{options.port}",), BACKENDS["consul"])


def _zookeeper(checked: Checked) -> DcsSection:
    section = _values_of(checked, "zookeeper")
    hosts: tuple[str, ...] = ()
    try:
        hosts = tuple(zookeeper_options(section).hosts.split(","))
    except DcsConfigError as error:
        checked.refuse("zookeeper", "", str(error))
    return DcsSection(
        "zookeeper", section, tuple(f"zookeeper://{host}" for host in hosts), BACKENDS["zookeeper"]
    )


def _etcd3(checked: Checked) -> DcsSection:
    """`url`, `proxy`, `hosts` or `host` as a list of addresses."""
    section = _values_of(checked, "etcd3")
    hosts = section.get("hosts") or section.get("host", ())
    default_port = section["port"]
    addresses = [f"{section['protocol']}://{v.host_port(host, default_port)}" for host in hosts]
    url = section.get("url") or section.get("proxy")
    if url:
        addresses = [v.without_login(url)]
    if (
        not addresses
        and "srv" not in section
        and not any(p.key.startswith("etcd3.") for p in checked.problems)
    ):
        checked.refuse("etcd3", "", "has no server: one of host, hosts, url, proxy, srv must be there")
    if ("username" in section) != ("password" in section):
        checked.refuse("etcd3", "", "must have both username and password, or none")
    if ("cert" in section) != ("key" in section) and "key" in section:
        checked.refuse("etcd3.key", section["key"], "needs etcd3.cert")
    return DcsSection("etcd3", section, tuple(addresses), BACKENDS["etcd3"])
