"""PSI over the reference's deciles, against figures worked out by hand and known shifts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from core.monitoring_spec import Monitoring
from monitoring.checks.drift import measure, psi

RANDOM = np.random.default_rng(5)


def test_the_same_population_scores_zero():
    values = pd.Series(RANDOM.normal(size=1000))
    assert psi(values, values) == 0.0
    assert psi(values, values.sample(frac=1.0, random_state=1)) == 0.0


def test_a_worked_example_of_two_categories():
    reference, current = (
        pd.Series(["a"] * 80 + ["b"] * 20),
        pd.Series(["a"] * 50 + ["b"] * 50),
    )
    by_hand = (0.5 - 0.8) * np.log(0.5 / 0.8) + (0.5 - 0.2) * np.log(0.5 / 0.2)
    assert psi(reference, current) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("shift", "low", "high"), [(0.1, 0, 0.05), (0.5, 0.2, 0.3), (1.0, 0.9, 1.2)]
)
def test_a_shift_of_a_normal_is_close_to_its_square(shift, low, high):
    """For a small shift of s standard deviations PSI tends to s squared."""
    reference = pd.Series(RANDOM.normal(size=50_000))
    assert low <= psi(reference, pd.Series(RANDOM.normal(shift, size=50_000))) <= high


def test_ties_are_one_bin_and_a_constant_reference_sees_a_change():
    zeros = pd.Series([0] * 90 + list(range(1, 11)))
    assert psi(zeros, zeros) == 0.0
    assert psi(pd.Series([3] * 100), pd.Series([3] * 100)) == 0.0
    assert psi(pd.Series([3] * 100), pd.Series([4] * 100)) > 1
    assert (
        psi(pd.Series([3] * 100), pd.Series([2] * 100)) == 0.0
    )  # at or below the only cut


def test_values_out_of_the_references_range_count_in_the_end_bins():
    reference = pd.Series(np.arange(1000.0))
    assert psi(reference, pd.Series([1e12] * 1000)) > 5
    assert psi(reference, pd.Series([-1e12] * 1000)) > 5


def test_a_new_category_counts_and_nulls_do_not():
    reference = pd.Series(["a", "b"] * 50)
    assert psi(reference, pd.Series(["c"] * 100)) > 5
    assert psi(reference, pd.Series(["a", "b", None] * 50)) == 0.0
    assert np.isnan(psi(reference, pd.Series([None, None], dtype=object)))


def test_the_figure_in_evidentlys_report_is_the_figure_that_decides(tmp_path):
    reference = pd.DataFrame({
        "spend": RANDOM.exponential(30, 800), "orders": RANDOM.poisson(2, 800),
        "segment": RANDOM.choice(["new", "repeat"], 800), "score": RANDOM.random(800),
    })  # fmt: skip
    current = reference.assign(spend=reference["spend"] * 1.6).head(500)
    results = measure(Monitoring(), reference, current, tmp_path)
    found = {
        each.feature: each.value for each in results if each.name.startswith("psi_")
    }
    report = pd.read_json(tmp_path / "report.json", typ="series")
    shown = {
        metric["config"]["column"]: metric["value"]
        for metric in report["metrics"]
        if metric["config"]["type"].endswith("ValueDrift")
    }
    assert shown == pytest.approx(found)
    assert found["spend"] > 0.2 > found["orders"]
    assert "<html" in (tmp_path / "report.html").read_text()[:2000].lower()


@pytest.mark.parametrize(
    ("categories", "zipf"), [(20, 0), (100, 0), (200, 1), (1000, 1)]
)
def test_many_categories_do_not_drift_by_chance_and_a_change_of_mix_is_seen(
    categories, zipf
):
    share = 1.0 / np.arange(1, categories + 1) ** zipf
    drawn = np.random.default_rng(3)

    def window(entities, share):
        return pd.Series(
            drawn.choice(categories, entities, p=share / share.sum()).astype(str)
        )

    reference = window(5000, share)
    for entities in (200, 500, 2000):
        quiet = [psi(reference, window(entities, share)) for _ in range(30)]
        assert max(quiet) < 0.25
    moved = np.where(np.arange(categories) < categories // 2, 2.0, 0.5)
    assert (
        psi(reference, window(500, share * (moved if not zipf else moved[::-1]))) > 0.1
    )


def test_a_rare_value_of_two_that_becomes_frequent_is_seen():
    before, now = pd.Series([1] * 95 + [0] * 5), pd.Series([1.0] * 60 + [0.0] * 40)
    by_hand = (0.6 - 0.95) * np.log(0.6 / 0.95) + (0.4 - 0.05) * np.log(0.4 / 0.05)
    assert psi(before, now) == pytest.approx(by_hand)
