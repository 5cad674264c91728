"""Outcomes that nobody asked for, told twice, or told otherwise: counted by name, never used."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from core.spec import load_spec
from monitoring.collect import collect, join_outcomes
from tests.conftest import new_settings

SPEC = load_spec("customer_churn_model")
CLASSES = {
    "classification": (),
    "regression": (),
    "multiclass": ("early", "on_time", "late"),
}
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def asked(request_id, model="m", minutes=0):
    at = (NOW + minutes * MINUTE).isoformat()
    return {
        "request_id": request_id, "model": model, "version": "1", "role": "production",
        "received": at, "as_of": at, "entity": 1, "features": {}, "features_from": "online",
        "probability": 0.5, "prediction": 1.0, "in_population": True,
    }  # fmt: skip


def told(request_id, actual, minutes):
    at = (NOW + minutes * MINUTE).isoformat()
    return {"request_id": request_id, "actual": actual, "received": at}


@pytest.fixture
def settings(tmp_path):
    made = new_settings(tmp_path)
    (made.home / "serving" / "log").mkdir(parents=True)
    return made


def write(settings, name, *rows):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (settings.home / "serving" / "log" / name).write_text(lines)


def settled(settings, model="m", minutes=60, task="classification"):
    collect(settings)
    spec = SPEC.model_copy(
        update={"name": model, "task": task, "classes": CLASSES[task]}
    )
    return join_outcomes(settings, spec, NOW + minutes * MINUTE)


def test_each_line_of_feedback_is_used_or_counted_by_name_again_at_every_look(settings):
    write(settings, "predictions-1-1.jsonl", *(asked(name) for name in "abcdef"))
    write(
        settings, "feedback-1-1.jsonl",
        told("a", 1.0, 1),
        told("b", 1.0, 1), told("b", 1.0, 1), told("b", 1.0, 2),  # the same line, and a later one
        told("c", 0.0, 1), told("c", 1.0, 2), told("c", 0.0, 3),
        told("d", 1.0, -1),
        told("e", 1.0, -1), told("e", 0.0, 1),  # the first that can be true stands
        told("nobody", 1.0, 1), told("nobody", 1.0, 2),
    )  # fmt: skip
    for _ in range(3):
        found = settled(settings)
        assert found.known == {"a": 1.0, "b": 1.0, "c": 0.0, "e": 0.0}
        assert found.left_out == {
            "told again": 3, "contradicting the first": 1,
            "dated before the prediction": 2, "of an unknown request": 2,
        }  # fmt: skip


@pytest.mark.parametrize("names", [*permutations(("1-9", "2-1", "9-5"))])
def test_the_first_received_stands_whichever_process_wrote_it(settings, names):
    write(settings, "predictions-1-1.jsonl", asked("a"))
    for name, actual, minutes in zip(names, (1.0, 0.0, 0.0), (1, 2, 3), strict=True):
        write(settings, f"feedback-{name}.jsonl", told("a", actual, minutes))
    found = settled(settings)
    assert (found.known, found.left_out) == ({"a": 1.0}, {"contradicting the first": 2})


def test_what_was_told_stays_known_when_its_file_is_gone(settings):
    write(settings, "predictions-1-1.jsonl", asked("a"))
    write(settings, "feedback-1-1.jsonl", told("a", 1.0, 1))
    settled(settings)
    assert not (settings.home / "serving" / "log" / "feedback-1-1.jsonl").exists()
    assert settled(settings).known == {"a": 1.0}


def test_what_is_told_of_another_model_or_later_than_the_look_is_no_matter_of_it(
    settings,
):
    write(settings, "predictions-1-1.jsonl", asked("a"), asked("b", model="other"))
    write(settings, "feedback-1-1.jsonl", told("a", 1.0, 5), told("b", 1.0, 5), told("b", 0.0, 6),
          told("nobody", 1.0, 5))  # fmt: skip
    early, late = settled(settings, minutes=1), settled(settings)
    assert (early.known, early.left_out) == ({}, {})
    assert (late.known, late.left_out) == ({"a": 1.0}, {"of an unknown request": 1})
    assert settled(settings, "other").left_out == {
        "of an unknown request": 1, "contradicting the first": 1
    }  # fmt: skip


def test_a_class_is_0_or_1_and_a_number_is_any(settings):
    write(settings, "predictions-1-1.jsonl", asked("a"), asked("b"))
    write(
        settings,
        "feedback-1-1.jsonl",
        told("a", 0.5, 1),
        told("a", 1.0, 2),
        told("b", -7.0, 1),
    )
    found = settled(settings)
    assert (found.known, found.left_out) == ({"a": 1.0}, {"neither 0 nor 1": 2})
    found = settled(settings, task="regression")
    assert found.known == {"a": 0.5, "b": -7.0}
    assert found.left_out == {"contradicting the first": 1}


def test_of_nothing_nothing_is_known(settings):
    found = settled(settings)
    assert (found.known, found.left_out) == ({}, {})


def test_an_outcome_of_many_classes_is_a_name_or_a_position_and_one_by_both_is_the_same(
    settings,
):
    write(settings, "predictions-1-1.jsonl", *(asked(name) for name in "abcde"))
    write(
        settings, "feedback-1-1.jsonl",
        told("a", "late", 1), told("a", 2, 2), told("b", 1, 1), told("b", "late", 2),
        told("c", "lost", 1), told("d", 3, 1), told("e", 0.5, 1), told("e", "early", 2),
    )  # fmt: skip
    found = settled(settings, task="multiclass")
    assert found.known == {"a": 2.0, "b": 1.0, "e": 0.0}
    other, again, against = (
        "no outcome of its task",
        "told again",
        "contradicting the first",
    )
    assert found.left_out == {other: 3, again: 1, against: 1}
    assert settled(settings).left_out["neither 0 nor 1"] == 7
