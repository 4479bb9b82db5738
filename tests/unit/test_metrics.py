"""`/metrics` against what a Patroni 4.1.5 member exposes: same names, types, labels and values."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dcs.records import ClusterSnapshot, Discard, Tags
from haagent.api.metrics import metrics_text
from haagent.api.view import Numbers, Published
from haagent.core.outlook import Outlook
from haagent.core.settings import Settings
from haagent.core.vitals import ProbeFacts, Vitals
from haagent.measures import Measures
from haagent.runtime import SystemRuntime
from postgres_ctl.facts import CopyProgress, Lsn, ProbeFault, Slot
from tests.unit.test_health import END, LEASE, NOW, PRIMARY, QUORUM, REPLICA, SYNC, member, sample

#: Name, type and value of every sample of a replica, in order (recorded from Patroni 4.1.5).
REPLICA_OF_PATRONI = """
patroni_version gauge 040105
patroni_postgres_running gauge 1
patroni_postmaster_start_time gauge 1795233570.04193
patroni_primary gauge 0
patroni_xlog_location counter 0
patroni_standby_leader gauge 0
patroni_replica gauge 1
patroni_sync_standby gauge 0
patroni_quorum_standby gauge 0
patroni_xlog_received_location counter 67108960
patroni_xlog_replayed_location counter 67108960
patroni_xlog_replayed_timestamp gauge 0
patroni_xlog_paused gauge 0
patroni_postgres_streaming gauge 1
patroni_postgres_in_archive_recovery gauge 0
patroni_postgres_server_version gauge 150020
patroni_cluster_unlocked gauge 0
patroni_failsafe_mode_is_active gauge 0
patroni_postgres_timeline gauge 1
patroni_dcs_last_seen gauge 1795233587
patroni_pending_restart gauge 0
patroni_is_paused gauge 0
patroni_postgres_state gauge 5
"""
#: The same of its primary.
PRIMARY_OF_PATRONI = """
patroni_version gauge 040105
patroni_postgres_running gauge 1
patroni_postmaster_start_time gauge 1795233567.322518
patroni_primary gauge 1
patroni_xlog_location counter 67108960
patroni_standby_leader gauge 0
patroni_replica gauge 0
patroni_sync_standby gauge 0
patroni_quorum_standby gauge 0
patroni_xlog_received_location counter 0
patroni_xlog_replayed_location counter 0
patroni_xlog_replayed_timestamp gauge 0
patroni_xlog_paused gauge 0
patroni_postgres_streaming gauge 0
patroni_postgres_in_archive_recovery gauge 0
patroni_postgres_server_version gauge 150020
patroni_cluster_unlocked gauge 0
patroni_failsafe_mode_is_active gauge 0
patroni_postgres_timeline gauge 1
patroni_dcs_last_seen gauge 1795233591
patroni_pending_restart gauge 0
patroni_is_paused gauge 0
patroni_postgres_state gauge 5
"""
STATES = (
    "# Values: 0=initdb, 1=initdb_failed, 2=custom_bootstrap, 3=custom_bootstrap_failed, 4=creating_replica, "
    "5=running, 6=starting, 7=bootstrap_starting, 8=start_failed, 9=restarting, 10=restart_failed, "
    "11=stopping, 12=stopped, 13=stop_failed, 14=crashed"
)


def page(published: Published, until: float | None = None, numbers: Numbers | None = None) -> str:
    return metrics_text(published, until, NOW, numbers or Numbers(Measures(SystemRuntime())))


def values(published: Published, until: float | None = None) -> dict[str, float]:
    lines = [line for line in page(published, until).splitlines() if not line.startswith("#")]
    return {line.partition("{")[0].partition(" ")[0]: float(line.split()[-1]) for line in lines}


def own(numbers: Numbers, published: Published = PRIMARY) -> dict[str, float]:
    """`haagent_*` of a page, without the labels that every sample has."""
    lines = [line for line in page(published, LEASE, numbers).splitlines() if line.startswith("haagent_")]
    named = (line.replace('{name="n1",scope="demo"}', "").replace('name="n1",', "") for line in lines)
    return {(words := line.rsplit(" ", 1))[0].replace(',scope="demo"', ""): float(words[1]) for line in named}


def shown_as_patroni_does(published: Published, until: float | None, expected: str) -> None:
    lines = page(published, until).splitlines()
    samples = [line for line in lines if line.startswith("patroni_")]
    types = {words[2]: words[3] for words in (line.split() for line in lines if line.startswith("# TYPE"))}
    shown = [
        f"{name} {types[name]} {line.split()[-1]}" for line in samples for name in [line.partition("{")[0]]
    ]
    wanted = expected.split("\n")[1:-1]
    assert shown[: len(wanted)] == wanted
    assert all('{scope="demo",name="n1"} ' in line for line in samples)
    assert STATES in lines


def test_a_replica_shows_what_patroni_shows() -> None:
    standby = sample(
        True,
        postmaster_start_time="2026-11-21 03:59:30.041930+00:00",
        receive_lsn=Lsn(67108960),
        replay_lsn=Lsn(67108960),
    )
    replica = member("replica", sample=standby, dcs_last_seen=1795233587)
    shown_as_patroni_does(replica, None, REPLICA_OF_PATRONI)


def test_a_primary_shows_what_patroni_shows() -> None:
    server = sample(False, postmaster_start_time="2026-11-21 03:59:27.322518+00:00", flush_lsn=Lsn(67108960))
    primary = member("primary", sample=server, dcs_last_seen=1795233591)
    shown_as_patroni_does(primary, LEASE, PRIMARY_OF_PATRONI)


def test_every_sample_has_help_and_type_before_it() -> None:
    families = list(text_string_to_metric_families(page(REPLICA)))
    assert len(families) > 30
    for family in families:
        assert family.documentation
        assert family.type in ("gauge", "counter", "histogram", "summary")


def test_a_primary_shows_its_position_and_a_demoted_one_none() -> None:
    assert values(PRIMARY, LEASE)["patroni_xlog_location"] == 100 * 1024 * 1024
    demoted = values(member("demoted"))
    assert demoted["patroni_xlog_location"] == 0
    assert demoted["patroni_primary"] == 0


def test_sync_membership_is_shown_by_mode() -> None:
    assert values(SYNC)["patroni_sync_standby"] == 1
    assert values(SYNC)["patroni_quorum_standby"] == 0
    assert values(QUORUM)["patroni_sync_standby"] == 0
    assert values(QUORUM)["patroni_quorum_standby"] == 1


def test_a_silent_server_has_no_replication_metrics() -> None:
    silent = values(member("replica", sample=None))
    assert "patroni_postgres_streaming" not in silent
    assert silent["patroni_postgres_running"] == 0
    assert silent["patroni_postgres_state"] == -1
    assert silent["patroni_postgres_server_version"] == 0


def test_flags_follow_the_published_picture() -> None:
    shown = values(
        member(
            "replica",
            settings=Settings(pause=True),
            pending_restart_reason={"max_connections": ("100", "200")},
            cluster=ClusterSnapshot(),
            tags=Tags({"nofailover": True}),
        )
    )
    assert shown["patroni_is_paused"] == 1
    assert shown["patroni_pending_restart"] == 1
    assert shown["patroni_cluster_unlocked"] == 1
    assert shown["patroni_failover_priority"] == 0


def test_how_long_the_lease_is_proven() -> None:
    assert values(PRIMARY, LEASE)["haagent_lease_left_seconds"] == 20
    assert values(PRIMARY, None)["haagent_lease_left_seconds"] == 0
    assert values(PRIMARY, NOW - 5)["haagent_lease_left_seconds"] == 0
    assert values(PRIMARY, LEASE)["haagent_sample_age_seconds"] == 1


def test_what_the_agent_counted_is_shown_with_its_labels() -> None:
    measures = Measures(SystemRuntime())
    measures.renewed("leader", "ok")
    measures.renewed("session", "unknown")
    measures.round_trip("renew", 0.004)
    measures.round_trip("renew", 60.0)
    measures.took_over("failover")
    measures.phase("election", 0.25)
    measures.fenced("guardian")
    measures.decided_at = NOW - 3
    shown = own(Numbers(measures, Outlook(("n2", "n3"), 512)), replace(PRIMARY, lost_log_records=7))
    assert shown['haagent_lease_renewals_total{lease="leader",result="ok"}'] == 1
    assert shown['haagent_lease_renewals_total{lease="session",result="unknown"}'] == 1
    assert shown['haagent_lease_renewals_total{lease="leader",result="refused"}'] == 0
    bucket = 'haagent_dcs_round_trip_seconds_bucket{le="%s",operation="renew"}'
    assert [shown[bucket % le] for le in ("0.0025", "0.005", "10.0", "+Inf")] == [0, 1, 1, 2]
    assert shown['haagent_dcs_round_trip_seconds_sum{operation="renew"}'] == pytest.approx(60.004)
    assert shown['haagent_failovers_total{kind="failover"}'] == 1
    assert shown['haagent_failover_phase_seconds_count{phase="election"}'] == 1
    assert shown['haagent_failover_phase_seconds_sum{phase="election"}'] == 0.25
    assert shown['haagent_fencings_total{by="guardian"}'] == 1
    assert shown["haagent_decision_age_seconds"] == 3
    assert shown["haagent_failover_candidates"] == 2
    assert shown["haagent_failover_expected_loss_bytes"] == 512
    assert shown["haagent_lost_log_records_total"] == 7


def test_a_standby_says_nothing_about_its_primary() -> None:
    shown = own(Numbers(Measures(SystemRuntime())))
    assert not [name for name in shown if name.startswith("haagent_failover_") and "phase" not in name]
    alone = own(Numbers(Measures(SystemRuntime()), Outlook((), None)))
    assert alone["haagent_failover_candidates"] == 0
    assert "haagent_failover_expected_loss_bytes" not in alone


def test_probes_are_shown_by_what_they_look_at() -> None:
    hangs = ProbeFacts(NOW - 2, 1.5, ProbeFault.HANGS, "why", NOW - 40, 9, 12)
    shown = own(Numbers(Measures(SystemRuntime()), None, Vitals(disk=hangs)))
    assert shown['haagent_probe_age_seconds{probe="disk"}'] == 2
    assert shown['haagent_probe_duration_seconds{probe="disk"}'] == 1.5
    assert shown['haagent_probe_failing_seconds{probe="disk"}'] == 40
    assert shown['haagent_probe_failures_total{probe="disk"}'] == 12
    assert shown['haagent_probe_failing_seconds{probe="server"}'] == 0
    assert 'haagent_probe_age_seconds{probe="server"}' not in shown


def test_odd_names_and_values_stay_parsable() -> None:
    odd = replace(
        REPLICA,
        scope='a"b\\c\nd',
        alive_until=float("inf"),
        sample=sample(True, postmaster_start_time="garbage", replay_timestamp="infinity"),
    )
    families = list(text_string_to_metric_families(page(odd)))
    patroni = [one for family in families for one in family.samples if one.name.startswith("patroni_")]
    assert {one.labels["scope"] for one in patroni} == {'a"b\\c\nd'}
    assert values(odd)["patroni_postmaster_start_time"] == 0


def test_slots_show_what_they_keep() -> None:
    idle = Slot("cdc", "logical", False, Lsn(END - 500), Lsn(END), False, "reserved", False)
    new = replace(idle, name="new", restart_lsn=None, active=True)
    text = page(replace(PRIMARY, sample=sample(False, slots=(idle, new))))
    labels = 'name="n1",scope="demo",slot="{}",type="logical"'
    assert f"haagent_slot_retained_bytes{{{labels.format('cdc')}}} 500.0" in text
    assert f"haagent_slot_active{{{labels.format('cdc')}}} 0.0" in text
    assert f"haagent_slot_active{{{labels.format('new')}}} 1.0" in text
    assert f"haagent_slot_retained_bytes{{{labels.format('new')}}}" not in text


def test_a_copy_shows_how_far_it_is() -> None:
    shown = values(replace(REPLICA, copied=CopyProgress(300, 1000)))
    assert (shown["haagent_copied_bytes"], shown["haagent_copy_total_bytes"]) == (300, 1000)
    assert "haagent_copy_total_bytes" not in values(replace(REPLICA, copied=CopyProgress(300)))
    assert "haagent_copied_bytes" not in values(REPLICA)


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text()
    told = set(re.findall(r"`((?:patroni|haagent)_[a-z_]+)`", text))
    measures = Measures(SystemRuntime())
    measures.decided_at = NOW
    gone = Discard("n1", 0, 9, None, "rewind", "2030-01-01T10:00:00+00:00")
    busy = replace(PRIMARY, discards=(gone,), copied=CopyProgress(1, 2))
    full = page(busy, LEASE, Numbers(measures, Outlook(("n2",), 1)))
    assert told == set(re.findall(r"^# TYPE ((?:patroni|haagent)_(?!process)\w+)", full, re.MULTILINE))
