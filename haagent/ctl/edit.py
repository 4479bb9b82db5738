"""edit-config: change the dynamic configuration, by options, files or an editor (contract 4.4).

Theory. The new configuration is built from the one read, shown as a diff, judged by the same function as
the agents use, and written only if nobody changed it in between. `apply_pairs` is pure.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from haagent.ctl.errors import CtlError, refused
from haagent.ctl.session import (
    DCS_DEADLINE_S,
    Cluster,
    Session,
    force_option,
    group_option,
    one_line_errors,
    pass_session,
)

if TYPE_CHECKING:
    from dcs.records import ClusterSnapshot

#: Below this path dots belong to the name of the PostgreSQL parameter.
_GUC_PATH = ("postgresql", "parameters")
#: Tried after $EDITOR and $VISUAL.
_EDITORS = ("editor", "vi")


@click.command("edit-config", short_help="Change the dynamic configuration.")
@click.argument("cluster_name", required=False)
@group_option
@click.option("-q", "--quiet", is_flag=True, help="Do not show what changes.")
@click.option("-s", "--set", "pairs", multiple=True, metavar="KEY.PATH=VALUE", help="Set one value.")
@click.option("-p", "--pg", "gucs", multiple=True, metavar="NAME=VALUE", help="Set a PostgreSQL parameter.")
@click.option("--apply", "apply_file", metavar="FILE", help="Merge this YAML file, - is standard input.")
@click.option("--replace", "replace_file", metavar="FILE", help="Replace everything by this YAML file.")
@force_option
@pass_session
def edit_config_command(
    session: Session, cluster_name: str | None, quiet: bool, pairs: tuple[str, ...], gucs: tuple[str, ...],
    apply_file: str | None, replace_file: str | None, force: bool,
) -> None:  # fmt: skip
    """Change the dynamic configuration of a cluster."""
    from haagent.ctl.selection import confirm

    cluster = session.cluster(cluster_name)
    snapshot = cluster.sound_snapshot("config")
    if snapshot.config is None:
        raise CtlError(f"The config key does not exist in the cluster {cluster.scope}")
    before = snapshot.config.data
    after = _edited(before, [*pairs, *map(_as_parameter, gucs)], apply_file, replace_file, force)
    if after == before:
        click.echo("Not changed")
        return
    if not quiet:
        _show_diff(before, after, paged=not force)
    judge(cluster, snapshot, after)
    if "-" in (apply_file, replace_file) and not force:
        click.echo("Use --force option to apply changes")
        refused()
    if force or confirm("Apply these changes?"):
        _write(cluster, after, snapshot.config.version)
        click.echo("Configuration changed")


def _edited(
    before: Mapping[str, Any],
    pairs: Sequence[str],
    apply_file: str | None,
    replace_file: str | None,
    force: bool,
) -> dict[str, Any]:
    from haagent.config.dynamic import merge_patch

    after: dict[str, Any] = copy.deepcopy(dict(before))
    if replace_file:
        after = _mapping_from(replace_file)
    if apply_file:
        after = merge_patch(after, _mapping_from(apply_file))
    if pairs:
        after = apply_pairs(after, pairs)
    if not (replace_file or apply_file or pairs):
        after = _by_editor(after, force)
    return after


# --- changes ------------------------------------------------------------------------------------


def apply_pairs(data: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """`data` with every `key.path=value` set; values are YAML, null removes the key and emptied parents.

    Raises CtlError for text that is no such pair.
    """
    from haagent.ctl.config import parse_yaml

    result = copy.deepcopy(dict(data))
    for pair in pairs:
        path_text, equals, text = pair.partition("=")
        path = _split_path(path_text.strip())
        if not equals or not all(path):
            raise CtlError(f"Invalid parameter setting {pair}")
        _set(result, path, parse_yaml(text, path_text.strip()), pair)
    return result


def _as_parameter(pair: str) -> str:
    return ".".join((*_GUC_PATH, pair.strip()))


def _split_path(text: str) -> list[str]:
    parts = text.split(".")
    depth = len(_GUC_PATH)
    if tuple(parts[:depth]) == _GUC_PATH and len(parts) > depth:
        return [*_GUC_PATH, ".".join(parts[depth:])]
    return parts


def _set(data: dict[str, Any], path: Sequence[str], value: Any, pair: str) -> None:
    key, rest = path[0], path[1:]
    if not rest:
        if value is None:
            data.pop(key, None)
        else:
            data[key] = value
        return
    inner = data.get(key)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        raise CtlError(f"Invalid parameter setting {pair}: {key} is a single value")
    _set(inner, rest, value, pair)
    if inner:
        data[key] = inner
    else:
        data.pop(key, None)


# --- files and the editor -----------------------------------------------------------------------


def _mapping_from(file: str) -> dict[str, Any]:
    if file == "-":
        return _mapping_of(sys.stdin.read(), "standard input")
    try:
        with open(file, encoding="utf-8") as stream:
            return _mapping_of(stream.read(), file)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CtlError(f"cannot read {file}: {why}") from None


def _mapping_of(text: str, origin: str) -> dict[str, Any]:
    from haagent.ctl.config import parse_yaml

    data = parse_yaml(text, origin)
    if not isinstance(data, dict):
        raise CtlError(f"{origin} is not a mapping of configuration keys")
    return data


def _by_editor(data: Mapping[str, Any], force: bool) -> dict[str, Any]:
    from haagent.ctl.output import yaml_text
    from haagent.ctl.selection import require_terminal

    if not force:
        require_terminal("use --set, --pg, --apply or --replace with --force")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:  # mode 0600
        file.write(yaml_text(data))
        file.flush()
        _run_editor(file.name)
        with open(file.name, encoding="utf-8") as edited:  # an editor may have replaced the file
            return _mapping_of(edited.read(), "the edited text")


def _run_editor(path: str) -> None:
    import shlex

    named = os.environ.get("EDITOR") or os.environ.get("VISUAL")
    command = shlex.split(named) if named else [next(filter(shutil.which, _EDITORS), "")]
    if not command or not command[0]:
        raise CtlError("no editor found, set EDITOR or use --set, --pg, --apply or --replace")
    try:
        ended = subprocess.run([*command, path], check=False)
    except OSError as error:
        raise CtlError(f"cannot start the editor {command[0]}: {error.strerror}") from None
    if ended.returncode:
        raise CtlError(f"the editor {command[0]} ended with code {ended.returncode}, nothing changed")


# --- showing, judging, writing ------------------------------------------------------------------


def diff_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Unified diff of both as YAML, with three lines of context, without line ends."""
    import difflib

    from haagent.ctl.output import yaml_text

    old, new = (yaml_text(data).splitlines() if data else [] for data in (before, after))
    return list(difflib.unified_diff(old, new, lineterm=""))


def _show_diff(before: Mapping[str, Any], after: Mapping[str, Any], paged: bool) -> None:
    """To standard output; with `paged`, what does not fit on the screen goes through $PAGER."""
    from haagent.ctl.output import paint

    lines = []
    for line in diff_text(before, after):
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        lines.append(paint(line, colour) if colour else line)
    if paged and sys.stdout.isatty() and len(lines) >= shutil.get_terminal_size().lines:
        click.echo_via_pager("\n".join(lines) + "\n")
    else:
        click.echo("\n".join(lines))


def judge(cluster: Cluster, snapshot: ClusterSnapshot, after: Mapping[str, Any]) -> None:
    """Refuse what the agents would refuse; a problem that was there before is only a warning."""
    from haagent.core.member_select import minimum_ttl_s
    from haagent.core.settings import validate_dynamic
    from haagent.ctl.output import warn

    minimum_s = minimum_ttl_s(snapshot, cluster.dcs.minimum_ttl_s)
    before = snapshot.config.data if snapshot.config else {}
    known = {str(problem) for problem in validate_dynamic(before, minimum_s)[0]}
    problems, warnings = validate_dynamic(after, minimum_s)
    texts = [str(problem) for problem in problems]
    for text in [*warnings, *(text for text in texts if text in known)]:
        warn(text)
    fresh = [text for text in texts if text not in known]
    if fresh:
        raise CtlError("; ".join(fresh))


def _write(cluster: Cluster, data: Mapping[str, Any], version: int) -> None:
    from dcs.api import Conflict, Unknown
    from dcs.codec import encode_config

    try:
        text = encode_config(data)
    except (TypeError, ValueError) as error:  # YAML knows dates, JSON does not
        raise CtlError(f"the configuration cannot be stored as JSON: {error}") from None
    with one_line_errors():
        written = cluster.dcs.compare_and_set("config", text, version, DCS_DEADLINE_S)
    if isinstance(written, Conflict):
        raise CtlError("Config modification aborted due to concurrent changes")
    if isinstance(written, Unknown):
        raise CtlError(f"it is unknown whether the DCS took the change: {written.cause}")
