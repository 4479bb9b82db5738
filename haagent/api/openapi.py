"""The REST API as an OpenAPI 3.1 document: `GET /openapi.json`, and configs/openapi.json. Pure.

Here is every path with its methods, parameters and answers (contract 3); the bodies are in `openapi_schemas`.
Tests hold that the file is this text, that it names what the application routes, and that it is true.
Left out is what any request may meet before a handler is chosen, a head that is not HTTP or too long (400,
414, 431, 505), and HEAD and OPTIONS of paths that are no health checks, always 503.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from haagent import __version__
from haagent.api.openapi_schemas import Schema, ref, schemas

#: Health checks: path and what 200 says.
HEALTH_CHECKS = {
    "/": "holds the leader lease, in a cluster that is no standby cluster",
    "/primary": "as `/`",
    "/master": "as `/`",
    "/read-write": "as `/`",
    "/leader": "holds the leader lease",
    "/standby-leader": "holds the leader lease of a standby cluster",
    "/standby_leader": "as `/standby-leader`",
    "/replica": "is a running replica without the tag `noloadbalance`",
    "/read-only": "holds the leader lease, or as `/replica`",
    "/synchronous": "as `/replica`, and is a synchronous standby",
    "/sync": "as `/synchronous`",
    "/asynchronous": "as `/replica`, and is neither a synchronous nor a quorum standby",
    "/async": "as `/asynchronous`",
    "/quorum": "as `/replica`, and is a quorum standby",
    "/read-only-sync": "holds the leader lease, or as `/synchronous`",
    "/read-only-synchronous": "as `/read-only-sync`",
    "/read-only-quorum": "holds the leader lease, or as `/quorum`",
    "/health": "runs PostgreSQL, and PostgreSQL answers",
}
_ABOUT = (
    "Health checks, state and control of one member; paths, statuses and texts are Patroni's. Only the first "
    "part of a path counts. A path that is not here is answered 503 with the state of the member when it is "
    "read, and 501 otherwise. HEAD and OPTIONS of a path that is no health check are answered 503."
)
_TEXT = {"text/html": {"schema": {"type": "string"}}}


def document() -> dict[str, Any]:
    """The whole document as JSON data."""
    basic = {
        "type": "http",
        "scheme": "basic",
        "description": "If `restapi.authentication` is set",
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "haagent",
            "version": __version__,
            "summary": "REST API of a PostgreSQL high-availability agent",
            "description": _ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "tags": [{"name": name} for name in ("health", "state", "control")],
        "paths": _paths(),
        "components": {"schemas": schemas(), "securitySchemes": {"basic": basic}},
    }


def as_text() -> str:
    """The document as the file configs/openapi.json."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for part in (_health_checks(), _reading(), _operations(), _this_member(), _settings(), _from_peers()):
        for path, methods in part.items():
            paths.setdefault(path, {}).update(methods)
    return paths


def _id(method: str, path: str) -> str:
    return f"{method}{path.replace('/', '_')}"


# --- health checks --------------------------------------------------------------------------------


def _query(name: str, description: str, schema: Schema, **more: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


_LAG = _query(
    "lag",
    "Not more than so many bytes behind, or `16kB`, `10MB`, `1GB`; what cannot be read sets no limit",
    {"type": "string"},
    example="10MB",
)
_REPLICATION_STATE = _query(
    "replication_state", "How it gets its WAL", {"type": "string"}, example="streaming"
)
_TAGS = _query(
    "tags",
    "`tag_<name>=<value>`: has this tag with this value",
    {"type": "object"},
    style="form",
    explode=True,
)
_MODE = _query(
    "mode",
    "`write` measures what was received, `apply` (and anything else) what was replayed",
    {"type": "string"},
    example="write",
)
_PEER = _query("peer", "Name of the member that asks in an election: gets a fresh answer", {"type": "string"})


def _health_checks() -> dict[str, Any]:
    return {path: _health_check(path, meaning) for path, meaning in HEALTH_CHECKS.items()}


def _health_check(path: str, meaning: str) -> dict[str, Any]:
    parameters = [_LAG, _REPLICATION_STATE, _TAGS]
    if "lead" in path or path in ("/", "/primary", "/master", "/read-write"):
        parameters = []
    if path == "/health":
        parameters = [_TAGS]
    state = {"application/json": {"schema": ref("MemberState")}}
    good, bad = "This member " + meaning, "It does not, or nobody can tell"
    bare = {"200": {"description": good}, "503": {"description": bad}}
    full = {status: {**answer, "content": state} for status, answer in bare.items()}

    def operation(method: str, responses: Mapping[str, Any]) -> dict[str, Any]:
        said = {"operationId": _id(method, path), "tags": ["health"]}
        return {**said, "parameters": parameters, "responses": responses}

    return {
        "get": operation("get", full),
        "head": operation("head", bare),
        "options": operation("options", bare),
    }


# --- what can be read -----------------------------------------------------------------------------

_NO_STORE = {"503": "The store cannot be reached, or too many ask for it"}


def _json(description: str, schema: Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _texts(answers: Mapping[str, str]) -> dict[str, Any]:
    return {status: {"description": meaning, "content": _TEXT} for status, meaning in answers.items()}


_BUSY = _texts({"503": "Too many calls at the same time"})


def _get(path: str, summary: str, responses: Mapping[str, Any], *parameters: Schema) -> dict[str, Any]:
    operation = {"operationId": _id("get", path), "tags": ["state"], "summary": summary}
    return {path: {"get": {**operation, "parameters": list(parameters), "responses": responses}}}


def _reading() -> dict[str, Any]:
    probe = {"200": {"description": "Yes"}, "503": {"description": "No"}}
    page = {"200": {"description": "HTML", "content": _TEXT}}
    numbers = {"200": {"description": "Text format of Prometheus", "content": {"text/plain": {}}}}
    addresses = {"200": _json("Name to address", ref("Addresses")), **_texts({"502": "There are none"})}
    config = {
        "200": _json("The configuration", ref("Config")),
        **_texts({"502": "There is none"} | _NO_STORE),
    }
    whole = {
        "200": {"description": "OpenAPI", "content": {"application/json": {"schema": {"type": "object"}}}}
    }
    cluster = {"200": _json("All members by name", ref("Cluster")), **_texts(_NO_STORE)}
    explanation = {"200": _json("Rule by rule", ref("Explanation")), **_BUSY}
    history = {"200": _json("Oldest first", ref("History")), **_texts(_NO_STORE)}
    return {
        **_get("/liveness", "The main loop is on time", probe),
        **_get("/readiness", "Leads, or streams within the lag allowed", probe, _LAG, _MODE),
        **_get("/patroni", "State of this member", {"200": _json("Always", ref("MemberState"))}, _PEER),
        **_get("/cluster", "All members as the store has them", cluster),
        **_get("/history", "Ended timelines", history),
        **_get("/config", "Dynamic configuration", config),
        **_get("/failsafe", "Members that failsafe mode would ask", addresses),
        **_get("/metrics", "Numbers for Prometheus", numbers),
        **_get("/explain", "Could this member take over now?", explanation),
        **_get("/events", "Latest events of the agent", {"200": _json("Oldest first", ref("Events"))}),
        **_get("/dashboard", "A page that shows the cluster live", page),
        **_get("/openapi.json", "This document", whole),
    }


# --- what changes something -----------------------------------------------------------------------

_ACCESS = {
    "401": {
        "description": "`no auth header received` or `not authenticated`",
        "content": _TEXT,
        "headers": {"WWW-Authenticate": {"schema": {"const": 'Basic realm="Patroni"'}}},
    },
    **_texts({"403": "`Access is denied`, or `client certificate required`"}),
}
_NEEDED_BODY = {
    "400": "The body is no JSON object or an empty one, or a value in it is wrong",
    "408": "The body did not arrive in time",
    "411": "No Content-Length",
    "413": "The body is too large",
}
_OPTIONAL_BODY = {**_NEEDED_BODY, "400": "The body is no JSON object, or a value in it is wrong"}
_BAD_TIME = {"422": "A time in the past, or not to be understood"}
_OPERATION = {
    **_BAD_TIME,
    "200": "It is over, and by whom the cluster is led now",
    "412": "It cannot be done: who leads, or no fit candidate",
    "503": "It failed, or its end is not known",
}


def _call(
    method: str,
    path: str,
    summary: str,
    responses: Mapping[str, Any],
    body: str | None = None,
    body_needed: bool = True,
    is_guarded: bool = True,
) -> dict[str, Any]:
    access: dict[str, Any] = {"security": [{"basic": []}]} if is_guarded else {}
    operation: dict[str, Any] = {"operationId": _id(method, path), "tags": ["control"], "summary": summary}
    if body is not None:
        limits = _NEEDED_BODY if body_needed else _OPTIONAL_BODY
        responses = {**_texts(limits), **responses}
        content = {"application/json": {"schema": ref(body)}}
        operation["requestBody"] = {"required": body_needed, "content": content}
    answers = {**_BUSY, **_ACCESS, **responses} if is_guarded else responses
    return {method: {**operation, **access, "responses": dict(sorted(answers.items()))}}


def _operations() -> dict[str, Any]:
    switchover = _texts({**_OPERATION, "202": "`Switchover scheduled`"})
    deleted = _texts(
        {
            "200": "`scheduled switchover deleted`",
            "404": "`no switchover is scheduled`",
            "409": "It was changed meanwhile",
            "503": "The store cannot be reached",
        }
    )
    return {
        "/switchover": {
            **_call("post", "/switchover", "Planned change of the leader", switchover, "Switchover"),
            **_call("delete", "/switchover", "Drop the scheduled one", deleted),
        },
        "/failover": _call("post", "/failover", "Make a member the leader", _texts(_OPERATION), "Failover"),
    }


def _this_member() -> dict[str, Any]:
    restart = _texts(
        {
            **_BAD_TIME,
            "200": "`restarted successfully`",
            "202": "`Restart scheduled`",
            "409": "`Another restart is already scheduled`",
            "500": "`Can't schedule restart in the paused state`",
            "503": "It failed, or the conditions do not hold, or another job is running",
        }
    )
    deleted = _texts({"200": "`scheduled restart deleted`", "404": "`no restarts are scheduled`"})
    anew = _texts(
        {"200": "`reinitialize started`", "503": "It leads, there is no leader, or another job is running"}
    )
    return {
        "/restart": {
            **_call("post", "/restart", "Restart PostgreSQL", restart, "Restart", body_needed=False),
            **_call("delete", "/restart", "Drop the scheduled one", deleted),
        },
        "/reinitialize": _call(
            "post", "/reinitialize", "Make this replica anew", anew, "Reinitialize", body_needed=False
        ),
        "/reload": _call("post", "/reload", "Read the configuration file again", _texts({"202": "Always"})),
        "/sigterm": _call("post", "/sigterm", "Does nothing", _texts({"202": "Always"})),
    }


def _settings() -> dict[str, Any]:
    full = {"200": _json("The configuration from now on", ref("Config"))}
    patched = {**full, **_texts({"409": "It was changed meanwhile", "503": "There is none yet, or no store"})}
    put = {**full, **_texts({"502": "It could not be written", "503": "Too many large bodies"})}
    return {
        "/config": {
            **_call("patch", "/config", "Merge; null removes a key", patched, "ConfigChange"),
            **_call("put", "/config", "Replace the whole", put, "ConfigChange"),
        }
    }


def _from_peers() -> dict[str, Any]:
    heard = _texts({"200": "`OK`"})
    failsafe = _texts(
        {
            "200": "`Accepted`: this member stays out of the race for a ttl",
            "500": "`Running as a leader`, or another member is the leader",
            "502": "Failsafe mode is off",
            "503": "The promise could not be written to disk",
        }
    )
    return {
        "/failsafe": _call("post", "/failsafe", "A leader without the store asks", failsafe),
        "/mpp": _call("post", "/mpp", "A Citus worker tells: ignored", heard, "MppEvent", is_guarded=False),
        "/citus": _call("post", "/citus", "As `/mpp`", heard, "MppEvent"),
    }
