"""Tables, TSV, JSON and YAML, byte for byte as contract 4.3.

Pure text: everything here takes values and returns strings; printing and the look at the terminal are at
the end. The pretty table is our own because its form is part of the contract (a title written into the
top border, rules between all rows as soon as one cell has several lines).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class Column:
    """`title` is the key in JSON, YAML and the TSV header; `heading` what the pretty table shows."""

    title: str
    right: bool = False
    heading: str | None = None


Row = Mapping[str, Any]
#: (row, column title, text already padded) -> text with colour.
Style = Callable[[Row, str, str], str]


def pretty_table(
    columns: Sequence[Column], rows: Sequence[Row], title: str = "", style: Style | None = None
) -> str:
    """The framed table. Cells are texts of one or more lines."""
    cells = [[_lines(row.get(column.title)) for column in columns] for row in rows]
    headings = [column.heading or column.title for column in columns]
    widths = [
        max([len(headings[i]), *(len(line) for row in cells for line in row[i])]) for i in range(len(columns))
    ]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    out = [_titled(rule, title), _line(columns, widths, headings), rule]
    tall = any(len(cell) > 1 for row in cells for cell in row)
    for number, row in enumerate(cells):
        if tall and number:
            out.append(rule)
        out.extend(_row_lines(columns, widths, row, rows[number], style))
    return "\n".join([*out, rule])


def _lines(value: Any) -> list[str]:
    return ("" if value is None else str(value)).split("\n")


def _titled(rule: str, title: str) -> str:
    shown = title[: len(rule) - 2]
    return rule[0] + shown + rule[1 + len(shown) :]


def _pad(column: Column, width: int, text: str) -> str:
    return text.rjust(width) if column.right else text.ljust(width)


def _line(columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str]) -> str:
    padded = (_pad(column, width, text) for column, width, text in zip(columns, widths, texts, strict=True))
    return "| " + " | ".join(padded) + " |"


def _row_lines(
    columns: Sequence[Column],
    widths: Sequence[int],
    cells: Sequence[list[str]],
    row: Row,
    style: Style | None,
) -> list[str]:
    out = []
    for number in range(max(len(cell) for cell in cells)):
        texts = []
        for column, width, cell in zip(columns, widths, cells, strict=True):
            text = _pad(column, width, cell[number] if number < len(cell) else "")
            texts.append(style(row, column.title, text) if style else text)
        out.append("| " + " | ".join(texts) + " |")
    return out


# --- machine formats ----------------------------------------------------------------------------


def render(form: str, columns: Sequence[Column], rows: Sequence[Row], keep_empty: bool = False) -> str:
    """Rows as `json`, `yaml`/`yml` or `tsv`; without the line end that printing adds.

    Empty values are left out of JSON and YAML unless `keep_empty`.
    """
    if form == "tsv":
        return tsv(columns, rows)
    filled = [
        {key: value for key, value in row.items() if keep_empty or not _is_empty(value)} for row in rows
    ]
    return json.dumps(filled) if form == "json" else yaml_text(filled)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == {}


def tsv(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Header and rows; a value of several lines is put into one, or the rows could not be told apart."""
    lines = ["\t".join(column.title for column in columns)]
    for row in rows:
        lines.append("\t".join(_flat(row.get(column.title)) for column in columns))
    return "\n".join(lines)


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return flow_text(value) if value else ""
    return ", ".join(_lines(value)).replace("\t", " ")


def flow_text(value: Any) -> str:
    """YAML on one line."""
    import yaml

    text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=10**6)
    return str(text).strip()


def yaml_text(value: Any) -> str:
    """Block style, sorted keys, ending in a line end."""
    import yaml

    return str(yaml.safe_dump(_plain(value), default_flow_style=False, allow_unicode=True, width=200))


def _plain(value: Any) -> Any:
    """Read-only mappings and tuples as what YAML knows."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


# --- terminal -----------------------------------------------------------------------------------


def coloured() -> bool:
    """True when standard output is a terminal and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """`text` in `colour` where colours are shown; blanks around it stay unpainted."""
    return click.style(text, fg=colour) if coloured() and text.strip() else text


def warn(text: str) -> None:
    """One warning line on stderr."""
    click.echo(f"Warning: {text}", err=True)


def timestamp() -> str:
    """Now in local time as contract 4.2 prefixes it: five digits below the second."""
    from datetime import datetime

    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-1]
