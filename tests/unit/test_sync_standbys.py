"""synchronous_standby_names: as PostgreSQL reads it, and as contract 1.10 writes it."""

from __future__ import annotations

import pytest

from postgres_ctl.sync_standbys import SyncNames, nobody, parse


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("  ", None),
        ("a", SyncNames(("a",), 1)),
        ("a, b", SyncNames(("a", "b"), 1)),
        ("2 (a,b)", SyncNames(("a", "b"), 2)),
        ("FIRST 2 ( a , b )", SyncNames(("a", "b"), 2)),
        ("any 1 (a,b)", SyncNames(("a", "b"), 1, True)),
        ('"any"', SyncNames(("any",), 1)),
        ('1 ("pg-0","x""y")', SyncNames(("pg-0", 'x"y'), 1)),
        ("*", SyncNames(("*",), 1)),
        ("ANY 1 (*)", SyncNames(("*",), 1, True)),
        ("5", SyncNames(("5",), 1)),
    ],
)
def test_read(text: str, found: SyncNames | None) -> None:
    assert parse(text) == found


@pytest.mark.parametrize(
    "text", ["2 (a", "a b", "a,", ",", "ANY (a)", "ANY 2", "2 ()", "0 (a)", "a;b", "pg-0", "(a)"]
)
def test_what_postgresql_refuses_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="synchronous_standby_names"):
        parse(text)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (SyncNames(("a",), 1), "a"),
        (SyncNames(("b", "a"), 2), "2 (a,b)"),
        (SyncNames(("b", "a"), 1, True), "ANY 1 (a,b)"),
        (SyncNames(("a",), 1, True), "ANY 1 (a)"),
        (SyncNames(("pg-0", "First", 'x"y'), 3), '3 ("First","pg-0","x""y")'),
        (SyncNames(("1st",), 1), '"1st"'),
        (nobody(False), "__patroni_strict_sync_replica_placeholder__"),
        (nobody(True), "ANY 1 (__patroni_strict_sync_replica_placeholder__)"),
    ],
)
def test_written(names: SyncNames, text: str) -> None:
    assert names.text == text
    assert names.like(parse(text))
