"""Which test covers which hazard beside the scenarios, and why a hazard has no scenario."""

from __future__ import annotations

HAZARDS = tuple(f"H{number}" for number in range(1, 23))

_DCS, _ETCD, _SQLITE = (f"tests/contract/test_{name}.py" for name in ("dcs", "etcd3_faults", "local"))
_FENCE, _GUARDIAN = "tests/integration/test_guardian_fence.py", "tests/integration/test_guardian_requests.py"
_SYNC = "tests/unit/test_rules_sync.py"
_QUERIES = "tests/integration/test_postgres_ctl_queries.py"

#: Hazard -> tests on the real store, kernel or server, or of pure code.
TESTS: dict[str, tuple[str, ...]] = {
    "H1": (
        f"{_DCS}::test_renewal_promises_the_ttl_from_before_it_was_sent",
        f"{_DCS}::test_renewal_is_refused_when_only_the_key_is_gone",
        f"{_ETCD}::test_a_server_cut_off_from_the_majority_is_left",
        f"{_ETCD}::test_an_answer_of_an_older_term_is_not_trusted",
    ),
    "H3": (f"{_SQLITE}::test_after_a_reboot_every_session_is_over",),
    "H4": (f"{_DCS}::test_closing_a_client_does_not_end_its_session",),
    "H5": (
        f"{_DCS}::test_renewal_is_refused_to_a_namesake",
        f"{_DCS}::test_moving_the_key_to_a_new_session_keeps_the_epoch",
        f"{_FENCE}::test_agent_restarted_within_the_lease_finds_everything",
    ),
    "H6": (
        f"{_DCS}::test_release_needs_this_very_handle",
        f"{_ETCD}::test_a_write_without_reply_is_not_sent_again",
    ),
    "H7": (
        "tests/unit/test_settings.py::test_timings_are_made_to_fit",
        "tests/unit/test_settings.py::test_timings_below_the_minimum_are_refused_in_a_local_file",
    ),
    "H8": (
        f"{_GUARDIAN}::test_writable_start_needs_an_open_armed_epoch",
        f"{_GUARDIAN}::test_promotion_that_waited_past_the_deadline_is_refused",
    ),
    "H9": (
        f"{_FENCE}::test_killed_postmaster_is_told_when_its_backends_are_dead",
        f"{_FENCE}::test_stopped_postmaster_is_fenced_with_its_backends",
        f"{_FENCE}::test_adopted_and_stopped_primary_is_fenced_with_its_backends",
        f"{_FENCE}::test_adopted_postmaster_killed_by_others_leaves_no_backend",
        "tests/integration/test_cluster_crash.py::test_what_postmaster_and_guardian_left_is_ended",
        "tests/integration/test_postgres_ctl_datadir.py::"
        "test_orphaned_backend_of_a_killed_postmaster_is_a_leftover",
    ),
    "H12": (
        "tests/chaos/test_unhealthy.py::test_load_that_takes_all_connections_and_processors_changes_nothing",
        "tests/chaos/test_unhealthy.py::test_hung_postmaster_is_restarted_in_place",
    ),
    "H13": (
        "tests/chaos/test_unhealthy.py::"
        "test_primary_on_a_hung_disk_is_replaced_although_it_cannot_be_stopped",
        "tests/chaos/test_unhealthy.py::test_nobody_hands_over_when_all_share_the_fault",
    ),
    "H10": (
        f"{_FENCE}::test_postgresql_dies_with_its_guardian",
        f"{_FENCE}::test_killed_agent_does_not_stop_the_fence",
        f"{_FENCE}::test_guardian_frozen_across_the_deadline_fences_on_resume",
        f"{_FENCE}::test_client_wakes_a_stopped_guardian",
        f"{_FENCE}::test_agent_fences_alone_when_the_guardian_is_frozen",
        f"{_GUARDIAN}::test_adoption_checks_whom_it_adopts",
        f"{_GUARDIAN}::test_newer_controller_wins",
        f"{_GUARDIAN}::test_log_collector_writes_its_last_words",
    ),
    "H16": (
        "tests/unit/test_facts.py::test_standby_position_is_proven_only_by_streaming_or_waiting",
        "tests/unit/test_candidate.py::test_each_fact_alone_stops_a_member_and_explain_says_so",
        f"{_QUERIES}::test_standby_after_restart_has_a_proven_position_only_when_it_read_all_its_wal",
    ),
    "H14": (f"{_SYNC}::test_in_strict_mode_clients_wait_until_a_standby_has_what_a_primary_began_with",),
    "H17": (
        f"{_SYNC}::test_nobody_is_named_before_a_checkpoint_has_published_the_setting_and_he_has_caught_up",
        f"{_SYNC}::test_standbys_get_ready_to_make_commits_wait_from_the_first_one_on",
    ),
    "H19": (
        "tests/integration/test_failsafe.py::test_one_member_that_does_not_answer_ends_it_before_the_lease_does",
        "tests/integration/test_failsafe.py::test_a_leader_that_alone_lost_the_store_keeps_the_others_out_of_the_race",
        "tests/unit/test_rules_failsafe.py::test_a_restart_forgets_nothing_and_a_boot_makes_it_whole_again",
        "tests/unit/test_rules_failsafe.py::test_without_a_record_one_ttl_is_waited_once",
    ),
    "H21": (
        "tests/unit/test_ctl_format.py::test_warning_while_patroni_leads_haagent_members",
        "tests/unit/test_settings.py::test_patronis_minima_hold_while_one_of_its_members_is_there",
        "tests/unit/test_candidate.py::test_a_lost_host_is_waited_for_shortly_and_a_silent_patroni_fully",
    ),
}

#: Hazard -> why the simulator has no scenario of it, or of a part of it.
REASONS: dict[str, str] = {
    "H2": "ZooKeeper is not built.",
    "H3": "Kubernetes is not built; SQLite's boot id is a matter of the real file.",
    "H4": "Consul is not built.",
    "H10": "What the kernel does (signals, timers, pipes, reaping) is tried on the real one.",
    "H11": "A paused virtual machine is covered by synchronous modes only: what a thawed host acknowledges "
    "alone is not promised (docs/safety.md).",
    "H16": "A vote that counts too little costs acknowledged writes by quorum: no script, a unit test; "
    "elsewhere a standby that has not read its WAL shows less than it has, and a loss stays within rule 5.",
    "H17": "No script: schedules with synchronous modes meet it, and catch sync-checkpoint-skipped.",
    "H21": "No Patroni in the simulator: while one leads, rule 1 is not promised (docs/safety.md).",
    "H22": "Not promised (docs/safety.md): the simulator's writers wait as told and cancel nothing.",
}
