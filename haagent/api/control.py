"""Bodies of the calls that change something, parsed and judged (contract 3.6). Pure.

Here is everything a body alone can decide: shape, types, times. What needs the cluster is the agent's
answer. A refusal is an `Answer` too.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, tzinfo
from html import escape
from typing import Any, NoReturn

from dateutil import parser as dates
from dateutil import tz

from haagent.api.view import Answer
from haagent.core.restart import RestartWish
from haagent.core.roles import RESTART_ROLES, is_restart_role, same_member
from haagent.core.settings import parse_duration_s

_RESTART_FILTERS = ("role", "postgres_version", "restart_pending", "timeout")
_NOW = "now"


#: What people write is less than ten deep; what the store's readers cannot follow must not get there.
_MAX_DEPTH = 50


class BadBody(Exception):
    """Not a JSON object, or one that could not be written down again."""


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`. Raises BadBody.

    Also for what JSON allows and its readers do not: half of a surrogate pair, 1e999, a thousand brackets.
    """
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BadBody("the body is not JSON") from error
    if not isinstance(value, dict):
        raise BadBody("the body is not a JSON object")
    _refuse_unwritable(value, _MAX_DEPTH)
    return value


def _refuse_unwritable(value: object, depth_left: int) -> None:
    if depth_left == 0:
        raise BadBody("the body is nested too deeply")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadBody("a text in the body is not Unicode") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise BadBody("a number in the body is too large")
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_unwritable(key, depth_left)
            _refuse_unwritable(inner, depth_left - 1)
    if isinstance(value, list):
        for inner in value:
            _refuse_unwritable(inner, depth_left - 1)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def switchover_request(
    body: Mapping[str, Any], is_failover: bool, paused: bool, now: datetime
) -> tuple[bool, dict[str, Any]] | Answer:
    """(is a manual failover, what is asked for), or why not.

    A failover that names the leader is a switchover. `now` with time zone.
    """
    for key in ("leader", "candidate", "member", "scheduled_at"):
        if body.get(key) is not None and not isinstance(body[key], str):
            return Answer(400, f"{key}: must be a text")
    leader, candidate = body.get("leader"), body.get("candidate") or body.get("member")
    scheduled_at = _schedule(body.get("scheduled_at"))
    if is_failover and not candidate:
        return Answer(400, "Failover could be performed only to a specific candidate")
    if not is_failover and not leader:
        return Answer(400, "Switchover could be performed only from a specific leader")
    at = _switchover_time(scheduled_at, is_failover, paused, now) if scheduled_at is not None else None
    if isinstance(at, Answer):
        return at
    if paused and not candidate:
        return Answer(400, "Switchover is possible only to a specific candidate in a paused state")
    if same_member(leader, candidate):
        return Answer(400, "Switchover target and source are the same")
    if at is not None:
        return False, _given(leader, candidate, at.isoformat())
    return is_failover and not leader, _given(leader, candidate)


def _given(leader: str | None, candidate: str | None, scheduled_at: str | None = None) -> dict[str, Any]:
    fields = {"leader": leader, "candidate": candidate, "scheduled_at": scheduled_at}
    return {key: value for key, value in fields.items() if value}


def _switchover_time(text: str, is_failover: bool, paused: bool, now: datetime) -> datetime | Answer:
    if is_failover:
        return Answer(400, "Failover can't be scheduled")
    if paused:
        return Answer(400, "Can't schedule switchover in the paused state")
    return _moment(text, "switchover", now)


def restart_request(body: Mapping[str, Any], paused: bool, now: datetime) -> RestartWish | Answer:
    """When the restart asked for is wanted, or why it cannot be."""
    for key in body:
        if key not in (*_RESTART_FILTERS, "schedule"):
            return Answer(400, f"Unknown filter for the scheduled restart: {_echo(key)}")
    role, version = body.get("role"), body.get("postgres_version")
    if role is not None and not is_restart_role(role):
        return Answer(400, f"PostgreSQL role should be either {_or(RESTART_ROLES)}")
    below = None if version is None else _version_number(version)
    if version is not None and below is None:
        return Answer(400, f"Invalid PostgreSQL version{_version_form(version)}: {_echo(version)}")
    limit = body.get("timeout")
    timeout_s = None if limit is None else parse_duration_s(limit)
    if limit is not None and (timeout_s is None or timeout_s <= 0):
        return Answer(400, "Timeout should be a positive number of seconds")
    at = _restart_time(body.get("schedule"), paused, now)
    if isinstance(at, Answer):
        return at
    wish = RestartWish(role, below, "restart_pending" in body, timeout_s)
    if at is None:
        return wish
    parsed = {"schedule": at.isoformat(), "timeout": _shorter(timeout_s)}
    shown = {key: parsed.get(key, value) for key, value in body.items() if value is not None}
    return replace(wish, due_at=at.timestamp(), shown=shown)


def _shorter(seconds: float | None) -> float | None:
    """Whole seconds as peers write them, without a point."""
    return int(seconds) if seconds is not None and seconds.is_integer() else seconds


def _restart_time(schedule: Any, paused: bool, now: datetime) -> datetime | Answer | None:
    if schedule is not None and not isinstance(schedule, str):
        return Answer(400, "schedule: must be a text")
    text = _schedule(schedule)
    if text is None:
        return None
    if paused:
        return Answer(500, "Can't schedule restart in the paused state")
    return _moment(text, "restart", now)


def _version_form(version: Any) -> str:
    return " format: X.Y or X.Y.Z is accepted" if re.fullmatch(r"[0-9.]+", str(version)) else ""


def _version_number(text: Any) -> int | None:
    """`17.5` -> 170005 and `9.6.3` -> 90603, as PostgreSQL counts itself; None for anything else."""
    parts = text.split(".") if isinstance(text, str) else []
    if not all(re.fullmatch("[0-9]{1,2}", part) for part in parts):
        return None
    numbers = [int(part) for part in parts]
    if len(numbers) in (1, 2) and numbers[0] >= 10:
        return numbers[0] * 10000 + sum(numbers[1:])
    return numbers[0] * 10000 + numbers[1] * 100 + numbers[2] if len(numbers) == 3 else None


def reinitialize_request(body: Mapping[str, Any]) -> dict[str, Any] | Answer:
    """`force` and `from_leader`, both off unless asked for, or why not."""
    asked = {}
    for key in ("force", "from_leader"):
        value = body.get(key)
        if value is not None and not isinstance(value, bool):
            return Answer(400, f"{key}: must be true or false")
        asked[key] = bool(value)
    return asked


def _or(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])}, or {words[-1]}"


def _echo(value: object) -> str:
    """What somebody sent, fit for an answer that a browser takes for HTML."""
    return escape(str(value)[:100])


def _schedule(text: str | None) -> str | None:
    """The time asked for; None for "at once"."""
    return None if text is None or text.strip().lower() in ("", _NOW) else text


def _zone(name: str | None, offset_s: int | None) -> tzinfo | None:
    """The zone somebody wrote; None for a name that says no more here than it would elsewhere."""
    if offset_s is not None:
        return tz.tzoffset(name, offset_s)
    return tz.tzlocal() if name in time.tzname else None


def _moment(text: str, action: str, now: datetime) -> datetime | Answer:
    """The point in time with its zone, or why it is none to schedule an `action` for."""
    try:
        moment = dates.parse(text, tzinfos=_zone)
        is_past = moment.tzinfo is not None and moment < now  # an offset of days is a ValueError here
    except (ValueError, OverflowError, TypeError, RecursionError):
        return Answer(
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        )
    if moment.tzinfo is None:
        return Answer(400, f"Timezone information is mandatory for the scheduled {action}")
    if is_past:
        return Answer(422, f"Cannot schedule {action} in the past")
    return moment
