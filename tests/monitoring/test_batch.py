"""A model that too few ask is watched on its batch scores, by the same measures."""

from __future__ import annotations

from datetime import timedelta

import pytest

from monitoring.monitor import monitor
from tests.conftest import AS_OF, mlflow_server
from tests.monitoring.test_monitor import OLD, SPEC, answer, train
from tests.training.conftest import installation
from training.batch import score_population

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    made = installation(tmp_path_factory.mktemp("scored"))
    with mlflow_server(made):
        train(made, OLD, "first")
        yield made


def test_batch_scores_are_judged_where_too_few_asked_and_only_there(settings):
    scored = score_population(settings, SPEC, AS_OF)
    early = monitor(settings, SPEC, AS_OF - HOUR)  # they lie ahead of this moment
    assert (early.entities, early.verdict) == (0, "insufficient_data")
    first = monitor(settings, SPEC, AS_OF)
    assert (first.entities, first.verdict) == (scored.rows, "bad")
    assert first.figures["psi_lifetime_orders"] > SPEC.drift.significant
    assert first.left_out == {}

    answer(settings, "1", AS_OF + HOUR, "few", limit=150)
    few = monitor(settings, SPEC, AS_OF + 2 * HOUR)
    assert (few.entities, few.decision.action) == (scored.rows, "retrain")
    asked = few.left_out.pop("asked, but too few for a verdict")
    assert asked + few.left_out["outside the population"] == 150
    of_who_asked = ("skew_", "asked")
    judged = [name for name in first.figures if not name.startswith(of_who_asked)]
    assert {n: few.figures[n] for n in judged} == {n: first.figures[n] for n in judged}

    answer(settings, "1", AS_OF + 3 * HOUR, "enough", limit=1000)
    enough = monitor(settings, SPEC, AS_OF + 4 * HOUR)
    assert 200 <= enough.entities < 1000
    later = monitor(settings, SPEC, AS_OF + 48 * HOUR)  # yesterday's batch says nothing of today
    assert (later.entities, later.verdict) == (0, "insufficient_data")


def test_scores_of_the_version_before_are_no_window_of_the_new_one(settings):
    score_population(settings, SPEC, AS_OF + 50 * HOUR)
    assert train(settings, AS_OF + 51 * HOUR, "second") == "2"
    unknown = monitor(settings, SPEC, AS_OF + 52 * HOUR)
    assert (unknown.version, unknown.entities) == ("2", 0)
    scored = score_population(settings, SPEC, AS_OF + 53 * HOUR)
    calm = monitor(settings, SPEC, AS_OF + 54 * HOUR)
    assert (calm.version, calm.entities, calm.verdict) == ("2", scored.rows, "ok")
