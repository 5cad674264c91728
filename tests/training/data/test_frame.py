"""The training frame: no byte of it knows what happens inside the test horizon."""

from datetime import timedelta

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import TrainingError
from feature_engine.ingest.pipeline import raw_table
from feature_engine.offline.labels import dataset_labels
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, SHIPPED, installation
from training.data.frame import (
    build_frame,
    content_hash,
    snapshot_rows,
    with_typed_labels,
)
from training.data.snapshots import plan_snapshots
from training.planning import first_known_event
from training.stages.dataset import without_label

pytestmark = pytest.mark.journey


def labels_of(settings):
    return dataset_labels(settings, ORDERS, SHIPPED.label)


@pytest.fixture(scope="module")
def planned(sample):
    version = raw_table(sample, ORDERS).version
    first_event = first_known_event(labels_of(sample), AS_OF, version)
    label = ORDERS.labels[SHIPPED.label]
    return plan_snapshots(first_event, AS_OF, label, SHIPPED.snapshots)


def frame_of(settings, planned, spec=SHIPPED):
    version = raw_table(settings, ORDERS).version
    source = labels_of(settings)
    return build_frame(settings, spec, source, planned.snapshots, AS_OF, version)


@pytest.fixture(scope="module")
def frame(sample, planned):
    return frame_of(sample, planned)


@pytest.mark.parametrize(
    ("task", "classes", "values", "message"),
    [
        ("classification", (), ["0", "1"], "expected int64, as a classification .* string"),
        ("classification", (), [0.5, 1.0], "found double: Float value 0.50* was truncated"),
        ("multiclass", ("early", "late"), ["lost"],
         r"expected early, late \(classes in .*\.toml\), or 0 to 1, found lost"),
        ("multiclass", ("early", "late"), [-1], "found -1"),
    ],
)  # fmt: skip
def test_labels_of_a_wrong_type_or_of_no_class_are_reported_in_one_line(
    task, classes, values, message
):
    spec = SHIPPED.model_copy(update={"task": task, "classes": classes})
    with pytest.raises(TrainingError, match=rf"^label churned_90d: .*{message}.*$"):
        with_typed_labels(spec, pa.table({"label": values}))


def with_opposite_labels(orders, snapshot):
    """The orders in a world where every customer of the snapshot does the opposite."""
    rows = orders.to_pandas()
    horizon_end = snapshot + timedelta(days=90)
    is_later = (rows["order_ts"] > snapshot) & (rows["order_ts"] <= horizon_end)
    returned = rows["customer_id"][is_later]
    others = rows[~rows["customer_id"].isin(returned)].drop_duplicates("customer_id")
    new_orders = others.assign(
        order_id=10**6 + others["customer_id"], order_ts=snapshot + timedelta(days=1)
    )
    opposite = pd.concat([rows[~is_later], new_orders])
    return pa.Table.from_pandas(opposite, orders.schema, preserve_index=False)


def test_opposite_labels_in_the_test_horizon_change_no_byte_of_the_training_frame(
    sample, planned, frame, tmp_path
):
    orders = raw_table(sample, ORDERS).read().select(ORDERS.schema.names)
    opposite = with_opposite_labels(orders, planned.test[0].start)
    other = frame_of(installation(tmp_path, opposite), planned)
    test = snapshot_rows(frame, planned.test)
    other_test = snapshot_rows(other, planned.test)
    assert pc.all(pc.not_equal(test["label"], other_test["label"])).as_py()
    assert test.drop_columns("label").equals(other_test.drop_columns("label"))
    assert content_hash(test) != content_hash(other_test)
    digest = content_hash(snapshot_rows(frame, planned.train))
    assert content_hash(snapshot_rows(other, planned.train)) == digest
    folds = {part for fold in planned.folds for part in (*fold.train, *fold.validation)}
    assert folds
    assert snapshot_rows(frame, sorted(folds)).equals(
        snapshot_rows(other, sorted(folds))
    )


def test_a_frame_has_one_row_for_each_member_and_snapshot_in_one_order(
    sample, planned, frame
):
    key = ["customer_id", "event_timestamp"]
    assert frame.column_names == [*key, *SHIPPED.features, "label"]
    assert frame.group_by(key).aggregate([]).num_rows == frame.num_rows
    order = [("event_timestamp", "ascending"), ("customer_id", "ascending")]
    assert frame.equals(frame.sort_by(order))
    days = frame[SHIPPED.population.feature]
    assert pc.min(days).as_py() == 0
    assert pc.max(days).as_py() < SHIPPED.population.below
    assert content_hash(frame_of(sample, planned)) == content_hash(frame)


def test_a_sample_has_the_same_entities_in_each_snapshot(sample, planned, frame):
    snapshots = SHIPPED.snapshots.model_copy(update={"sample": 0.25})
    spec = SHIPPED.model_copy(update={"snapshots": snapshots})
    part = frame_of(sample, planned, spec)
    entities = part["customer_id"].unique()
    assert part.equals(frame.filter(pc.is_in(frame["customer_id"], entities)))
    share = len(entities) / len(frame["customer_id"].unique())
    assert 0.15 < share < 0.35
    unlabelled = without_label(sample, spec, planned, snapshot_rows(part, planned.test))
    assert unlabelled.num_rows == 0


def test_a_frame_larger_than_memory_is_refused_with_a_share_that_fits(
    monkeypatch, sample, planned
):
    monkeypatch.setattr("training.data.frame.VALUE_BYTES", 10**6)
    with pytest.raises(TrainingError, match=r"GB are free: .* write sample = 0\.0\d+ "):
        frame_of(sample, planned)
