"""What haagentctl must know before it can talk: cluster, store, credentials for the members.

Theory. One file, then `PATRONI_*` and `HAAGENT_*` variables over it (ours win), then `--dcs-url` over both.
The file may be an agent's: everything not used here is left unread, so a broken `postgresql` section
never stops an operator.
Sections used: `ctl`, `restapi`, `scope`, `namespace` and the first store section present.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from haagent.ctl.errors import CtlError

#: Looked for in this order when no file is named; ours first.
DEFAULT_FILES = ("haagent/haagentctl.yaml", "patroni/patronictl.yaml")
#: Store sections in the order they are looked up (contract 1.1), ours at the end.
BACKENDS = ("consul", "etcd", "etcd3", "exhibitor", "kubernetes", "raft", "zookeeper", "local")
DEFAULT_PORTS = {"zookeeper": 2181, "exhibitor": 8181, "consul": 8500, "etcd": 2379, "etcd3": 2379}
DEFAULT_NAMESPACE = "service"

#: Why a backend cannot be used; whatever is not listed is left to `dcs.factory`.
UNUSABLE = {
    "etcd": "etcd v2 is not supported, use etcd3 (the same servers answer it)",
    "exhibitor": "exhibitor is not supported",
    "raft": "raft is not supported",
    "kubernetes": "kubernetes is not built yet",
}

#: What the codec of the store takes.
DEEPEST = 32

_TRUE = frozenset({"true", "on", "yes", "1"})
_FALSE = frozenset({"false", "off", "no", "0"})
#: Variables of one section are `<PREFIX><SECTION>_<KEY>`; the later prefix wins.
PREFIXES = ("PATRONI_", "HAAGENT_")
#: Keys that carry a login.
_LOGIN_KEYS = ("username", "password")


@dataclass(frozen=True)
class RestOptions:
    """How members are asked. File names are not opened here."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    cacert: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    keyfile_password: str | None = field(default=None, repr=False)
    insecure: bool = False


@dataclass(frozen=True)
class CtlConfig:
    """Everything haagentctl takes from file, environment and command line."""

    scope: str | None
    namespace: str
    backend: str | None
    section: Mapping[str, Any] = field(repr=False)
    rest: RestOptions


def load_config(file: str | None, dcs_url: str | None, insecure: bool, env: Mapping[str, str]) -> CtlConfig:
    """Read `file` (None: the default ones), `env` and the options. Raises CtlError."""
    data = _read_file(file, env)
    if file is not None or _document(env) is None:
        _overlay_environment(data, env)
    if data.get("citus"):
        raise CtlError("section citus: Citus is not supported")
    namespace = str(data.get("namespace") or DEFAULT_NAMESPACE)
    backend, section = _store_section(data)
    if dcs_url:
        backend, section, url_namespace = parse_dcs_url(dcs_url)
        namespace = url_namespace or namespace
    if backend in UNUSABLE:
        raise CtlError(UNUSABLE[backend])
    require_text("the namespace", namespace)
    scope = data.get("scope")
    rest = _rest_options(data, insecure)
    return CtlConfig(str(scope) if scope else None, namespace, backend, section, rest)


# --- file and environment -----------------------------------------------------------------------


def _read_file(file: str | None, env: Mapping[str, str]) -> dict[str, Any]:
    if file is not None:
        return _read_directory(Path(file)) if os.path.isdir(file) else _parse(_text_of(Path(file)), file)
    document = _document(env)
    if document is not None:
        return _parse(env[document], document)
    base = Path(env.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    for name in DEFAULT_FILES:
        if (base / name).is_file():
            return _parse(_text_of(base / name), str(base / name))
    return {}


def _read_directory(path: Path) -> dict[str, Any]:
    """The files of a configuration directory in name order, each laid over those before (contract 5.1)."""
    from haagent.config.dynamic import merge_patch

    data: dict[str, Any] = {}
    files = sorted(found for found in path.iterdir() if found.suffix in (".yml", ".yaml"))
    if not files:
        raise CtlError(f"configuration directory {path} has no *.yml file")
    for file in files:
        data = merge_patch(data, _parse(_text_of(file), str(file)))
    return data


def _document(env: Mapping[str, str]) -> str | None:
    """Name of the variable that holds a whole configuration; the other variables do not count then."""
    names = [f"{prefix}CONFIGURATION" for prefix in reversed(PREFIXES)]
    return next((name for name in names if env.get(name)), None)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise CtlError(f"cannot read configuration file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CtlError(f"configuration file {path} is not UTF-8 text") from None


def _parse(text: str, origin: str) -> dict[str, Any]:
    data = parse_yaml(text, origin)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CtlError(f"{origin} is not a mapping of configuration keys")
    return data


def parse_yaml(text: str, origin: str) -> Any:
    """Value of a YAML text. Raises CtlError with the place but not the content, which may be secret."""
    import yaml

    try:
        value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}" if mark else ""
        problem = re.sub(r"'.*'", "…", getattr(error, "problem", None) or "cannot be parsed")
        raise CtlError(f"{origin} is not valid YAML{place}: {problem}") from None
    except RecursionError:
        raise CtlError(f"{origin} is nested too deeply") from None
    if _too_deep(value):
        raise CtlError(f"{origin} is nested too deeply")
    return value


def _too_deep(value: Any, depth: int = 0) -> bool:
    """Also true for an alias that contains itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth > DEEPEST or any(_too_deep(one, depth + 1) for one in inner)


def _overlay_environment(data: dict[str, Any], env: Mapping[str, str]) -> None:
    for prefix in PREFIXES:
        for key in ("scope", "namespace"):
            if env.get(prefix + key.upper()):
                data[key] = env[prefix + key.upper()]
    for name in ("ctl", "restapi"):
        _overlay(data, name, _variables(env, name), login="authentication")
    for name in BACKENDS:
        found = _variables(env, name)
        # A login alone counts for nothing (contract 5.7).
        if any(key not in _LOGIN_KEYS for key in found):
            _overlay(data, name, found, login=None)


def _variables(env: Mapping[str, str], section: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for prefix in (f"{program}{section.upper()}_" for program in PREFIXES):
        found |= {k[len(prefix) :].lower(): v for k, v in env.items() if k.startswith(prefix) and v}
    return found


def _overlay(data: dict[str, Any], name: str, found: Mapping[str, str], login: str | None) -> None:
    if not found:
        return
    section = dict(_mapping(data, name))
    if login and any(key in found for key in _LOGIN_KEYS):
        section[login] = dict(_mapping(section, login))
    for key, text in found.items():
        if login and key in _LOGIN_KEYS:
            section[login][key] = text
        else:
            section[key] = text if key in _LOGIN_KEYS else _typed(key, text)
    data[name] = section


def _typed(key: str, text: str) -> Any:
    if key != "hosts":
        return text
    if text.lstrip().startswith(("'", '"')):
        text = "[" + text + "]"
    return [part.strip() for part in text.split(",")] if not text.startswith("[") else _list(key, text)


def _list(key: str, text: str) -> Any:
    return parse_yaml(text, f"variable for {key}")


def _mapping(data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CtlError(f"configuration key {key} must be a mapping")
    return value


# --- store --------------------------------------------------------------------------------------


def _store_section(data: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    present = [name for name in BACKENDS if name in data]
    usable = [name for name in present if name not in UNUSABLE]
    chosen = next(iter(usable or present), None)
    return chosen, _mapping(data, chosen) if chosen else {}


def parse_dcs_url(url: str) -> tuple[str, dict[str, Any], str | None]:
    """(backend, section, namespace or None) of `scheme://host:port/namespace`. Raises CtlError.

    `local:/path`, `local:///path?namespace=…` name the file of the embedded store. Without a scheme the
    port decides, as Patroni's tool does it: 2379 and unknown ports mean etcd, that is version 2.
    """
    require_text("the DCS URL", url)
    if url.startswith("local:"):
        return _parse_local_url(url)
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise CtlError(f"the DCS URL cannot be understood, {_url_problem(error)}") from None
    backend = parts.scheme.lower() or _backend_by_port(port)
    if backend not in DEFAULT_PORTS:
        raise CtlError(f"unknown scheme {backend} in the DCS URL, expected etcd3, consul, zookeeper or local")
    if backend in UNUSABLE:
        raise CtlError(_unusable_url(backend, host, port))
    host = host or "localhost"
    shown = f"[{host}]" if ":" in host else host
    place = "hosts" if backend == "zookeeper" else "host"
    section: dict[str, Any] = {place: f"{shown}:{port or DEFAULT_PORTS[backend]}"}
    if parts.username:
        section["username"] = unquote(parts.username)
        section["password"] = unquote(parts.password or "")
    return backend, section, parts.path.strip("/") or None


def _url_problem(error: ValueError) -> str:
    """What is wrong; never with a part of the URL in it, which may be the password."""
    port = "port" in str(error).lower()
    return "its port is not a number between 0 and 65535" if port else "its host is malformed"


def require_text(what: str, text: str) -> None:
    """Raise CtlError for bytes of the command line or the environment that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CtlError(f"{what} is not UTF-8 text") from None


def _unusable_url(backend: str, host: str | None, port: int | None) -> str:
    if backend != "etcd":
        return UNUSABLE[backend]
    return f"etcd v2 is not supported, use etcd3://{host or 'localhost'}:{port or DEFAULT_PORTS['etcd3']}"


def _backend_by_port(port: int | None) -> str:
    known = {number: name for name, number in DEFAULT_PORTS.items() if not name.endswith("3")}
    return known.get(port or 0, "etcd")


def _parse_local_url(url: str) -> tuple[str, dict[str, Any], str | None]:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/"):
        raise CtlError("a local DCS URL needs an absolute path, for example local:/var/lib/haagent/dcs.db")
    options = dict(parse_qsl(parts.query))
    namespace = options.pop("namespace", None)
    if options:
        raise CtlError(f"unknown option {sorted(options)[0]} in the local DCS URL")
    return "local", {"path": path}, namespace


# --- members ------------------------------------------------------------------------------------


def _rest_options(data: Mapping[str, Any], insecure: bool) -> RestOptions:
    ctl, restapi = _mapping(data, "ctl"), _mapping(data, "restapi")
    login = _mapping(ctl, "authentication") or _mapping(restapi, "authentication")

    def text(section: Mapping[str, Any], key: str) -> str | None:
        value = section.get(key)
        return None if value is None else str(value)

    return RestOptions(
        username=text(login, "username"),
        password=text(login, "password"),
        cacert=text(ctl, "cacert") or text(restapi, "cafile"),
        certfile=text(ctl, "certfile"),
        keyfile=text(ctl, "keyfile"),
        keyfile_password=text(ctl, "keyfile_password"),
        insecure=insecure or _flag("ctl.insecure", ctl.get("insecure", False)),
    )


def _flag(key: str, value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE | _FALSE:
        raise CtlError(f"{key} must be true or false, not {value}")
    return text in _TRUE
