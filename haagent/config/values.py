"""Kinds of configuration values: what is allowed, in words, and the parser that holds it.

A parser takes what YAML or an environment variable gave and returns the typed value, or raises
ValueError; the message shown to people is always `allowed`. Parsing is idempotent: a parser accepts its
own result, so that values may be looked at twice.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from haagent.core.settings import (
    SyncMode,
    is_scalar,
    parse_bool,
    parse_bytes,
    parse_duration_s,
    parse_int,
    parse_sync_mode,
)
from postgres_ctl.sync_standbys import PLACEHOLDER


@dataclass(frozen=True)
class ValueType:
    """One kind of value: `allowed` completes "must be …"."""

    allowed: str
    parse: Callable[[Any], Any]
    #: Word for the reference table.
    name: str
    #: The same as a JSON Schema, as far as that can say it: never narrower than the parser.
    json: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HostPort:
    """A host name or address with a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_wildcard(self) -> bool:
        """True when it means every address of this host, which no peer can connect to."""
        return self.host in WILDCARDS


@dataclass(frozen=True)
class Listen:
    """`postgresql.listen`: the GUCs `listen_addresses` and `port`."""

    addresses: tuple[str, ...]
    port: int

    def __str__(self) -> str:
        shown = (f"[{a}]" if ":" in a else a for a in self.addresses)
        return f"{','.join(shown)}:{self.port}"


WILDCARDS = ("*", "0.0.0.0", "::", "")  # noqa: S104 - recognised here, not bound
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def fail(condition: bool) -> None:
    if condition:
        raise ValueError


# --- addresses ----------------------------------------------------------------------------------


def parse_port(value: object) -> int:
    port = parse_int(value)
    if port is None or not 1 <= port <= 65535:
        raise ValueError
    return port


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text.split("%", 1)[0]).version == 6
    except ValueError:
        return False


def _split_port(text: str, default_port: int | None) -> tuple[str, int]:
    """`h:1`, `[::1]:1`, `::1` or `h` (with a default port) -> host part and port."""
    host, _, port = text.rpartition(":")
    if port.isdigit() and _is_host(host.rpartition(",")[2]):
        return host, parse_port(port)
    if default_port is None:
        raise ValueError
    return text, default_port


def _is_host(text: str) -> bool:
    try:
        return bool(_host(text))
    except ValueError:
        return False


def _host(text: str) -> str:
    """One host without its brackets. Raises ValueError for what can be neither name nor address."""
    text = text.strip()
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    fail(not host or any(c.isspace() or c in "[]/,@'\"" for c in host))
    fail(":" in host and not _is_ipv6(host))
    return host


def host_port(value: object, default_port: int | None = None) -> HostPort:
    """`host:port`, `[::1]:port`, `*:port`. Raises ValueError."""
    if isinstance(value, HostPort):
        return value
    if not isinstance(value, str):
        raise ValueError
    host, port = _split_port(value.strip(), default_port)
    return HostPort(_host(host), port)


def listen(value: object) -> Listen:
    """`addr[,addr…][:port]`, port 5432 when it is left out. Raises ValueError."""
    if isinstance(value, Listen):
        return value
    if not isinstance(value, str):
        raise ValueError
    hosts, port = _split_port(value.strip(), 5432)
    return Listen(tuple(_host(host) for host in hosts.split(",")), port)


def strings(value: object) -> tuple[str, ...]:
    """A list of single values, or text with commas."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not all(is_scalar(v) for v in value):
        raise ValueError
    return tuple(text(v) for v in value)


def lines(value: object) -> tuple[str, ...]:
    """A list of lines (commas are part of a line), or one text block."""
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ValueError
    return tuple(str(v) for v in value)


def endpoints(value: object) -> tuple[str, ...]:
    """`a:2379,b:2379` or a list of such -> host:port texts; the port may be missing."""
    parts = strings(value)
    fail(not parts)
    for part in parts:
        host_port(part, 2379)
    return parts


def url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    parts = urlsplit(value)
    fail(parts.scheme not in ("http", "https") or not parts.hostname)
    fail(parts.port == 0 or parts.path not in ("", "/") or any(c.isspace() for c in value))
    return value


def url_password(value: str) -> str:
    """The password in `http://user:password@host`, "" when there is none."""
    return unquote(urlsplit(value).password or "")


def without_login(value: str) -> str:
    """`http://host:port` of an URL that may carry a login."""
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


# --- scalars ------------------------------------------------------------------------------------


def text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if not isinstance(value, (str, int, float)) or "\0" in str(value):
        raise ValueError
    return str(value)


def _nonempty(value: object) -> str:
    fail(isinstance(value, bool))
    found = text(value)
    fail(not found.strip() or "\n" in found)
    return found


def _command(value: object) -> str:
    """Nothing, or what a shell would split into words."""
    fail(isinstance(value, bool))
    found = text(value)
    shlex.split(found)
    return found


def _path_word(value: object) -> str:
    """One level of a DCS path, and part of an application_name."""
    word = _nonempty(value).strip()
    fail("/" in word or not word.isprintable() or word in (".", ".."))
    return word


def _member_name(value: object) -> str:
    name = _path_word(value)
    # It stands for "nobody" in synchronous_standby_names: a member of that name would be somebody.
    fail(name.lower() == PLACEHOLDER)
    return name


def _flag(value: object) -> bool:
    found = parse_bool(value)
    if found is None:
        raise ValueError
    return found


def _sync_mode(value: object) -> SyncMode:
    mode = parse_sync_mode(value)
    if mode is None:
        raise ValueError
    return mode


def absolute_path(value: object) -> str:
    path = os.path.expanduser(_nonempty(value))
    fail(not os.path.isabs(path))
    return os.path.normpath(path)


def _readable_file(value: object) -> str:
    path = os.path.expanduser(_nonempty(value))
    fail(not os.path.isfile(path) or not os.access(path, os.R_OK))
    return path


def _octal(value: object) -> int:
    if isinstance(value, str):
        value = int(value.lower().removeprefix("0o"), 8)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 0o777:
        raise ValueError
    return value


# --- mappings -----------------------------------------------------------------------------------


def mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return {str(key): inner for key, inner in value.items()}


def scalars(value: object) -> dict[str, Any]:
    found = mapping(value)
    fail(not all(v is None or is_scalar(v) for v in found.values()))
    return found


def texts(value: object) -> dict[str, str]:
    return {key: text(inner) for key, inner in mapping(value).items()}


def options(value: object) -> tuple[str, ...]:
    """Long options of a program: a list of `option` and `{option: value}`, or a mapping.

    -> `--option`, `--option=value`. A mapping's None or '' means an option without a value.
    """
    if isinstance(value, Mapping):
        value = [{key: inner} for key, inner in value.items()]
    if not isinstance(value, (list, tuple)):
        raise ValueError
    return tuple(argument for item in value for argument in _option(item))


def _option(item: object) -> Iterable[str]:
    pairs = item.items() if isinstance(item, Mapping) else [(item, None)]
    for name, value in pairs:
        fail(not isinstance(name, str))
        word, equals, inline = str(name).removeprefix("--").partition("=")
        fail(not word or word.startswith("-") or any(c.isspace() for c in word))
        given = inline if equals else "" if value is None or value is True else text(value)
        yield f"--{word}={given}" if given else f"--{word}"


# --- the kinds ----------------------------------------------------------------------------------

_ONE: dict[str, Any] = {"type": ["string", "number", "boolean"]}
_WORD: dict[str, Any] = {"type": ["string", "number"]}
_STRING: dict[str, Any] = {"type": "string"}
_OBJECT: dict[str, Any] = {"type": "object"}
_NAMED_VALUES: dict[str, Any] = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
}


def _any_case(*words: str) -> str:
    """A pattern for `words` in capitals, small letters or both: JSON Schema has no flag for that."""
    letters = ("".join(f"[{c.upper()}{c.lower()}]" if c.isalpha() else c for c in word) for word in words)
    return f"^({'|'.join(letters)})$"


def _list_or_text(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [_STRING, {"type": "array", "items": dict(item)}]}


def _number(minimum: float, maximum: float | None = None) -> dict[str, Any]:
    limits = {"minimum": minimum} | ({} if maximum is None else {"maximum": maximum})
    return {"type": ["number", "string"], **limits}


_ON_OFF: dict[str, Any] = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "string", "pattern": _any_case("on", "off", "true", "false", "yes", "no", "1", "0")},
        {"enum": [0, 1]},
    ]
}
_LONG_OPTIONS: dict[str, Any] = {
    "anyOf": [{"type": "array", "items": {"anyOf": [_STRING, _NAMED_VALUES]}}, _NAMED_VALUES]
}

TEXT = ValueType("text", text, "text", _ONE)
WORD = ValueType("a single non-empty line", _nonempty, "text", _WORD)
COMMAND = ValueType("a command line, as a shell splits it", _command, "command", _WORD)
PATH_WORD = ValueType("one word without /", _path_word, "text", _WORD)
MEMBER_NAME = ValueType(f"one word without /, other than {PLACEHOLDER}", _member_name, "text", _WORD)
FLAG = ValueType("on or off", _flag, "on/off", _ON_OFF)
SYNC_MODE = ValueType(
    "on, off or quorum", _sync_mode, "on/off/quorum", {"anyOf": [_ON_OFF, {"enum": ["quorum"]}]}
)
HOST_PORT = ValueType("host:port, an IPv6 address in []", host_port, "host:port", _STRING)
LISTEN = ValueType("addr[,addr...]:port, an IPv6 address in []", listen, "addr[,addr…]:port", _STRING)
ENDPOINTS = ValueType("host:port, or a list of them", endpoints, "list of host:port", _list_or_text(_ONE))
PORT = ValueType(
    "a port from 1 to 65535",
    parse_port,
    "port",
    _number(1, 65535),
)
URL = ValueType("http://host:port or https://host:port", url, "URL", _STRING | {"pattern": "^https?://"})
STRINGS = ValueType("a list of single values", strings, "list", _list_or_text(_ONE))
LINES = ValueType("a list of lines", lines, "list of lines", _list_or_text(_STRING))
PATH = ValueType("an absolute path", absolute_path, "path", _STRING)
FILE = ValueType("a readable file", _readable_file, "file", _STRING)
MODE = ValueType("an octal file mode like 0644", _octal, "octal", {"type": ["integer", "string"]})
MAPPING = ValueType("a mapping", mapping, "mapping", _OBJECT)
SCALARS = ValueType("a mapping of names to single values", scalars, "mapping", _NAMED_VALUES)
TEXTS = ValueType("a mapping of names to single values", texts, "mapping", _NAMED_VALUES)
OPTIONS = ValueType("a list of `option` or `option: value`", options, "list of options", _LONG_OPTIONS)
ANY = ValueType("anything", lambda value: value, "any")


def choice(*words: str, ignore_case: bool = False) -> ValueType:
    """One of `words`; YAML's bare on and off are understood."""
    known = {word.lower() if ignore_case else word: word for word in words}

    def parse(value: object) -> str:
        if isinstance(value, bool):
            value = "on" if value else "off"
        word = str(value).lower() if ignore_case else str(value)
        fail(word not in known)
        return known[word]

    json: dict[str, Any] = {"enum": list(words)}
    if ignore_case:
        json = {"type": "string", "pattern": _any_case(*words), "examples": list(words)}
    if known.keys() & {"on", "off"}:
        json = {"anyOf": [json, {"type": "boolean"}]}
    return ValueType(f"one of {', '.join(words)}", parse, " | ".join(words), json)


def whole(minimum: int, maximum: int | None = None) -> ValueType:
    """A whole number within limits, without a unit."""

    def parse(value: object) -> int:
        number = parse_int(value)
        if number is None or number < minimum or (maximum is not None and number > maximum):
            raise ValueError
        return number

    limits = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    return ValueType(f"a whole number, {limits}", parse, "number", _number(minimum, maximum))


def size(minimum: int) -> ValueType:
    """Bytes, with or without a unit."""

    def parse(value: object) -> int:
        number = parse_bytes(value)
        if number is None or number < minimum:
            raise ValueError
        return number

    return ValueType(f"a size like 512kB, {minimum} bytes or more", parse, "size", _number(minimum))


def seconds(minimum: float) -> ValueType:
    """Seconds, with or without a unit."""

    def parse(value: object) -> float:
        number = parse_duration_s(value)
        if number is None or number < minimum:
            raise ValueError
        return number

    return ValueType(f"seconds, {minimum:g} or more", parse, "seconds", _number(minimum))
