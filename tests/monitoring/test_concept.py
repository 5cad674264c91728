"""Concept and calibration: how sure, by segment, against what chance gives."""

from __future__ import annotations

import numpy as np
import pytest

from monitoring.concept import Outcomes, decayed, holm, miscalibrated, rises
from training.metrics import Scored

SEGMENTS = np.array(["loyal", "new", "repeat"], object)


def outcomes(rows, seed, wrong=(), threshold=0.5):
    """Scores that are true, but in the segments of `wrong`, where the opposite comes true."""
    random = np.random.default_rng(seed)
    p, segment = random.beta(2, 3, rows), SEGMENTS[random.integers(0, 3, rows)]
    y = (random.random(rows) < p).astype(np.int64)
    y = np.where(np.isin(segment, wrong), 1 - y, y)
    return Outcomes(y, Scored(p, threshold), segment)


def test_p_values_are_adjusted_as_holm_does():
    """His step-down, by hand: 4 · 0.005, 3 · 0.01, 2 · 0.03, then what may not fall."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_a_segment_whose_meaning_changed_is_named_and_no_other():
    found = rises(outcomes(3000, 1), outcomes(3000, 2, wrong=("new",)))
    bad, _ = decayed(found, classes=True)
    assert {each.feature for each in bad} == {"new", "loss"}
    assert {each.drift_type for each in bad} == {"concept_drift"}
    (named,) = (each for each in bad if each.feature == "new")
    assert "concept drift, segment new: log loss" in named
    assert "(p " in named


def test_where_nothing_changed_one_in_a_hundred_is_the_most_that_is_told():
    told = [
        any(rise.p < 0.01 for rise in rises(outcomes(600, 2 * n), outcomes(600, 2 * n + 1)))
        for n in range(150)
    ]
    assert sum(told) <= 0.01 * 150 + 3 * np.sqrt(0.01 * 150)


def test_a_sure_rise_that_is_small_is_a_word_and_one_that_fell_is_none():
    before, now = outcomes(100_000, 3), outcomes(100_000, 4)
    flipped = np.random.default_rng(5).random(100_000) < 0.02
    slightly = Outcomes(np.where(flipped, 1 - now.y, now.y), now.said, now.segment)
    bad, notes = decayed(rises(before, slightly), classes=True)
    assert bad == []
    assert any("all rows" in note for note in notes)
    assert decayed(rises(slightly, before), classes=True) == ([], [])


def test_few_rows_of_a_segment_and_rows_without_any_are_no_exception():
    few = outcomes(150, 6)
    assert [rise.segment for rise in rises(few, few)] == [None]
    alone = Outcomes(few.y, few.said)
    assert [rise.segment for rise in rises(few, alone)] == [None]
    same = Outcomes(np.ones(200), Scored(np.full(200, 3.0), None))
    assert [rise.p for rise in rises(same, same)] == [1.0]


def test_scores_that_no_longer_mean_what_they_say_are_miscalibrated():
    before, now = outcomes(3000, 7), outcomes(3000, 8)
    assert miscalibrated(before, now, 7)[1] == []
    high = Outcomes(now.y, Scored(np.clip(now.said.scores + 0.2, 0, 1), 0.5))
    ece, found = miscalibrated(before, high, 7)
    assert 0.15 < ece < 0.25
    assert [str(each).split(" (")[0] for each in found] == [f"calibration error {ece:.3f}"]


def test_few_rows_are_not_called_miscalibrated_for_being_few():
    """At 200 rows chance alone gives most of ECE's limit."""
    before = outcomes(5000, 9)
    assert not any(miscalibrated(before, outcomes(200, 100 + n), n)[1] for n in range(20))


def test_numbers_have_an_error_and_no_verdict_on_calibration():
    random = np.random.default_rng(10)
    y = random.normal(size=1000)
    before = Outcomes(y, Scored(y + random.normal(size=1000), None))
    now = Outcomes(y, Scored(y + 3 + random.normal(size=1000), None))
    (rise,) = rises(before, now)
    assert (rise.now > 8 * rise.before, rise.p < 1e-6) == (True, True)
    assert "squared error" in decayed([rise], classes=False)[0][0]
    assert miscalibrated(before, now, 1)[1] == []
