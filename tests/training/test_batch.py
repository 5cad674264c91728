"""Batch scores of the real history: who is scored, with what, and how often."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import timedelta

import pyarrow.compute as pc
import pytest

from core.errors import DataError, RegistryError
from feature_repo.features import labels, open_raw, raw_table
from stack.environment import child_environment
from tests.conftest import AS_OF
from tests.preloaded import commands_folder
from tests.training.conftest import ORDERS, SPEC
from training.batch import score_population, scores
from training.frame import build_frame
from training.scoring import version_scores
from training.snapshots import Snapshot

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture(scope="module")
def settings(tracked, second):
    assert second.version == "2", second.outcome
    return tracked


def of(settings, model=SPEC.name):
    return scores(settings).read(where=pc.field("model") == model)


def days(settings):
    found = (
        of(settings)
        .group_by(["day", "as_of", "version"])
        .aggregate([("entity", "count")])
    )
    return sorted(
        (row["day"], row["as_of"], row["entity_count"]) for row in found.to_pylist()
    )


def test_everybody_the_label_is_defined_for_is_scored_once_as_serving_would_answer(
    settings,
):
    report = score_population(settings, SPEC, AS_OF)
    rows = of(settings).filter(pc.field("as_of") == AS_OF).sort_by("entity").to_pylist()
    raw = open_raw(raw_table(settings, ORDERS), as_of=AS_OF)
    label_rows = labels(raw, ORDERS.labels[SPEC.label], [AS_OF]).to_pyarrow()
    members = label_rows["customer_id"].to_pylist()
    assert [row["entity"] for row in rows] == sorted(map(str, members))
    assert (report.rows, report.version) == (len(members), "2")
    assert sum(row["prediction"] for row in rows) > 0

    version = raw_table(settings, ORDERS).version
    frame = build_frame(
        settings, SPEC, ORDERS, [Snapshot(AS_OF, AS_OF)], AS_OF, version
    )
    scored = version_scores(settings, SPEC, "2", frame)
    expected = dict(
        zip(frame["customer_id"].to_pylist(), scored.scores.tolist(), strict=True)
    )
    inputs = {row["customer_id"]: row for row in frame.to_pylist()}
    for row in rows:
        customer = int(row["entity"])
        assert row["probability"] == round(expected[customer], 6)
        assert row["prediction"] == (row["probability"] >= scored.threshold)
        features = json.loads(row["features"])
        assert features == {name: inputs[customer][name] for name in SPEC.features}
        assert 0 <= features[SPEC.population.feature] < SPEC.population.below


def test_a_day_replaces_itself_and_no_other_day_or_model(settings):
    score_population(settings, SPEC, AS_OF)
    ((day, _, count),) = days(settings)
    score_population(settings, SPEC, AS_OF)
    assert days(settings) == [(day, AS_OF, count)]
    score_population(settings, SPEC, AS_OF - DAY)
    other = of(settings).replace_schema_metadata(None)
    beside = other.set_column(
        0, "model", pc.replace_substring(other["model"], SPEC.name, "other_model")
    )
    last = beside.filter(pc.field("day") == day)
    scores(settings).replace(last, ("model", "day"))
    score_population(settings, SPEC, AS_OF + HOUR)
    (before, _, _), (after, moment, again) = days(settings)
    assert (before, after, moment) == ("2099-11-19", "2099-11-20", AS_OF + HOUR)
    assert again == count
    assert of(settings, "other_model").num_rows == count


def test_with_nothing_in_production_or_nobody_to_score_nothing_is_written(settings):
    nobody = SPEC.model_copy(update={"name": "unborn_model"})
    before = scores(settings).version
    with pytest.raises(
        RegistryError, match=r"unborn_model: nothing is in production .*gyre train"
    ):
        score_population(settings, nobody, AS_OF)
    with pytest.raises(DataError, match="nobody is in the population as of 2090"):
        score_population(settings, SPEC, AS_OF.replace(year=2090))
    assert scores(settings).version == before


def test_the_shell_names_the_models_there_are(settings):
    own = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS_")}
    done = subprocess.run(
        [commands_folder() / "gyre", "score", "nope"], env=own | child_environment(settings),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "no model 'nope': models/ has customer_churn_model" in done.stderr
