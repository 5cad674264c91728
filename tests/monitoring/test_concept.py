"""Concept and calibration: how sure, by segment, against what chance gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_ind

from core.monitoring_spec import Monitoring
from monitoring.checks.concept import Outcomes, judge_calibration, judge_rises, rises
from training.metrics import Scored, losses

LIMITS = Monitoring()
SEGMENTS = np.array(["loyal", "new", "repeat"], object)


def outcomes(rows, seed, wrong=(), threshold=0.5):
    """Scores that are true, but in the segments of `wrong`, where the opposite comes true."""
    random = np.random.default_rng(seed)
    p, segment = random.beta(2, 3, rows), SEGMENTS[random.integers(0, 3, rows)]
    y = (random.random(rows) < p).astype(np.int64)
    y = np.where(np.isin(segment, wrong), 1 - y, y)
    return Outcomes(y, Scored(p, threshold), segment)


def decayed(found, *, classes):
    """What is bad, and what is worth a word."""
    results = list(judge_rises(LIMITS, found, classes=classes))
    bad = [each for each in results if each.status == "bad"]
    return bad, [each.remark for each in results if each.status == "remark"]


def miscalibrated(before, now, seed):
    return judge_calibration(LIMITS, before, now, seed)


def test_p_values_are_welchs_adjusted_as_holm_does():
    """His step-down, by hand: 4 times the smallest, 3 times the next, and none below the last."""
    before, now = outcomes(600, 11), outcomes(600, 12, wrong=("loyal",))
    found = rises(before, now, 100)
    pairs = [
        (before, now),
        *((before.of_segment(s), now.of_segment(s)) for s in SEGMENTS),
    ]
    single = [
        ttest_ind(*(losses(each.y, each.said) for each in (after, then)),
                  equal_var=False, alternative="greater").pvalue
        for then, after in pairs
    ]  # fmt: skip
    order = np.argsort(single)
    by_hand = np.minimum(
        1, np.maximum.accumulate(np.array(single)[order] * (4, 3, 2, 1))
    )
    assert [found[place].p for place in order] == pytest.approx(list(by_hand))


def test_a_segment_whose_meaning_changed_is_named_and_no_other():
    found = rises(outcomes(3000, 1), outcomes(3000, 2, wrong=("new",)), 100)
    bad, _ = decayed(found, classes=True)
    assert {each.feature for each in bad} == {"new", "loss"}
    assert {each.kind for each in bad} == {"concept_drift"}
    (named,) = (each for each in bad if each.feature == "new")
    assert "concept drift, segment new: log loss" in named.remark
    assert "(p " in named.remark


@pytest.mark.nightly
def test_where_nothing_changed_one_in_a_hundred_is_the_most_that_is_told():
    told = [
        any(
            rise.p < 0.01
            for rise in rises(outcomes(600, 2 * n), outcomes(600, 2 * n + 1), 100)
        )
        for n in range(150)
    ]
    assert sum(told) <= 0.01 * 150 + 3 * np.sqrt(0.01 * 150)


def test_a_sure_rise_that_is_small_is_a_word_and_one_that_fell_is_none():
    before, now = outcomes(100_000, 3), outcomes(100_000, 4)
    flipped = np.random.default_rng(5).random(100_000) < 0.02
    slightly = Outcomes(np.where(flipped, 1 - now.y, now.y), now.said, now.segment)
    bad, notes = decayed(rises(before, slightly, 100), classes=True)
    assert bad == []
    assert any("all rows" in note for note in notes)
    assert decayed(rises(slightly, before, 100), classes=True) == ([], [])


def test_few_rows_of_a_segment_and_rows_without_any_are_no_exception():
    few = outcomes(150, 6)
    assert [rise.segment for rise in rises(few, few, 100)] == [None]
    alone = Outcomes(few.y, few.said)
    assert [rise.segment for rise in rises(few, alone, 100)] == [None]
    same = Outcomes(np.ones(200), Scored(np.full(200, 3.0), None))
    assert [rise.p for rise in rises(same, same, 100)] == [1.0]


def test_scores_that_no_longer_mean_what_they_say_are_miscalibrated():
    before, now = outcomes(3000, 7), outcomes(3000, 8)
    assert miscalibrated(before, now, 7).status == "ok"
    high = Outcomes(now.y, Scored(np.clip(now.said.scores + 0.2, 0, 1), 0.5))
    found = miscalibrated(before, high, 7)
    assert 0.15 < found.value < 0.25
    assert found.remark.split(" (")[0] == f"calibration error {found.value:.3f}"


def test_few_rows_are_not_called_miscalibrated_for_being_few():
    """At 200 rows chance alone gives most of ECE's limit."""
    before = outcomes(5000, 9)
    for n in range(20):
        assert miscalibrated(before, outcomes(200, 100 + n), n).status == "ok"


def test_numbers_have_an_error_and_no_verdict_on_calibration():
    random = np.random.default_rng(10)
    y = random.normal(size=1000)
    before = Outcomes(y, Scored(y + random.normal(size=1000), None))
    now = Outcomes(y, Scored(y + 3 + random.normal(size=1000), None))
    (rise,) = rises(before, now, 100)
    assert (rise.now > 8 * rise.before, rise.p < 1e-6) == (True, True)
    assert "squared error" in decayed([rise], classes=False)[0][0].remark
    assert miscalibrated(before, now, 1).status == "ok"
