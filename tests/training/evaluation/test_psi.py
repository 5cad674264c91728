"""PSI compared with figures by hand and known shifts."""

import numpy as np
import pandas as pd
import pytest

from training.evaluation.psi import psi


@pytest.mark.parametrize("values", [("a", "b"), (1, 0)])
def test_psi_of_two_values_equals_a_hand_computed_value(values):
    reference = pd.Series([values[0]] * 80 + [values[1]] * 20)
    current = pd.Series([values[0]] * 50 + [values[1]] * 50)
    by_hand = (0.5 - 0.8) * np.log(0.5 / 0.8) + (0.5 - 0.2) * np.log(0.5 / 0.2)
    assert psi(reference, current) == pytest.approx(by_hand)


def test_a_changed_constant_an_outlier_and_a_new_category_are_drift():
    zeros = pd.Series([0] * 90 + list(range(1, 11)))
    assert psi(zeros, zeros) == 0.0
    assert psi(pd.Series([3] * 100), pd.Series([4] * 100)) > 1
    for outlier in (1e12, -1e12):
        assert psi(pd.Series(np.arange(1000.0)), pd.Series([outlier] * 1000)) > 5
    reference = pd.Series(["a", "b"] * 50)
    assert psi(reference, pd.Series(["c"] * 100)) > 5
    assert psi(reference, pd.Series(["a", "b", None] * 50)) == 0.0  # nulls do not count
    assert np.isnan(psi(reference, pd.Series([None, None], dtype=object)))


@pytest.mark.parametrize(("categories", "zipf"), [(20, 0), (200, 1), (1000, 1)])
def test_many_categories_do_not_drift_by_chance_and_a_change_of_mix_is_found(
    categories, zipf
):
    share = 1.0 / np.arange(1, categories + 1) ** zipf
    random = np.random.default_rng(3)

    def window(entities, share):
        chosen = random.choice(categories, entities, p=share / share.sum())
        return pd.Series(chosen.astype(str))

    reference = window(5000, share)
    for entities in (200, 2000):
        distances = [psi(reference, window(entities, share)) for _ in range(10)]
        assert max(distances) < 0.25
    factor = np.where(np.arange(categories) < categories // 2, 2.0, 0.5)
    mix = share * (factor[::-1] if zipf else factor)
    assert psi(reference, window(500, mix)) > 0.1
