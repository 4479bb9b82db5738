"""Schedules of fixed seeds keep every rule, and one seed is one trace, in whatever process.

What is open is listed in docs/safety.md: a long `make simulate` still finds schedules that break a rule.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.plan import AIMED, RARE, Plan, common_plan, draw_plan, somebody_may_lead
from tests.simulation.remote import FOLLOWS
from tests.simulation.run import UNREACHED, known_rules, run_batch, run_seed, shrink
from tests.simulation.world import World

ROOT = Path(__file__).parent.parent.parent
SEEDS = tuple(range(100))
#: So many seeds derive from the commit.
FRESH = 24
_HASH = "from tests.simulation.test_simulation import trace_hash; print(trace_hash({seed}))"


def trace_hash(seed: int) -> str:
    """Of the whole readable trace."""
    return hashlib.sha256("\n".join(run_seed(seed, traced=True).trace).encode()).hexdigest()


def state_of_the_sources() -> int:
    """A number that every commit changes; without git, that every change of the sources does."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--verify", "HEAD"]
    try:
        name = subprocess.run(git, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        folders = (ROOT / name for name in ("haagent", "dcs", "postgres_ctl", "tests/simulation"))
        digest = hashlib.sha256()
        for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
            digest.update(path.read_bytes())
        name = digest.hexdigest()
    return int(name[:12], 16)


def fresh_seeds(count: int) -> tuple[int, ...]:
    """New ones with every commit: plain plans, those that aim at the leader, and standby clusters."""
    state = state_of_the_sources()
    plain = 1000 + state % (AIMED - 2000)
    aimed, following = AIMED + state, FOLLOWS + state
    return tuple(first + i for first in (plain, aimed, following) for i in range(count // 3))


@pytest.mark.parametrize("number", range(FRESH))
def test_no_rule_is_broken_by_seeds_nobody_chose(number: int) -> None:
    seed = fresh_seeds(FRESH)[number]
    result = run_seed(seed)
    assert result.violation is None, f"make replay SEED={seed}: {result.violation}"


@pytest.mark.parametrize("seed", SEEDS)
def test_no_rule_is_broken(seed: int) -> None:
    result = run_seed(seed)
    assert result.violation is None, f"make replay SEED={seed}"
    assert result.decisions + result.faults > 20


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_a_seed_is_one_trace_in_any_process(seed: int) -> None:
    hashes = {trace_hash(seed)}
    for hash_seed in ("0", "12345"):
        program = [sys.executable, "-c", _HASH.format(seed=seed)]
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True
        )
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


def test_a_worker_begins_nothing_after_the_end() -> None:
    """The pool hands out hundreds of batches ahead: MINUTES would be hours."""
    assert run_batch(range(2), ends=0.0).schedules == 0
    assert run_batch(range(2)).schedules == 2


def test_a_plan_survives_json() -> None:
    plan = draw_plan(5)
    assert Plan.from_json(plan.to_json()) == plan


def test_somebody_may_lead_in_every_plan() -> None:
    tags: dict[str, dict[str, Any]] = {"pg0": {"nofailover": True}, "pg1": {"failover_priority": 0}}
    assert somebody_may_lead(tags) == tags | {"pg0": {}}
    fine = tags | {"pg2": {"clonefrom": True}}
    assert somebody_may_lead(fine) == fine


def test_rules_that_no_plan_reaches_exist() -> None:
    assert set(UNREACHED) <= set(known_rules())


def test_rare_things_leave_the_rest_of_a_plan_as_it_was() -> None:
    plans = [draw_plan(seed) for seed in range(40)]
    rare = [p for p in plans if any(f.kind in RARE for f in p.faults)]
    assert 5 < len(rare) < 25
    for plan in plans:
        assert set(common_plan(plan.seed).faults) <= set(plan.faults)


def test_leaving_out_faults_keeps_the_others() -> None:
    plan = draw_plan(5)
    assert plan.without({0, 2}).faults == (plan.faults[1], *plan.faults[3:])


def test_a_bug_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guardian whose deadline never comes: an invariant says so, and few faults are left."""
    from haagent.guardian_lease import Lease

    monkeypatch.setattr(Lease, "fires_at", None)
    for seed in range(200):
        result = World(draw_plan(seed)).run()
        if result.violation is not None and result.violation.name.startswith("rule1."):
            smaller = shrink(draw_plan(seed), result, 30.0)
            assert len(smaller.faults) <= 10
            return
    pytest.fail("a guardian without a fence broke no rule")
