"""The training frame: no byte of it knows what happens inside the test horizon."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import TrainingError
from core.spec import load_spec
from feature_repo.ingest import raw_table
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, installation
from training.dataset import without_label
from training.frame import at, build_frame, content_hash, typed
from training.train import fit_pipeline
from training.validate import plan_run

SPEC = load_spec("customer_churn_model")
TIME = pa.timestamp("us", tz="UTC")


@pytest.fixture(scope="module")
def planned(sample):
    return plan_run(sample, SPEC, ORDERS, AS_OF, raw_table(sample, ORDERS).version)


def frame_of(settings, planned):
    version = raw_table(settings, ORDERS).version
    return build_frame(settings, SPEC, ORDERS, planned.snapshots, AS_OF, version)


@pytest.fixture(scope="module")
def frame(sample, planned):
    return frame_of(sample, planned)


@pytest.mark.parametrize(
    ("task", "labels", "told"),
    [
        ("classification", [0.0, 1.0], None),
        ("regression", [0, -7], None),
        (
            "classification",
            ["yes", "no"],
            "expected int64, as a classification has it, found str",
        ),
        (
            "classification",
            ["0", "1"],
            "expected int64, as a classification has it, found string",
        ),
        ("classification", [0.5, 1.0], "found double: Float value 0.50* was truncated"),
        (
            "regression",
            ["many", "none"],
            "expected double, as a regression has it, found string",
        ),
        (
            "regression",
            ["1.5", "2.5"],
            "expected double, as a regression has it, found string",
        ),
    ],
)
def test_labels_have_the_type_of_the_task_or_are_one_line(task, labels, told):
    spec, table = SPEC.model_copy(update={"task": task}), pa.table({"label": labels})
    if told is None:
        found = typed(spec, table)["label"]
        assert (
            found.type
            == {"classification": pa.int64(), "regression": pa.float64()}[task]
        )
        assert found.to_pylist() == labels
    else:
        with pytest.raises(
            TrainingError, match=rf"label churned_90d: .*{told}"
        ) as refused:
            typed(spec, table)
        assert "\n" not in str(refused.value)


def test_a_fold_of_one_class_is_one_line():
    with pytest.raises(
        TrainingError, match="every label of 3 training rows is the same"
    ):
        fit_pipeline(SPEC, SPEC.estimators[0], pa.table({"label": [1, 1, 1]}))


def flipped(rows, test):
    """The orders in a world where everyone of the test snapshot does the opposite."""
    horizon = pc.and_(
        pc.greater(rows["order_ts"], pa.scalar(test, TIME)),
        pc.less_equal(rows["order_ts"], pa.scalar(test + timedelta(days=90), TIME)),
    )
    kept = rows.filter(pc.invert(horizon))
    came_back = set(rows.filter(horizon)["customer_id"].to_pylist())
    stayed_away = sorted(set(rows["customer_id"].to_pylist()) - came_back)
    return pa.concat_tables(
        [
            kept,
            pa.table(
                {
                    "order_id": pa.array(
                        range(10**6, 10**6 + len(stayed_away)), pa.int64()
                    ),
                    "customer_id": pa.array(stayed_away, pa.int64()),
                    "order_ts": pa.array(
                        [test + timedelta(days=1)] * len(stayed_away), TIME
                    ),
                    "number_of_cds": pa.array([1] * len(stayed_away), pa.int64()),
                    "dollar_value": pa.array([9.99] * len(stayed_away), pa.float64()),
                }
            ),
        ]
    )


def test_flipping_every_label_of_the_test_horizon_changes_no_byte_of_the_training_frame(
    sample, planned, frame, tmp_path
):
    rows = raw_table(sample, ORDERS).read().select(ORDERS.schema.names)
    other = frame_of(
        installation(tmp_path, flipped(rows, planned.test[0].start)), planned
    )
    test, other_test = at(frame, planned.test), at(other, planned.test)
    assert pc.all(pc.not_equal(test["label"], other_test["label"])).as_py()
    assert content_hash(at(frame, planned.train)) == content_hash(
        at(other, planned.train)
    )
    assert test.drop_columns("label").equals(other_test.drop_columns("label"))
    folds = {each for fold in planned.folds for each in (*fold.train, *fold.validation)}
    assert folds
    assert at(frame, sorted(folds)).equals(at(other, sorted(folds)))


def test_a_frame_is_one_row_per_member_and_snapshot_in_one_order(frame, planned):
    assert frame.column_names == [
        "customer_id",
        "event_timestamp",
        *SPEC.features,
        "label",
    ]
    assert frame.num_rows == len(
        set(zip(*frame.select([0, 1]).to_pydict().values(), strict=True))
    )
    order = [("event_timestamp", "ascending"), ("customer_id", "ascending")]
    assert frame.equals(frame.sort_by(order))
    days = frame["days_since_last_order"]
    assert (pc.min(days).as_py(), pc.max(days).as_py() < SPEC.population.below) == (
        0,
        True,
    )
    assert frame.drop_columns("label")["total_spend_30d"].null_count == 0


def test_the_same_world_gives_the_same_hash_and_one_changed_value_another(
    sample, planned, frame
):
    assert content_hash(frame_of(sample, planned)) == content_hash(frame)
    changed = frame.set_column(
        frame.schema.get_field_index("label"), "label",
        pa.chunked_array([[1 - frame["label"][0].as_py(), *frame["label"].to_pylist()[1:]]]),
    )  # fmt: skip
    assert content_hash(changed) != content_hash(frame)


def test_a_sample_holds_the_same_entities_in_each_snapshot(sample, planned, frame):
    snapshots = SPEC.snapshots.model_copy(update={"sample": 0.25})
    spec = SPEC.model_copy(update={"snapshots": snapshots})
    version = raw_table(sample, ORDERS).version
    part = build_frame(sample, spec, ORDERS, planned.snapshots, AS_OF, version)
    entities = part["customer_id"].unique()
    rows_of_entities = frame.filter(pc.is_in(frame["customer_id"], entities))
    assert part.equals(rows_of_entities)
    share = len(entities) / len(frame["customer_id"].unique())
    assert 0.15 < share < 0.35
    unlabelled = without_label(sample, spec, planned, at(part, planned.test))
    assert unlabelled.num_rows == 0


def test_a_frame_that_does_not_fit_in_memory_is_refused_with_the_share_that_does(
    monkeypatch, sample, planned
):
    monkeypatch.setattr("training.frame.VALUE_BYTES", 10**6)
    with pytest.raises(TrainingError, match=r"GB are free: .* write sample = 0\.0\d+ "):
        frame_of(sample, planned)


def test_rows_known_only_after_as_of_are_not_seen(sample):
    version = raw_table(sample, ORDERS).version
    early = plan_run(sample, SPEC, ORDERS, AS_OF - timedelta(days=180), version)
    assert early.folds == ()
    assert early.test[-1].last + timedelta(days=92) <= AS_OF - timedelta(days=180)
