"""Statistics against numpy, scipy and known coverage."""

from __future__ import annotations

import random

import numpy as np
import pytest

from xdit_bench.measure.stats import median_interval, precise, quantile, steady, summarise


@pytest.mark.parametrize("n", [1, 2, 3, 7, 30])
def test_summary_agrees_with_numpy(n: int) -> None:
    samples = list(np.random.default_rng(n).exponential(size=n))
    summary = summarise(samples)
    assert summary["median"] == pytest.approx(np.median(samples))
    assert summary["p10"] == pytest.approx(np.quantile(samples, 0.1))
    assert summary["p90"] == pytest.approx(np.quantile(samples, 0.9))
    assert summary["samples"] == samples
    assert summary["ci95"][0] <= summary["median"] <= summary["ci95"][1]


def test_interval_of_up_to_five_samples_is_their_range() -> None:
    assert median_interval([3.0, 1.0, 2.0, 5.0, 4.0]) == (1.0, 5.0)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (10, 2, 9), (15, 4, 12), (20, 6, 15), (30, 10, 21)])
def test_interval_ranks_are_those_of_the_binomial_table(n: int, low: int, high: int) -> None:
    """Ranks (from 1) of the sign test's 95 % interval, as any table of it prints them."""
    assert median_interval(list(range(1, n + 1))) == (low, high)


def test_interval_covers_the_true_median_of_a_skewed_distribution() -> None:
    generator = random.Random(0)
    true_median = 0.6931471805599453  # ln 2, of the unit exponential
    hits = 0
    for _ in range(2000):
        low, high = median_interval([generator.expovariate(1.0) for _ in range(20)])
        hits += low <= true_median <= high
    assert 0.94 <= hits / 2000 <= 0.99


def test_precise_needs_both_sides_of_the_interval_close() -> None:
    assert precise([1.0, 1.002, 1.004, 1.006, 1.008], 0.01)
    assert not precise([1.0, 1.0, 1.0, 1.0, 1.5], 0.01)
    assert not precise([0.5, 1.0, 1.0, 1.0, 1.0], 0.01)
    assert not precise([1.0] * 4, 0.01), "four have no interval"


def test_steady_looks_at_the_last_two() -> None:
    assert not steady([1.0])
    assert steady([9.0, 1.0, 1.04])
    assert not steady([1.0, 1.0, 0.9])


@pytest.mark.parametrize(("change", "ends"), [(0.04, True), (-0.04, True), (0.06, False), (-0.06, False)])
def test_steady_is_within_the_five_percent_that_the_configuration_promises(change: float, ends: bool) -> None:
    assert steady([2.0, 2.0 * (1 + change)]) is ends


def test_quantile_of_one_sample_is_it() -> None:
    assert quantile([2.0], 0.9) == 2.0
