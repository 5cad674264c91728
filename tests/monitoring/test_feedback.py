"""Outcomes that nobody asked for, told twice, or told otherwise: counted by name, never used."""

from __future__ import annotations

from datetime import timedelta

import pytest

from core.spec import load_spec
from monitoring.collect import KnownOutcomes, collect, join_outcomes
from tests.conftest import new_settings
from tests.monitoring.log import FAILURE, NOON, answer, feedback, write

SPEC = load_spec("customer_churn_model")
CLASSES = {"multiclass": ("early", "on_time", "late")}
AGAIN = "told again"
AGAINST = "contradicting the first"
UNKNOWN = "of an unknown request"


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def answers(settings, *names, **change):
    lines = [answer(name, **change) for name in names]
    write(settings, "predictions-1-1.jsonl", *lines)
    collect(settings)


def told(settings, *lines, file="1-1"):
    """Lines of request, actual, and minutes after the answer."""
    rows = [
        feedback(name, actual, NOON + timedelta(minutes=minutes))
        for name, actual, minutes in lines
    ]
    write(settings, f"feedback-{file}.jsonl", *rows)
    collect(settings)


def joined(settings, model="m", minutes=60, task="classification"):
    change = {"name": model, "task": task, "classes": CLASSES.get(task, ())}
    spec = SPEC.model_copy(update=change)
    return join_outcomes(settings, spec, NOON + timedelta(minutes=minutes))


def test_each_line_of_feedback_is_used_or_counted_by_name_again_in_every_run(settings):
    answers(settings, *"abcde")
    told(
        settings,
        ("a", 1.0, 1),
        ("b", 1.0, 1),
        ("b", 1.0, 1),
        ("b", 1.0, 2),
        ("c", 0.0, 1),
        ("c", 1.0, 2),
        ("c", 0.0, 3),
        ("d", 1.0, -1),
        ("e", 1.0, -1),
        ("e", 0.0, 1),  # the first that can be true stands
        ("nobody", 1.0, 1),
        ("nobody", 1.0, 2),
    )
    expected = KnownOutcomes(
        known={"a": 1.0, "b": 1.0, "c": 0.0, "e": 0.0},
        left_out={AGAIN: 3, AGAINST: 1, "dated before the prediction": 2, UNKNOWN: 2},
    )
    assert [joined(settings) for _ in range(2)] == [expected, expected]


def test_feedback_on_a_request_that_failed_is_of_an_unknown_one(settings):
    """Of the second a challenger failed, and production answered."""
    answers(settings, "a", **FAILURE)
    answers(settings, "b", role="challenger", **FAILURE)
    answers(settings, "b")
    told(settings, ("a", 1.0, 1), ("b", 1.0, 1))
    assert joined(settings) == KnownOutcomes({"b": 1.0}, {UNKNOWN: 1})


def test_feedback_on_another_model_or_later_than_the_run_is_none_of_it(settings):
    answers(settings, "a")
    answers(settings, "b", model="other")
    told(settings, ("a", 1.0, 5), ("b", 1.0, 5), ("b", 0.0, 6), ("nobody", 1.0, 5))
    assert joined(settings, minutes=1) == KnownOutcomes({}, {})
    assert joined(settings) == KnownOutcomes({"a": 1.0}, {UNKNOWN: 1})
    assert joined(settings, "other").left_out == {UNKNOWN: 1, AGAINST: 1}


def test_a_class_is_0_or_1_and_a_number_is_any(settings):
    answers(settings, "a", "b")
    told(settings, ("a", 0.5, 1), ("a", 1.0, 2), ("b", -7.0, 1))
    assert joined(settings) == KnownOutcomes({"a": 1.0}, {"neither 0 nor 1": 2})
    numbers = joined(settings, task="regression")
    assert numbers == KnownOutcomes({"a": 0.5, "b": -7.0}, {AGAINST: 1})


def test_an_outcome_of_many_classes_is_a_name_or_a_position(settings):
    answers(settings, *"abcde")
    told(
        settings,
        ("a", "late", 1),
        ("a", 2, 2),
        ("b", 1, 1),
        ("b", "late", 2),
        ("c", "lost", 1),
        ("d", 3, 1),
        ("e", 0.5, 1),
        ("e", "early", 2),
    )
    assert joined(settings, task="multiclass") == KnownOutcomes(
        known={"a": 2.0, "b": 1.0, "e": 0.0},
        left_out={"no outcome of its task": 3, AGAIN: 1, AGAINST: 1},
    )
    assert joined(settings).left_out["neither 0 nor 1"] == 7
