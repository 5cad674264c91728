"""Outcomes that nobody asked for, repeated or contradicted: counted by name, never used."""

from datetime import timedelta

import pytest

from core.spec import load_spec
from monitoring.log.collect import collect
from monitoring.log.tables import KnownOutcomes, join_outcomes
from tests.support.monitoring.log_lines import NOON, answer, feedback, write

SPEC = load_spec("customer_churn_model")
CLASSES = {"multiclass": ("early", "on_time", "late")}
AGAIN = "repeated"
AGAINST = "contradicting the first"
UNKNOWN = "of an unknown request"


def answers(settings, *names, **change):
    lines = [answer(name, **change) for name in names]
    write(settings, "predictions-1-1.jsonl", *lines)
    collect(settings)


def add_feedback(settings, *lines):
    """Lines of request, actual, and minutes after the answer."""
    rows = [
        feedback(name, actual, NOON + timedelta(minutes=minutes))
        for name, actual, minutes in lines
    ]
    write(settings, "feedback-1-1.jsonl", *rows)
    collect(settings)


def joined(settings, model="m", minutes=60, task="classification"):
    change = {"name": model, "task": task, "classes": CLASSES.get(task, ())}
    spec = SPEC.model_copy(update=change)
    return join_outcomes(settings, spec, NOON + timedelta(minutes=minutes))


def test_each_line_of_feedback_is_used_or_counted_with_a_reason(settings):
    answers(settings, *"abcde")
    add_feedback(
        settings,
        ("a", 1.0, 1),
        ("b", 1.0, 1),
        ("b", 1.0, 2),
        ("c", 0.0, 1),
        ("c", 1.0, 2),
        ("c", 0.0, 3),
        ("d", 1.0, -1),
        ("e", 1.0, -1),
        ("e", 0.0, 1),  # the first that can be true stands
        ("nobody", 1.0, 1),
    )
    assert joined(settings) == KnownOutcomes(
        known={"a": 1.0, "b": 1.0, "c": 0.0, "e": 0.0},
        left_out={AGAIN: 2, AGAINST: 1, "dated before the prediction": 2, UNKNOWN: 1},
    )


def test_feedback_on_another_model_or_after_the_run_does_not_count(settings):
    answers(settings, "a")
    answers(settings, "b", model="other")
    add_feedback(
        settings, ("a", 1.0, 5), ("b", 1.0, 5), ("b", 0.0, 6), ("nobody", 1.0, 5)
    )
    assert joined(settings, minutes=1) == KnownOutcomes({}, {})
    assert joined(settings) == KnownOutcomes({"a": 1.0}, {UNKNOWN: 1})
    assert joined(settings, "other").left_out == {UNKNOWN: 1, AGAINST: 1}


@pytest.mark.parametrize(
    ("task", "known", "left_out"),
    [
        ("classification", {"a": 1.0, "b": 1.0}, {"neither 0 nor 1": 5}),
        (
            "multiclass",
            {"a": 1.0, "b": 2.0, "e": 0.0},
            {"no outcome of its task": 3, AGAINST: 1},
        ),
    ],
)
def test_an_outcome_is_a_value_of_the_models_task(settings, task, known, left_out):
    answers(settings, *"abcde")
    add_feedback(
        settings,
        ("a", 1.0, 1),
        ("b", "late", 1),
        ("b", 1, 2),
        ("c", "lost", 1),
        ("d", 3, 1),
        ("e", 0.5, 1),
        ("e", "early", 2),
    )
    outcomes = joined(settings, task=task)
    assert outcomes == KnownOutcomes(known, left_out)
