"""What `list` and `topology` show: from the cluster view to columns, rows and footer (contract 4.3).

Pure. The view is that of `GET /cluster`; the snapshot beside it adds what only we tell: notes of members
about a long or failing recovery, and the warning while an agent leads that cannot fence itself (H21).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dcs.records import ClusterSnapshot
from haagent.core.cluster_view import UNKNOWN, cluster_view
from haagent.core.member_select import as_tree, foreign_leader, row_leads
from haagent.ctl.output import Column, Row, paint, pretty_table, render

BYTES_PER_MB = 1024 * 1024
DEFAULT_PORT = 5432
#: A longer reason would tear the pretty table apart.
LONGEST_REASON = 50
#: `from` and `to` of a scheduled switchover end here.
FOOTER_WIDTH = 24
#: Lag from which the terminal shows it in red, MB.
RED_LAG_MB = 1

_BASE = (
    Column("Member"),
    Column("Host"),
    Column("Role"),
    Column("State"),
    Column("TL", right=True),
    Column("Receive LSN", right=True),
    Column("Receive Lag", right=True, heading="Lag"),
    Column("Replay LSN", right=True),
    Column("Replay Lag", right=True, heading="Lag"),
)
#: Not a column: whether the member of this row leads, for its colour.
_LEADS = "_leads"
_EXTRA = ("Pending restart", "Pending restart reason", "Scheduled restart", "Tags")


def show_members(
    snapshot: ClusterSnapshot, scope: str, form: str = "pretty", extended: bool = False, tree: bool = False
) -> str:
    """The output of `list` (or `topology`) for one cluster, without the final line end."""
    view = cluster_view(snapshot, scope)
    rows = member_rows(view, tree)
    shown = [name for name in _EXTRA if extended or any(row.get(name) for row in rows)]
    columns = [*_BASE, *(Column(name) for name in shown)]
    if form != "pretty":
        if form != "tsv":
            _add_notes(rows, snapshot)
        return render(form, [Column("Cluster"), *columns], [_single_text(row) for row in rows])
    table = pretty_table(columns, [_for_people(row, tree) for row in rows], _title(snapshot, scope), _colour)
    return "\n".join([table, *footer(view, snapshot)])


def member_rows(view: Mapping[str, Any], tree: bool = False) -> list[dict[str, Any]]:
    """One row per member with the column titles as keys; empty cells are empty text."""
    members: Sequence[Mapping[str, Any]] = view["members"]
    placed = as_tree(members) if tree else [(0, member) for member in members]
    with_port = _needs_port(members)
    rows = []
    for depth, member in placed:
        row = _row(member, with_port)
        if depth:
            row["Member"] = f"{'  ' * (depth - 1)}+ {row['Member']}"
        rows.append({"Cluster": view["scope"], **row})
    return rows


def _row(member: Mapping[str, Any], with_port: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "Member": member["name"],
        "Host": _host(member, with_port),
        "Role": str(member["role"]).replace("_", " ").title(),
        "State": member.get("state", ""),
        "TL": member.get("timeline", ""),
        "Receive LSN": "",
        "Receive Lag": "",
        "Replay LSN": "",
        "Replay Lag": "",
        _LEADS: row_leads(member),
    }
    if not row[_LEADS]:
        row |= _positions(member)
    row["Pending restart"] = "*" if member.get("pending_restart") else ""
    row["Pending restart reason"] = _reasons(member.get("pending_restart_reason") or {})
    row["Scheduled restart"] = _scheduled_restart(member.get("scheduled_restart") or {})
    row["Tags"] = dict(member.get("tags") or {})
    return row


def _needs_port(members: Sequence[Mapping[str, Any]]) -> bool:
    hosts = [member.get("host") for member in members if member.get("host")]
    odd = any(member.get("port", DEFAULT_PORT) != DEFAULT_PORT for member in members)
    return odd or len(set(hosts)) < len(hosts)


def _host(member: Mapping[str, Any], with_port: bool) -> str:
    host = str(member.get("host") or "")
    if not host or not with_port:
        return host
    return f"[{host}]:{member['port']}" if ":" in host else f"{host}:{member['port']}"


def _positions(member: Mapping[str, Any]) -> dict[str, Any]:
    received, replayed = member.get("receive_lsn", UNKNOWN), member.get("replay_lsn", UNKNOWN)
    own = member.get("lsn", UNKNOWN)
    if received == replayed == UNKNOWN and own != UNKNOWN:
        # An old agent that publishes one position only: it is what it receives, or what it replays.
        kind, other = ("Receive", "Replay") if member.get("state") == "streaming" else ("Replay", "Receive")
        return {f"{kind} LSN": own, f"{kind} Lag": _megabytes(member.get("lag")), f"{other} LSN": UNKNOWN}
    return {
        "Receive LSN": received,
        "Receive Lag": _megabytes(member.get("receive_lag")),
        "Replay LSN": replayed,
        "Replay Lag": _megabytes(member.get("replay_lag")),
    }


def _megabytes(lag_bytes: Any) -> Any:
    return round(lag_bytes / BYTES_PER_MB) if isinstance(lag_bytes, int) else ""


def _reasons(reasons: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    return [(guc, f"{change['old_value']}->{change['new_value']}") for guc, change in reasons.items()]


def _scheduled_restart(restart: Mapping[str, Any]) -> str:
    if not restart:
        return ""
    limit = restart.get("postgres_version")
    return f"{restart.get('schedule', '')}{f' if version < {limit}' if limit else ''}"


def _single_text(row: Row) -> dict[str, Any]:
    reasons = "\n".join(f"{guc}: {change}" for guc, change in row["Pending restart reason"])
    told = {key: value for key, value in row.items() if key != _LEADS}
    return {**told, "Pending restart reason": reasons}


def _for_people(row: Row, tree: bool) -> dict[str, Any]:
    from haagent.ctl.output import flow_text, yaml_text

    reasons = [f"{guc}: {change}" for guc, change in row["Pending restart reason"]]
    short = [
        text if len(text) <= LONGEST_REASON else f"{guc}: [hidden - too long]"
        for text, (guc, _) in zip(reasons, row["Pending restart reason"], strict=True)
    ]
    shown = flow_text if tree else yaml_text  # a tree is one line for each member
    tags = shown(row["Tags"]).strip() if row["Tags"] else ""
    return {**row, "Pending restart reason": "\n".join(short), "Tags": tags}


def _title(snapshot: ClusterSnapshot, scope: str) -> str:
    identifier = snapshot.initialize
    shown = "uninitialized" if identifier is None else identifier or "initializing"
    return f" Cluster: {scope} ({shown}) "


# --- footer and notes ---------------------------------------------------------------------------


def footer(view: Mapping[str, Any], snapshot: ClusterSnapshot) -> list[str]:
    """Lines below the pretty table."""
    lines = []
    if view.get("pause"):
        lines.append(" Maintenance mode: on")
    switchover = view.get("scheduled_switchover")
    if switchover:
        lines.append(f" Switchover scheduled at: {switchover['at']}")
        for word in ("from", "to"):
            if switchover.get(word):
                lines.append(f"{word:>{FOOTER_WIDTH}}: {switchover[word]}")
    notes = _notes(snapshot)
    lines.extend(f" {name}: {note}" for name, note in sorted(notes.items()))
    return lines


def _notes(snapshot: ClusterSnapshot) -> dict[str, str]:
    notes = {member.name: member.note for member in snapshot.members if member.note}
    foreign = foreign_leader(snapshot)
    if foreign:
        warning = "led by an agent that is not haagent: it may stay writable after its lease has ended"
        notes[foreign] = "; ".join(filter(None, (notes.get(foreign), warning)))
    return notes


def _add_notes(rows: Sequence[dict[str, Any]], snapshot: ClusterSnapshot) -> None:
    notes = _notes(snapshot)
    for row in rows:
        if row["Member"] in notes:
            row["Note"] = notes[row["Member"]]


# --- colour -------------------------------------------------------------------------------------


def _colour(row: Row, column: str, text: str) -> str:
    if column == "Role":
        return paint(text, "green") if row[_LEADS] else text
    if column == "State":
        return text if row["State"] in ("running", "streaming") else paint(text, "red")
    if column in ("Receive Lag", "Replay Lag"):
        lag = row[column]
        return paint(text, "red") if isinstance(lag, int) and lag >= RED_LAG_MB else text
    if column in ("Receive LSN", "Replay LSN"):
        return paint(text, "red") if row[column] == UNKNOWN else text
    return paint(text, "yellow") if column.startswith("Pending restart") else text
