"""Batch scores of the real history: who is scored, with what, and how often."""

import json
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from feature_repo.features import labels, open_raw, raw_table
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, SPEC
from training.batch import score_population, scores
from training.frame import build_frame
from training.scoring import version_scores
from training.snapshots import Snapshot

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def settings(tracked, second):
    assert second.version == "2", second.outcome
    return tracked


def scores_of(settings, model=SPEC.name):
    return scores(settings).read(where=pc.field("model") == model)


def test_every_member_is_scored_once_with_the_score_of_serving(settings):
    report = score_population(settings, SPEC, AS_OF)
    table = raw_table(settings, ORDERS)
    label = ORDERS.labels[SPEC.label]
    members = labels(open_raw(table, as_of=AS_OF), label, [AS_OF]).to_pyarrow()
    assert (report.rows, report.version) == (members.num_rows, "2")
    moment = [Snapshot(AS_OF, AS_OF)]
    frame = build_frame(settings, SPEC, ORDERS, moment, AS_OF, table.version)
    scored = version_scores(settings, SPEC, "2", frame)
    rows = scores_of(settings).filter(pc.field("as_of") == AS_OF)
    by_entity = {row["entity"]: row for row in rows.to_pylist()}
    assert len(by_entity) == rows.num_rows == frame.num_rows == members.num_rows
    for inputs, score in zip(frame.to_pylist(), scored.scores.tolist(), strict=True):
        row = by_entity[str(inputs["customer_id"])]
        assert row["probability"] == round(score, 6)
        assert row["prediction"] == (row["probability"] >= scored.threshold)
        features = {name: inputs[name] for name in SPEC.features}
        assert json.loads(row["features"]) == features
        assert 0 <= features[SPEC.population.feature] < SPEC.population.below


def test_a_second_scoring_replaces_its_own_day_and_no_other_day_or_model(settings):
    def counts(model=SPEC.name):
        rows = scores_of(settings, model).group_by(["day", "as_of"])
        days = rows.aggregate([("entity", "count")]).to_pylist()
        return {row["day"]: (row["as_of"], row["entity_count"]) for row in days}

    score_population(settings, SPEC, AS_OF)
    ((day, count),) = counts().items()
    score_population(settings, SPEC, AS_OF)
    assert counts() == {day: count}
    other = scores_of(settings).replace_schema_metadata(None)
    names = pa.array(["other_model"] * other.num_rows)
    scores(settings).replace(other.set_column(0, "model", names), ("model", "day"))
    score_population(settings, SPEC, AS_OF - DAY)
    score_population(settings, SPEC, AS_OF + HOUR)
    _, entities = count
    assert counts().keys() == {"2099-11-19", "2099-11-20"}
    assert counts()[day] == (AS_OF + HOUR, entities)
    assert counts("other_model") == {day: count}
