"""explain: could each member take over now, and if not, which rule says no.

The members judge themselves by the rules of a real election (`GET /explain`); here their answers are
gathered side by side. Of a member that does not answer only what the store knows is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from haagent.ctl.session import Session, format_option, group_option, pass_session, require_sound

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot, Member

#: A member asks its peers to answer; each is given 2 s there (contract 8.2).
EXPLAIN_TIMEOUT_S = 6.0
_MARKS = {True: ("ok", "green"), False: ("NO", "red"), None: ("??", "yellow")}


@click.command("explain", short_help="Tell who could take over now, and why not.")
@click.argument("cluster_name", required=False)
@group_option
@format_option
@pass_session
def explain_command(session: Session, cluster_name: str | None, form: str) -> None:
    """Tell for each member whether it could take over now, rule by rule."""
    from haagent.ctl.output import yaml_text

    cluster = session.cluster(cluster_name)
    snapshot = cluster.sound_snapshot("leader")
    answers = gather(session, snapshot)
    report = {"scope": cluster.scope, "members": answers}
    if form == "json":
        click.echo(json.dumps(report))
    elif form in ("yaml", "yml"):
        click.echo(yaml_text(report))
    elif form == "tsv":
        click.echo(_tsv(answers))
    else:
        click.echo("\n".join(line for answer in answers for line in _for_people(answer)))
    require_sound(snapshot, ())


def gather(session: Session, snapshot: ClusterSnapshot) -> list[dict[str, Any]]:
    """One entry per member, sorted by name."""
    from haagent.ctl.members import in_parallel

    members = sorted(snapshot.members, key=lambda member: member.name)
    return in_parallel(lambda member: _ask(session, snapshot, member), members)


def _ask(session: Session, snapshot: ClusterSnapshot, member: Member) -> dict[str, Any]:
    from haagent.core.member_select import explain_answered, explain_from_store
    from haagent.ctl.members import Reply

    if not member.api_url:
        return explain_from_store(snapshot, member, "it publishes no api_url")
    outcome = session.members.request("GET", member.api_url, "/explain", None, EXPLAIN_TIMEOUT_S)
    if not isinstance(outcome, Reply):
        return explain_from_store(snapshot, member, f"it does not answer: {outcome.cause}")
    answer = outcome.json_object()
    if outcome.status == 200 and answer is not None and _is_explanation(answer):
        return explain_answered(snapshot, answer, member.name)
    cause = f"status code={outcome.status}" if member.is_haagent else "its agent is not haagent"
    return explain_from_store(snapshot, member, f"it cannot explain itself: {cause}")


def _is_explanation(answer: Mapping[str, Any]) -> bool:
    rules = answer.get("rules")
    return "can_lead" in answer and isinstance(rules, list) and all(isinstance(r, dict) for r in rules)


# --- text ---------------------------------------------------------------------------------------


def _verdict(answer: Mapping[str, Any]) -> str:
    if answer["leads"]:
        return "leads"
    texts = {True: "could take over now", False: "could not take over now"}
    return texts.get(answer["can_lead"], "unknown")


def _for_people(answer: Mapping[str, Any]) -> list[str]:
    from haagent.ctl.output import paint

    colour = "green" if answer["leads"] else _MARKS.get(answer["can_lead"], _MARKS[None])[1]
    lines = [f"{answer['name']} ({answer['role']}): {paint(_verdict(answer), colour)}"]
    for rule in answer["rules"]:
        mark, colour = _MARKS.get(rule.get("passed"), _MARKS[None])
        detail = rule.get("detail") or ""
        lines.append(f"  [{paint(mark, colour)}] {rule.get('id')}{f': {detail}' if detail else ''}")
    if not answer["leads"]:
        lines.append(f"  expected loss: {_loss(answer)}")
    return lines


def _loss(answer: Mapping[str, Any]) -> str:
    if answer.get("expected_loss_text"):
        return str(answer["expected_loss_text"])
    loss_bytes = answer.get("expected_loss_bytes")
    return "unknown" if loss_bytes is None else f"at most {loss_bytes} bytes"


def _tsv(answers: list[dict[str, Any]]) -> str:
    from haagent.ctl.output import Column, tsv

    columns = [Column(name) for name in ("Member", "Role", "Verdict", "Expected loss", "Refused by")]
    rows = [
        {
            "Member": answer["name"],
            "Role": answer["role"],
            "Verdict": _verdict(answer),
            "Expected loss": _loss(answer),
            "Refused by": ", ".join(str(r.get("id")) for r in answer["rules"] if r.get("passed") is False),
        }
        for answer in answers
    ]
    return tsv(columns, rows)
