"""The REST application: paths to handlers (contract section 3).

Theory. A handler turns a request into one call of `AgentPort` or one pure function, and its result into
an answer; it knows no rule of the cluster. The first component of a path selects the handler; what no
handler takes is a health check for GET, and 501 for the rest. HEAD and OPTIONS are health checks only.
Every call that changes something passes `access` before its body is read. What waits, waits `aside`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from dcs.api import boottime
from dcs.errors import DcsError
from haagent.api import access, control, dashboard, openapi
from haagent.api.body import SMALL_BODY_BYTES, BodyReader
from haagent.api.config import RestConfig
from haagent.api.gate import Gate, Refused
from haagent.api.health import bare_status, health_status, liveness_status, readiness_status
from haagent.api.metrics import CONTENT_TYPE, metrics_text
from haagent.api.status import history_json, patroni_json
from haagent.api.turn import aside
from haagent.api.view import AgentPort, Answer, EventSource
from haagent.core.cluster_view import cluster_view

log = logging.getLogger("haagent.api")

#: A peer waits 2 s for `/patroni` (contract 2.4); a fresh sample has to fit well into that.
PEER_REFRESH_S = 1.0
#: Peers that may have a fresh sample taken at the same time; more are answered from the last one.
MAX_REFRESHES = 8
#: Reads of the store for clients at the same time; how many more wait for a place, and how long, seconds.
MAX_STORE_READS, MAX_STORE_READERS_WAITING, STORE_READ_PATIENCE_S = 4, 60, 2.0
#: Calls that change something, at the same time.
MAX_OPERATIONS = 32
#: Host names of the allowlist that are looked up at the same time.
MAX_LOOK_UPS = 8

Handler = Callable[[], Response]
P = ParamSpec("P")
T = TypeVar("T")


def build_app(port: AgentPort, config: RestConfig) -> Flask:
    """The application for one agent under one configuration; a reload builds a new one."""
    app = Flask("haagent.api", static_folder=None)
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    reading, changing = _Reading(port), _Changing(port, config)
    for name, read in reading.handlers().items():
        _route(app, "GET", f"/{name}", read)
    for (method, name), change in changing.handlers().items():
        _route(app, method, f"/{name}", change)
    _route(app, "GET", "", reading.health)
    _install_hooks(app, port, config, reading.health)
    return app


def _route(app: Flask, method: str, path: str, handler: Handler) -> None:
    """`handler` answers `path` and everything below it."""

    def view(rest: str = "") -> Response:
        return handler()

    for rule in (path or "/", f"{path}/<path:rest>"):
        # HEAD and OPTIONS never get here, `_install_hooks` answers them.
        app.add_url_rule(rule, f"{method} {path}", view, methods=[method], provide_automatic_options=False)


def _install_hooks(app: Flask, port: AgentPort, config: RestConfig, health: Handler) -> None:
    def bare() -> Response | None:
        """HEAD and OPTIONS: the status line of the health check, whatever else the path can do."""
        if request.method not in ("HEAD", "OPTIONS"):
            return None
        status = bare_status(request.path, _query(), port.published(), port.leader_until(), boottime())
        return _empty(status)

    def extra_headers(response: Response) -> Response:
        for name, value in config.http_extra_headers.items():
            response.headers[name] = value
        if request.scheme == "https":
            for name, value in config.https_extra_headers.items():
                response.headers[name] = value
        return response

    def on_error(error: Exception) -> Response:
        if isinstance(error, Refused):
            return _text(error.status, error.text)
        if isinstance(error, DcsError):
            return _text(503, "DCS is not accessible")
        if isinstance(error, HTTPException) and error.code in (404, 405):
            return health() if request.method == "GET" else _text(501, "Unsupported method")
        if isinstance(error, HTTPException):
            return _text(error.code or 500, error.name)
        log.error("%s %s failed", request.method, request.path[:200], exc_info=error)
        return _text(500, "internal error")

    app.before_request(bare)
    app.after_request(extra_headers)
    app.register_error_handler(Exception, on_error)


class _Reading:
    """Calls that change nothing."""

    def __init__(self, port: AgentPort) -> None:
        self._port = port
        self._refreshes = threading.BoundedSemaphore(MAX_REFRESHES)
        self._store = Gate(
            "reads of the store", MAX_STORE_READS, MAX_STORE_READERS_WAITING, STORE_READ_PATIENCE_S
        )
        self._dashboard_html = dashboard.page()
        self._openapi = openapi.as_text()

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "patroni": self.patroni,
            "cluster": self.cluster,
            "history": self.history,
            "config": self.config,
            "metrics": self.metrics,
            "failsafe": self.failsafe,
            "liveness": self.liveness,
            "readiness": self.readiness,
            "explain": lambda: _json(200, self._from_store(self._port.explain)),
            "events": self.events,
            "dashboard": self.dashboard,
            "openapi.json": lambda: Response(self._openapi, 200, content_type="application/json"),
        }

    def health(self) -> Response:
        published = self._port.published()
        status = health_status(request.path, _query(), published, self._port.leader_until(), boottime())
        return _json(status, patroni_json(published))

    def patroni(self) -> Response:
        published = self._port.published()
        if request.args.get("peer") and self._refreshes.acquire(blocking=False):
            try:
                with aside():
                    published = self._port.refresh(PEER_REFRESH_S)
            finally:
                self._refreshes.release()
        return _json(200, patroni_json(published))

    def _from_store(self, read: Callable[[], T]) -> T:
        """What `read` reads. A crowd of clients must not become one at the store. Raises Refused."""
        with self._store.passed():
            return read()

    def cluster(self) -> Response:
        cluster = self._from_store(self._port.read_cluster)
        return _json(200, cluster_view(cluster, self._port.published().scope))

    def history(self) -> Response:
        cluster = self._port.published().cluster or self._from_store(self._port.read_cluster)
        return _json(200, history_json(cluster.history))

    def config(self) -> Response:
        record = self._from_store(self._port.read_cluster).config
        if record is None:
            return _text(502, "the config key does not exist")
        return _json(200, record.data)

    def metrics(self) -> Response:
        port = self._port
        text = metrics_text(port.published(), port.leader_until(), boottime(), port.numbers())
        return Response(text, 200, content_type=CONTENT_TYPE)

    def failsafe(self) -> Response:
        cluster = self._port.published().cluster
        if cluster is None or not cluster.failsafe:
            return _text(502, "failsafe mode is not enabled")
        return _json(200, cluster.failsafe)

    def liveness(self) -> Response:
        return _empty(liveness_status(self._port.published(), boottime()))

    def readiness(self) -> Response:
        published, until = self._port.published(), self._port.leader_until()
        return _empty(readiness_status(_query(), published, until, boottime()))

    def events(self) -> Response:
        events = self._port.events() if isinstance(self._port, EventSource) else []
        return _json(200, events)

    def dashboard(self) -> Response:
        headers = {"Content-Security-Policy": dashboard.POLICY}
        return Response(self._dashboard_html, 200, headers, content_type="text/html; charset=utf-8")


class _Changing:
    """Calls that change something: access first, then the body, then the agent."""

    def __init__(self, port: AgentPort, config: RestConfig) -> None:
        self._port = port
        self._config = config
        self._bodies = BodyReader()
        self._operations = Gate("operations", MAX_OPERATIONS)
        self._look_ups = Gate("look-ups of host names", MAX_LOOK_UPS)

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        checked: dict[tuple[str, str], Handler] = {
            ("POST", "switchover"): lambda: self.switchover(is_failover=False),
            ("POST", "failover"): lambda: self.switchover(is_failover=True),
            ("POST", "restart"): self.restart,
            ("POST", "reinitialize"): self.reinitialize,
            ("POST", "reload"): lambda: self._done(self._port.reload),
            ("PATCH", "config"): lambda: self._done(self._port.patch_config, self._bodies.needed()),
            ("PUT", "config"): lambda: self._done(self._port.put_config, self._bodies.needed()),
            ("DELETE", "switchover"): lambda: self._done(self._port.delete_switchover),
            ("DELETE", "restart"): lambda: self._done(self._port.delete_restart),
            ("POST", "failsafe"): self.failsafe,
            ("POST", "citus"): self.mpp,
            # The contract's answer; it acts on Windows only.
            ("POST", "sigterm"): lambda: _text(202, "shutdown scheduled"),
        }
        guarded = {key: self._guarded(handler, key[1]) for key, handler in checked.items()}
        # The one unsafe call that anybody may make (contract 3.2): it does nothing here.
        return guarded | {("POST", "mpp"): self.mpp}

    def _guarded(self, handler: Handler, name: str) -> Handler:
        def guarded() -> Response:
            caller = access.Caller(
                address=request.remote_addr or "",
                is_https=request.scheme == "https",
                has_certificate=bool(request.environ.get("haagent.client_certificate")),
                authorization=request.headers.get("Authorization"),
            )
            members_count = name != "failsafe"
            refusal = access.refusal(
                self._config, self._port.published(), caller, members_count, self._resolve
            )
            if refusal is None:
                return handler()
            response = _text(refusal.status, refusal.text)
            if refusal.status == 401:
                response.headers["WWW-Authenticate"] = access.CHALLENGE
            return response

        return guarded

    def _resolve(self, name: str) -> set[access.IpAddress]:
        with self._look_ups.passed():
            return access.resolve(name)

    def _done(self, call: Callable[P, Answer], *wish: P.args, **more: P.kwargs) -> Response:
        """The answer of a call that may take long."""
        with self._operations.passed():
            answer = call(*wish, **more)
        return _answer(answer)

    def switchover(self, is_failover: bool) -> Response:
        body = self._bodies.needed()
        asked = control.switchover_request(body, is_failover, self._paused(), datetime.now(UTC))
        if isinstance(asked, Answer):
            return _answer(asked)
        is_manual_failover, wish = asked
        return self._done(self._port.failover if is_manual_failover else self._port.switchover, wish)

    def restart(self) -> Response:
        asked = control.restart_request(self._bodies.optional(), self._paused(), datetime.now(UTC))
        return _answer(asked) if isinstance(asked, Answer) else self._done(self._port.restart, asked)

    def reinitialize(self) -> Response:
        asked = control.reinitialize_request(self._bodies.optional())
        return _answer(asked) if isinstance(asked, Answer) else self._done(self._port.reinitialize, asked)

    def failsafe(self) -> Response:
        if not self._port.published().settings.failsafe_mode:
            return _text(502, "failsafe mode is not enabled")
        return self._done(self._port.failsafe, self._bodies.needed())

    def mpp(self) -> Response:
        """A Citus worker tells its coordinator what it is about to do; no member of ours is one."""
        self._bodies.needed(SMALL_BODY_BYTES)
        return _text(200, "OK")

    def _paused(self) -> bool:
        return self._port.published().settings.pause


def _query() -> str:
    return request.query_string.decode("latin-1")


def _answer(answer: Answer) -> Response:
    plain = isinstance(answer.body, str)
    response = _text(answer.status, answer.body) if plain else _json(answer.status, answer.body)  # type: ignore[arg-type]
    for name, value in answer.headers.items():
        response.headers[name] = value
    return response


def _json(status: int, body: Mapping[str, Any] | list[Any]) -> Response:
    return Response(json.dumps(body, default=_plain), status, content_type="application/json")


def _plain(value: Any) -> Any:
    """Read-only mappings and other values our records are made of, as JSON."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _text(status: int, text: str) -> Response:
    return Response(text, status, content_type="text/html")


def _empty(status: int) -> Response:
    response = Response(b"", status)
    del response.headers["Content-Type"]
    return response
