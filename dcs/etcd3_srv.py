"""etcd servers by DNS: SRV records of a domain (etcd's own convention for clients).

Theory. As with host names (hazard H7): only the very first look-up is waited for, later ones happen in the
background, and what was known stays when the name server is in trouble.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from dcs.api import boottime

#: Age at which the records are looked up again, in the background.
RECORDS_AGE_S = 60.0
#: One look-up with all its names may take so long, seconds.
LOOK_UP_S = 3.0
#: (part of the name, scheme), best first; the first name with records counts.
_KINDS = (("-client-ssl", "https"), ("-client", "http"), ("-ssl", "https"), ("", "http"))


class NoRecords(Exception):
    """The domain has no usable records, or the name server does not answer."""


def record_names(domain: str, suffix: str | None) -> list[tuple[str, str]]:
    """(name to look up, scheme of its servers), best first."""
    end = f"-{suffix}" if suffix else ""
    return [(f"_etcd{kind}{end}._tcp.{domain}", scheme) for kind, scheme in _KINDS]


def look_up(domain: str, suffix: str | None, limit_s: float = LOOK_UP_S) -> list[tuple[str, str, int]]:
    """(scheme, host, port) of each server in the order of its priority. Raises NoRecords."""
    import dns.exception
    import dns.resolver

    resolver, end, cause = dns.resolver.Resolver(), boottime() + limit_s, "no SRV records"
    for name, scheme in record_names(domain, suffix):
        try:
            answer = resolver.resolve(name, "SRV", lifetime=max(0.1, end - boottime()), search=False)
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            continue
        except dns.exception.DNSException as error:
            cause = " ".join(str(error).split()) or type(error).__name__
            continue
        records = sorted(answer, key=lambda r: (r.priority, -r.weight, str(r.target)))
        return [(scheme, r.target.to_text(omit_final_dot=True), r.port) for r in records]
    raise NoRecords(f"etcd3.srv: {domain}: {cause}")


class Discovery:
    """The servers of a domain, kept up to date. Thread safe."""

    def __init__(self, find: Callable[[float], Sequence[tuple[str, str, int]]]) -> None:
        """`find` gets the seconds it may take."""
        self._find = find
        self._lock = threading.Lock()
        self._known: tuple[tuple[str, str, int], ...] = ()
        self._looked_at = 0.0
        self._looking = False

    def servers(self, timeout_s: float) -> tuple[tuple[str, str, int], ...]:
        """Raises NoRecords while nothing was ever found, after `timeout_s` at the latest."""
        with self._lock:
            known, old = self._known, boottime() - self._looked_at > RECORDS_AGE_S
            begin = bool(known) and old and not self._looking
            self._looking = self._looking or begin
        if begin:
            threading.Thread(target=self._refresh, name="etcd3-srv", daemon=True).start()
        return known or self._look(min(timeout_s, LOOK_UP_S))

    def _look(self, limit_s: float) -> tuple[tuple[str, str, int], ...]:
        found = tuple(self._find(limit_s))
        with self._lock:
            self._known, self._looked_at = found, boottime()
        return found

    def _refresh(self) -> None:
        try:
            self._look(LOOK_UP_S)
        except NoRecords:
            pass  # what was known stays
        finally:
            with self._lock:
                self._looking = False
