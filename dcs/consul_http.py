"""How Consul is talked to: one agent's HTTP API, each call within a deadline.

The library (py-consul) gives connections, TLS, the token's header and the rest of the HTTP; what an answer
means is decided here and in `dcs.consul`, because "refused" and "unknown" must stay different things. Its
timeouts count from byte to byte, so each call runs on a spare thread whose caller leaves at the deadline.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import consul
import requests

from dcs.bounded import BoundedCalls, TimedOut
from dcs.codec import printable
from dcs.consul_options import ConsulOptions
from dcs.errors import DcsError, DcsLoginRefused, DcsUnavailable

#: A connection that has been silent for so long is given up, whoever still waits for it, seconds.
SILENCE_S = 8.0


@dataclass(frozen=True)
class Answer:
    """Status, X-Consul-Index and body of an answer; `data` is None where the body is no JSON."""

    code: int
    index: int
    data: Any
    text: str


class ConsulHttp:
    """Calls to one Consul agent. Thread safe."""

    def __init__(self, options: ConsulOptions) -> None:
        self._client = consul.Consul(
            host=f"[{options.host}]" if ":" in options.host else options.host,
            port=options.port,
            token=options.token,
            scheme=options.scheme,
            dc=options.dc,
            verify=options.verify,
            cert=options.cert,
            connections_timeout=SILENCE_S,
        )
        # A proxy of the environment is for the web, not for the store beside us.
        self._client.http.session.trust_env = False
        self._dc = [("dc", options.dc)] if options.dc else []
        self._calls = BoundedCalls("consul")

    def close(self) -> None:
        self._calls.close()

    def get(self, path: str, params: Mapping[str, object], deadline_s: float) -> Answer:
        """Raises DcsUnavailable, DcsLoginRefused."""
        return self._bounded("get", path, params, None, deadline_s)

    def put(self, path: str, params: Mapping[str, object], body: object, deadline_s: float) -> Answer:
        """`body` as JSON. Raises DcsUnavailable (whether it was done is not known), DcsLoginRefused."""
        return self._bounded("put", path, params, json.dumps(body), deadline_s)

    def _bounded(
        self, verb: str, path: str, params: Mapping[str, object], data: str | None, deadline_s: float
    ) -> Answer:
        try:
            return self._calls.run(lambda: self._send(verb, path, params, data), deadline_s)
        except TimedOut:
            raise DcsUnavailable(f"consul: no answer within {deadline_s:.1f} s") from None

    def _send(self, verb: str, path: str, params: Mapping[str, object], data: str | None) -> Answer:
        http = self._client.http
        query = [*params.items(), *self._dc]
        headers = self._client.prepare_headers(None)
        try:
            if verb == "get":
                answer = http.get(_read, path, query, headers)
            else:
                answer = http.put(_read, path, query, data or "", headers)
        except (requests.RequestException, consul.ConsulException, OSError, ValueError) as error:
            raise DcsUnavailable(f"consul: {_cause(error)}") from None
        return _judged(answer)


def _read(response: Any) -> Answer:
    try:
        index = int(response.headers.get("X-Consul-Index") or 0)
    except ValueError:
        index = 0
    try:
        data = json.loads(response.body)
    except ValueError:
        data = None
    return Answer(int(response.code), index, data, printable(str(response.body), 200))


def _judged(answer: Answer) -> Answer:
    """Raises where the server could not, or would not, deal with the request at all."""
    if answer.code in (401, 403):
        raise DcsLoginRefused(f"consul: {answer.text or answer.code}")
    if answer.code >= 500 or answer.code == 429:
        raise DcsUnavailable(f"consul: {answer.code} {answer.text}")
    return answer


def _cause(error: Exception) -> str:
    """One line without addresses of objects, as urllib3 puts them into its messages."""
    if isinstance(error, DcsError):
        return str(error)
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed: " + printable(str(error).rpartition("(")[2].strip(")'"), 120)
    if isinstance(error, requests.ConnectionError):
        return "cannot be reached, or closed the connection"
    return printable(f"{type(error).__name__}: {error}", 120)
