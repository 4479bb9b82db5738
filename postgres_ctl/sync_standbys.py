"""The text of synchronous_standby_names: read as PostgreSQL reads it, written as contract 1.10 says. Pure.

""                      nobody is waited for
a                       one standby, by priority           2 (a,b)      several
ANY 1 (a,b)             so many of these, any of them (quorum)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PARAMETER = "synchronous_standby_names"
#: Stands for "nobody": commits wait for a standby that does not exist. No member may have this name.
PLACEHOLDER = "__patroni_strict_sync_replica_placeholder__"
#: Every standby, whatever its name.
ANYBODY = "*"

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_TOKEN = re.compile(
    r"\s*(?:(?P<quoted>\"(?:[^\"]|\"\")*\")|(?P<word>[^\W\d][\w$]*)|(?P<number>\d+)|(?P<sign>[*,()]))"
)


@dataclass(frozen=True)
class SyncNames:
    """A setting that is not empty: a commit waits for `number` of `names`: the first ones, or any of them."""

    names: tuple[str, ...]
    number: int
    quorum: bool = False

    @property
    def text(self) -> str:
        """As it is written into postgresql.conf: sorted, without blanks."""
        listed = ",".join(quoted(name) for name in sorted(self.names))
        if self.quorum:
            return f"ANY {self.number} ({listed})"
        return listed if self.number == 1 and len(self.names) == 1 else f"{self.number} ({listed})"

    def like(self, other: SyncNames | None) -> bool:
        """Both mean the same, in the same form; names ignore case."""
        return other is not None and (self.number, self.quorum, _folded(self.names)) == (
            other.number,
            other.quorum,
            _folded(other.names),
        )


def _folded(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def nobody(quorum: bool) -> SyncNames:
    """Commits wait: there is no standby that may acknowledge them."""
    return SyncNames((PLACEHOLDER,), 1, quorum)


def quoted(name: str) -> str:
    """A name as an entry of the list."""
    if _PLAIN.fullmatch(name) and name.lower() not in ("first", "any"):
        return name
    return '"' + name.replace('"', '""') + '"'


def parse(text: str) -> SyncNames | None:
    """The setting; None when it is empty. Raises ValueError where PostgreSQL would refuse it, too."""
    tokens = list(_tokens(text))
    if not tokens:
        return None
    quorum, number = False, 1
    if tokens[0] in (("word", "any"), ("word", "first")) and len(tokens) > 1 and tokens[1][0] == "number":
        quorum = tokens.pop(0)[1] == "any"
    if tokens[0][0] == "number" and len(tokens) > 1 and tokens[1] == ("sign", "("):
        number = int(tokens[0][1])
        if tokens[-1] != ("sign", ")") or number < 1:
            raise ValueError(f"not a value of {PARAMETER}")
        tokens = tokens[2:-1]
    elif quorum:
        raise ValueError(f"not a value of {PARAMETER}")
    return SyncNames(tuple(_list(tokens)), number, quorum)


def _list(tokens: list[tuple[str, str]]) -> Iterator[str]:
    """Names with a comma between each two."""
    for place, (kind, value) in enumerate(tokens):
        if (place % 2 == 1) != ((kind, value) == ("sign", ",")) or (kind == "sign" and value in "()"):
            raise ValueError(f"not a list of {PARAMETER}")
        if place % 2 == 0:
            yield value
    if len(tokens) % 2 == 0:
        raise ValueError(f"not a list of {PARAMETER}")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"not a value of {PARAMETER}")
        at, kind = match.end(), str(match.lastgroup)
        value = match[kind]
        if kind == "quoted":
            yield "name", value[1:-1].replace('""', '"')
        elif kind == "word" and value.lower() in ("first", "any"):
            yield kind, value.lower()
        else:
            yield kind, value
