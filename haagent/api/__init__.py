"""The REST API of the agent: `RestServer` serves an `AgentPort` as section `restapi` asks for it."""

from __future__ import annotations

from dataclasses import replace

from haagent import COMPATIBLE_VERSION, __version__
from haagent.api.app import build_app
from haagent.api.config import RestConfig, RestError
from haagent.api.connection import Limits
from haagent.api.server import HttpServer
from haagent.api.tls import tls_context
from haagent.api.view import AgentPort, Answer, EventSource, Published

__all__ = [
    "AgentPort",
    "Answer",
    "EventSource",
    "Published",
    "RestConfig",
    "RestError",
    "RestServer",
    "build_app",
]


class RestServer:
    """One agent's REST API, from `start()` to `stop()`. Not for concurrent use of its own methods."""

    def __init__(self, agent: AgentPort, config: RestConfig, limits: Limits | None = None) -> None:
        """Reads certificate and key. Raises RestError."""
        self._agent = agent
        self._limits = limits or Limits()
        self._config = config
        self._http = self._build(config)

    @property
    def port(self) -> int:
        """TCP port in use."""
        return self._http.port

    def start(self) -> None:
        """Bind and serve. Raises RestError when the address cannot be used."""
        self._http.start()

    def stop(self, grace_s: float = 0.5) -> None:
        """Stop serving; running calls get `grace_s` seconds to answer."""
        self._http.stop(grace_s)

    def reload(self, config: RestConfig) -> None:
        """Take over a changed configuration and changed certificate files.

        Raises RestError and goes on as before when they cannot be used. Open connections stay unless
        the address changed.
        """
        if str(config.listen) != str(self._config.listen):
            self._move(config)
        else:
            fresh = self._build(config)
            self._http.tls, self._http.app = fresh.tls, fresh.app
            self._http.server_header = fresh.server_header
        self._config = config

    def _move(self, config: RestConfig) -> None:
        fresh = self._build(config)
        # The old one goes first: the addresses may overlap (127.0.0.1:8008 and *:8008).
        self._http.stop()
        try:
            fresh.start()
        except RestError:
            self._http.start()
            raise
        self._http = fresh

    def _build(self, config: RestConfig) -> HttpServer:
        return HttpServer(
            build_app(self._agent, config),
            config.listen.host,
            config.listen.port,
            tls=tls_context(config),
            server_header=_server_header(config.server_tokens),
            limits=replace(self._limits, backlog=max(self._limits.backlog, config.request_queue_size)),
        )


def _server_header(tokens: str) -> str:
    known = {"minimal": f"Patroni/{COMPATIBLE_VERSION}", "productonly": "Patroni"}
    return known.get(tokens.lower(), f"haagent/{__version__}")
