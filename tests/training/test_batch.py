"""Batch scores of the real history: who is scored, with what, and how often."""

import json
from collections import Counter
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import NoRequestError
from core.spec.tables import Scores
from feature_engine.offline.labels import dataset_labels
from feature_engine.offline.raw import raw_table
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, SPEC
from training.batch import score_population, scores
from training.data.frame import build_frame
from training.data.snapshots import Snapshot
from training.model.scoring import version_scores

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def scores_of(settings, model=SPEC.name):
    return scores(settings).read(where=pc.field("model") == model)


def test_every_member_is_scored_once_with_the_score_of_serving(tracked, second):
    report = score_population(tracked, SPEC, AS_OF)
    moment = [Snapshot(AS_OF, AS_OF)]
    version = raw_table(tracked, ORDERS).version
    source = dataset_labels(tracked, ORDERS, SPEC.label)
    frame = build_frame(tracked, SPEC, source, moment, AS_OF, version)
    assert (report.rows, report.version) == (frame.num_rows, "2")
    scored = version_scores(tracked, SPEC, "2", frame)
    rows = scores_of(tracked).filter(pc.field("as_of") == AS_OF)
    by_entity = {row["entity"]: row for row in rows.to_pylist()}
    assert len(by_entity) == rows.num_rows == frame.num_rows
    for inputs, score in zip(frame.to_pylist(), scored.scores.tolist(), strict=True):
        row = by_entity[str(inputs["customer_id"])]
        assert row["probability"] == round(score, 6)
        assert row["prediction"] == (row["probability"] >= scored.threshold)
        features = {name: inputs[name] for name in SPEC.features}
        assert json.loads(row["features"]) == features
        assert 0 <= features[SPEC.population.feature] < SPEC.population.below


def test_a_second_scoring_replaces_its_own_day_and_no_other_day_or_model(
    tracked, second
):
    def counts(model=SPEC.name):
        """Rows by moment."""
        moments = scores_of(tracked, model)["as_of"].to_pylist()
        return Counter(moments)

    entities = score_population(tracked, SPEC, AS_OF).rows
    other = scores_of(tracked).filter(pc.field("as_of") == AS_OF)
    other = other.replace_schema_metadata(None)
    names = pa.array(["other_model"] * other.num_rows)
    scores(tracked).replace(other.set_column(0, "model", names), ("model", "day"))
    before = score_population(tracked, SPEC, AS_OF - DAY).rows
    score_population(tracked, SPEC, AS_OF + HOUR)
    assert counts() == {AS_OF - DAY: before, AS_OF + HOUR: entities}
    assert counts("other_model") == {AS_OF: entities}


def test_a_version_scores_as_it_was_trained_whatever_the_spec_says_by_now(
    tracked, second
):
    moment = AS_OF - 2 * DAY
    report = score_population(tracked, SPEC, moment)
    rows = scores_of(tracked)
    changes = {"task": "regression", "threshold": None, "costs": None}
    changes |= {"entity_key": {"shop_id": "string"}, "population": None}
    edited = SPEC.model_copy(update=changes)
    assert score_population(tracked, edited, moment) == report
    assert scores_of(tracked).num_rows == rows.num_rows


def test_only_entities_whose_features_have_changed_are_scored(tracked, second):
    newest = raw_table(tracked, ORDERS).newest(ORDERS.event_time)
    moment = newest + HOUR
    active = SPEC.model_copy(update={"scores": Scores(only_active_hours=2)})
    score_population(tracked, active, moment)
    orders = raw_table(tracked, ORDERS).read()
    is_young = pc.field(ORDERS.event_time) > moment - 2 * HOUR
    young = {str(key) for key in orders.filter(is_young)["customer_id"].to_pylist()}
    rows = scores_of(tracked).filter(pc.field("as_of") == moment)
    scored = {*rows["entity"].to_pylist()}
    assert young <= scored
    everybody = score_population(tracked, SPEC, moment).rows
    assert 0 < len(scored) < everybody
    never = SPEC.model_copy(update={"scores": Scores(only_active_hours=0.001)})
    with pytest.raises(NoRequestError, match="no features have changed since"):
        score_population(tracked, never, moment)
