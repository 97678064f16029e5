"""The simulation of the shard scheme (benchmarks/results/scaling_model_*.md) against cases worked by hand."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.shard_sim import Outcome, random_lives, random_speeds, simulate

FOREVER = iter(())
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "benchmarks/results/scaling_model_2026-11-23.md").read_text()


def test_without_failures_the_makespan_is_exact() -> None:
    assert simulate([10.0] * 4, [1, 1], [FOREVER, FOREVER], 5) == Outcome(20, 0, 0)
    assert simulate([10.0] * 5, [1, 1], [FOREVER, FOREVER], 5) == Outcome(30, 0, 0)
    # The fast rank does 0 and 1 in 5 s each, then 3 until 15; the slow one does 2 until 20.
    assert simulate([10.0] * 4, [2, 0.5], [FOREVER, FOREVER], 5) == Outcome(20, 0, 0)


def test_a_death_costs_the_shard_in_hand_and_the_restart() -> None:
    # 10 s for shard 0, dies 5 s into shard 1, back at 22, shards 1 and 2 until 42
    assert simulate([10.0] * 3, [1], [iter([15.0])], 7) == Outcome(42, 5, 1)


def test_the_others_take_over() -> None:
    # Rank 0 dies at 5 and comes back at 105; rank 1 does 2, 3, then 0 and 1.
    assert simulate([10.0] * 4, [1, 1], [iter([5.0]), FOREVER], 100) == Outcome(40, 5, 1)
    # Back at 15 it does 0 again until 25; rank 1, ready at 20, does 1 until 30.
    assert simulate([10.0] * 4, [1, 1], [iter([5.0]), FOREVER], 10) == Outcome(30, 5, 1)


def test_a_waiting_rank_takes_the_shard_of_one_that_dies() -> None:
    # Two shards, rank 1 done at 10 and idle; rank 0, ten times slower, dies at 50: rank 1 needs 10 s more.
    assert simulate([10.0] * 2, [0.1, 1], [iter([50.0]), FOREVER], 1000) == Outcome(60, 50, 1)


def test_lost_work_is_half_a_shard_a_death() -> None:
    """The textbook figure for rare deaths at a constant rate (Young 1974), here within the noise of 200 deaths."""
    lives = [random_lives(1000.0, np.random.default_rng(rank)) for rank in range(4)]
    found = simulate([50.0] * 4000, [1.0] * 4, lives, 0.0)
    assert found.deaths == pytest.approx(200, rel=0.2)
    assert found.lost / found.deaths == pytest.approx(25, rel=0.1)


def test_slow_ranks_are_as_slow_and_as_many_as_asked_for() -> None:
    speeds = np.array(random_speeds(10_000, 0.25, 4.0, np.random.default_rng(0)))
    assert (speeds < 0.5).mean() == pytest.approx(0.25, abs=0.02)
    assert np.median(speeds[speeds < 0.5]) == pytest.approx(0.25, rel=0.01)
    assert next(random_lives(float("inf"), np.random.default_rng(0)), None) is None
    assert np.mean(list(islice(random_lives(9.0, np.random.default_rng(0)), 10_000))) == pytest.approx(9.0, rel=0.05)


def test_the_page_holds_what_the_script_prints() -> None:
    assert scaling.markdown(scaling.sizes_table(scaling.RATES)) in PAGE
    rate = scaling.scenarios(scaling.RATES)["2 cores, windows apart"]
    runs = scaling.shard_runs(rate, 3600.0, 0.0, scaling.RATES, ranks=8, seed=0)
    row = scaling.shards_row("2 cores, windows apart", 3600.0, 0.0, runs)
    assert f"| {' | '.join(row)} |" in PAGE


def test_memory_is_measured() -> None:
    """In a process of its own: in one that holds freed memory, 32 MB more need not raise anything."""
    script = "import numpy, benchmarks.scaling as s; print(s.peak(lambda: numpy.ones(4_000_000).sum()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(32e6, rel=0.2)
