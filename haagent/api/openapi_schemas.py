"""What the bodies of the REST API look like, as JSON Schema for the OpenAPI document. Pure.

Closed on purpose (`additionalProperties: false` wherever we choose the fields): the test that compares every
answer of a real agent with these schemas so finds a field that nobody described.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from haagent.core.rejoin import STATES as REJOIN_STATES
from haagent.core.roles import RESTART_ROLES

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
BOOLEAN: Schema = {"type": "boolean"}
TRUE: Schema = {"const": True}
NULL: Schema = {"type": "null"}
DURATION = "^[1-9][0-9]{0,3} ?(s|min|h|d)$"
NAME: Schema = {"type": "string", "minLength": 1}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def record(properties: dict[str, Schema], optional: Collection[str] = ()) -> Schema:
    """An object with these keys and no others; all are always there but the `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def some_of(properties: dict[str, Schema]) -> Schema:
    """An object with some of these keys and no others."""
    return record(properties, properties)


#: Whatever the configuration file says.
TAGS = described({"type": "object"}, "Tags of the configuration file that are in effect")
POSITION = described(INTEGER, "Absolute byte position in the WAL")
LSN = described({"type": "string", "pattern": "^([0-9A-F]+/[0-9A-F]+|unknown)$"}, "Position, or `unknown`")
LAG = described({"anyOf": [INTEGER, {"const": "unknown"}]}, "Bytes behind the leader's last known position")
REASONS = {"type": "object", "additionalProperties": record({"old_value": TEXT, "new_value": TEXT})}
#: Text, as PostgreSQL prints it.
TIMESTAMP = described(TEXT, "As PostgreSQL prints it: `2030-01-01 10:00:00.000001+00:00`")

#: Not of format date-time: `2030-01-01 10:00 CET` is fine, too.
WHEN = described(nullable(TEXT), "When, with time zone; `now`, or nothing, for at once")

_RESTART_FILTERS: dict[str, Schema] = {
    "schedule": described(TEXT, "When, with time zone"),
    "role": {"enum": list(RESTART_ROLES)},
    "postgres_version": described(TEXT, "Only a PostgreSQL older than this"),
    "restart_pending": described({}, "Only while parameters wait for a restart, whatever the value"),
    "timeout": described({"type": ["number", "string"]}, "How long the start may take"),
}


def _xlog() -> Schema:
    primary = record({"location": POSITION})
    standby = record(
        {
            "received_location": POSITION,
            "replayed_location": POSITION,
            "replayed_timestamp": nullable(TIMESTAMP),
            "paused": BOOLEAN,
        }
    )
    return {"oneOf": [primary, standby]}


def _sender() -> Schema:
    texts = ("usename", "application_name", "client_addr", "state", "sync_state")
    return record({**{name: nullable(TEXT) for name in texts}, "sync_priority": INTEGER})


def _member_state() -> Schema:
    """`GET /patroni` and the body of every health check (contract 3.4)."""
    always = {
        "state": TEXT,
        "role": TEXT,
        "dcs_last_seen": described(INTEGER, "Unix time of the last good contact with the store"),
        "patroni": record({"version": TEXT, "scope": TEXT, "name": TEXT}),
        "haagent": _ours(),
    }
    sometimes = {
        "postmaster_start_time": TIMESTAMP,
        "server_version": described(INTEGER, "PostgreSQL's version, `170005`"),
        "xlog": _xlog(),
        "timeline": nullable(INTEGER),
        "replication_state": TEXT,
        "replication": listed(_sender()),
        "sync_standby": TRUE,
        "quorum_standby": TRUE,
        "pause": TRUE,
        "cluster_unlocked": described(TRUE, "Nobody holds the leader key, as far as this member knows"),
        "failsafe_mode_is_active": TRUE,
        "tags": TAGS,
        "database_system_identifier": TEXT,
        "pending_restart": TRUE,
        "pending_restart_reason": REASONS,
        "scheduled_restart": some_of(_RESTART_FILTERS),
        "watchdog_failed": TRUE,
        "logger_queue_size": described(INTEGER, "Log records that wait; told while there are more than 2"),
        "logger_records_lost": INTEGER,
    }
    return record({**always, **sometimes}, sometimes)


_REJOIN = record(
    {
        "state": {"enum": list(REJOIN_STATES)},
        "tries": INTEGER,
        "reason": TEXT,
        "next_try_in": {"type": "number"},
    }
)
_DISCARD = record(
    {
        "member": TEXT,
        "from_lsn": nullable(TEXT),
        "to_lsn": nullable(TEXT),
        "transactions": nullable(INTEGER),
        "how": {"enum": ["rewind", "clone", "reinitialize"]},
        "at": TIMESTAMP,
        "kept_in": nullable(TEXT),
        "kept_bytes": INTEGER,
        "segments_left_out": INTEGER,
        "note": nullable(TEXT),
    }
)


_COPY = record({"copied_bytes": INTEGER, "total_bytes": nullable(INTEGER)})


def _ours() -> Schema:
    return record(
        {
            "version": TEXT,
            "note": nullable(TEXT),
            "cannot_lead": nullable(TEXT),
            "position_is_proven": BOOLEAN,
            "copy": described(_COPY, "How far a copy into its data directory is"),
            "rejoin": described(_REJOIN, "How far it is on its way back under the leader"),
            "discarded": described(listed(_DISCARD), "WAL that was thrown away here last"),
        },
        ("position_is_proven", "copy", "rejoin", "discarded"),
    )


def _cluster() -> Schema:
    optional = {
        "api_url": TEXT,
        "host": TEXT,
        "port": INTEGER,
        "timeline": INTEGER,
        "pending_restart": TRUE,
        "pending_restart_reason": REASONS,
        "scheduled_restart": some_of({**_RESTART_FILTERS, "postmaster_start_time": TIMESTAMP}),
        "tags": TAGS,
        **{f"{kind}lag": LAG for kind in ("receive_", "replay_", "")},
        **{f"{kind}lsn": LSN for kind in ("receive_", "replay_", "")},
        "haagent": some_of({"note": TEXT, "cannot_lead": TEXT}),
    }
    roles = ["leader", "standby_leader", "sync_standby", "quorum_standby", "replica"]
    member = record({"name": TEXT, "role": {"enum": roles}, "state": TEXT, **optional}, optional)
    view = {
        "members": listed(member),
        "scope": TEXT,
        "pause": TRUE,
        "scheduled_switchover": record({"at": TEXT, "from": TEXT, "to": TEXT}, ("from", "to")),
    }
    return record(view, ("pause", "scheduled_switchover"))


def _history() -> Schema:
    row = {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 3, "maxItems": 5}
    return listed(described(row, "timeline, its last position, reason, time, new leader"))


def _explanation() -> Schema:
    passed = described(nullable(BOOLEAN), "null where nobody could tell")
    rule = record({"id": TEXT, "passed": passed, "detail": TEXT})
    fields = {
        "name": TEXT,
        "can_lead": nullable(BOOLEAN),
        "role": {"enum": ["leader", "replica", "unknown"]},
        "rules": listed(rule),
        "expected_loss_bytes": nullable(INTEGER),
        "expected_loss_text": TEXT,
    }
    return record(fields, ("expected_loss_bytes", "expected_loss_text"))


def _events() -> Schema:
    event = {"type": "object", "properties": {"time": TEXT, "message": TEXT}, "required": ["time", "message"]}
    return listed(event)


def _switchover() -> Schema:
    """Keys beside these are ignored."""
    properties = {
        "leader": NAME,
        "candidate": nullable(TEXT),
        "member": described(nullable(TEXT), "Another word for `candidate`"),
        "scheduled_at": WHEN,
    }
    return {"type": "object", "properties": properties, "required": ["leader"]}


def _failover() -> Schema:
    """Keys beside these are ignored."""
    properties = {
        "candidate": nullable(TEXT),
        "member": described(nullable(TEXT), "Another word for `candidate`"),
        "leader": described(nullable(TEXT), "Given, the request is a switchover"),
    }
    named = [{"required": [word], "properties": {word: NAME}} for word in ("candidate", "member")]
    return {"type": "object", "properties": properties, "anyOf": named}


def _restart() -> Schema:
    wishes = {
        **_RESTART_FILTERS,
        "schedule": WHEN,
        "role": {"enum": [*RESTART_ROLES, None]},
        "postgres_version": described(
            nullable({"type": "string", "pattern": "^([1-9][0-9]\\.[0-9]{1,2}|[0-9]\\.[0-9]\\.[0-9])$"}),
            "Restart only a PostgreSQL older than this, `17.5`",
        ),
        "timeout": described(
            {
                "anyOf": [
                    {"type": "number", "minimum": 1, "maximum": 1000000},
                    {"type": "string", "pattern": DURATION},
                    NULL,
                ]
            },
            "How long the start may take, instead of primary_start_timeout; seconds, or `5min`",
        ),
    }
    return some_of(wishes)


def _reinitialize() -> Schema:
    """Keys beside these are ignored."""
    properties = {
        "force": described(nullable(BOOLEAN), "End a running job first"),
        "from_leader": described(nullable(BOOLEAN), "Copy the leader, not another replica"),
    }
    return {"type": "object", "properties": properties}


def schemas() -> dict[str, Schema]:
    """Name to schema, for `components`."""
    settings = {"type": "object", "description": "The keys are in docs/configuration.md"}
    return {
        "MemberState": _member_state(),
        "Cluster": _cluster(),
        "History": _history(),
        "Config": settings,
        "ConfigChange": {**settings, "minProperties": 1},
        "Addresses": {"type": "object", "additionalProperties": TEXT},
        "Explanation": _explanation(),
        "Events": _events(),
        "Switchover": _switchover(),
        "Failover": _failover(),
        "Restart": _restart(),
        "Reinitialize": _reinitialize(),
        "MppEvent": {"type": "object", "minProperties": 1},
    }
