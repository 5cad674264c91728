"""A label with rows of its own, by the week: from orders to production."""

import json
from dataclasses import replace
from datetime import timedelta

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

from core.errors import DataError, NoRequestError
from core.spec.tables import Scores
from core.spec.training import Snapshots
from feature_engine.offline.raw import raw_table
from feature_repo.definition import Label
from feature_repo.labels import label_source
from mlflow_server.api.registry import Registry
from monitoring.log.actuals import read_actuals, units
from monitoring.log.outcomes import backfilled_outcomes
from monitoring.measurements.performance import measure
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, SHIPPED, changed, train
from training.batch import score_population
from training.data.frame import TIME_TYPE, snapshot_rows, with_features
from training.evaluation.reference import load_reference
from training.evaluation.results import load_evaluation
from training.model.scoring import version_scores
from training.stages.dataset import load_frame

WEEK = timedelta(weeks=1)
DAY = timedelta(days=1)
FEATURES = dict(SHIPPED.features)
del FEATURES["days_since_last_order"]  # an order's own age is always 0
SPEC = changed(
    name="again",
    experiment="again",
    label="again_30d",
    population=None,
    gates=SHIPPED.gates[:1],
    outcome_key={"order_ref": "int64"},
    features=FEATURES,
    snapshots=Snapshots(every="week", train=20, test=8, rows="label"),
)


def again_30d(orders):
    """1 for an order whose customer orders again within 30 days; of one moment they are one."""
    placed = orders.group_by("customer_id", event_timestamp=orders.order_ts).agg(
        amount=orders.dollar_value.sum(), order_ref=orders.order_id.min()
    )
    following = placed.event_timestamp.lead().over(
        ibis.window(group_by="customer_id", order_by="event_timestamp")
    )
    soon = following <= placed.event_timestamp + ibis.interval(days=30)
    return placed.mutate(label=soon.fill_null(False).cast("int64"))


LABEL = Label(again_30d, horizon=30 * DAY, lateness=2 * DAY)


@pytest.fixture(scope="module")
def settings(tracked):
    ORDERS.labels["again_30d"] = LABEL
    yield tracked
    del ORDERS.labels["again_30d"]


@pytest.fixture(scope="module")
def again(settings):
    report = train(settings, SPEC, AS_OF, "again")
    assert report.version == "1", report.outcome
    return report


def test_rows_of_a_label_get_the_features_of_their_time(settings, tracking, again):
    frame, plan = load_frame(tracking, again.run_id)
    orders = raw_table(settings, ORDERS).read().to_pandas()
    week = plan.test[-1]
    end = week.start + WEEK
    is_in_week = orders["order_ts"].between(week.start, end, inclusive="left")
    expected = orders[is_in_week].drop_duplicates(["customer_id", "order_ts"])
    assert snapshot_rows(frame, [week]).num_rows == len(expected) > 20
    last_trained = pc.max(snapshot_rows(frame, plan.train)["event_timestamp"]).as_py()
    tested = snapshot_rows(frame, plan.test)
    assert last_trained + LABEL.horizon <= pc.min(tested["event_timestamp"]).as_py()
    by_customer = orders.groupby("customer_id")["order_ts"].apply(list)
    for row in tested.slice(0, 300).to_pylist():
        now = row["event_timestamp"]
        ages = [(now - time) / DAY for time in by_customer[row["customer_id"]]]
        assert row["lifetime_orders"] == sum(age >= 0 for age in ages)
        assert row["total_orders_30d"] == sum(0 <= age < 30 for age in ages)
        assert row["label"] == any(-30 <= age < 0 for age in ages)


def test_a_batch_scores_the_rows_of_the_day_whose_label_is_not_known(
    settings, again, tmp_path
):
    orders = raw_table(settings, ORDERS).read().to_pandas()
    moment = orders["order_ts"].max().to_pydatetime() + DAY / 24
    scored_spec = SPEC.model_copy(update={"scores": Scores(to=str(tmp_path / "out"))})
    report = score_population(settings, scored_spec, moment)
    young = orders[orders["order_ts"] > moment - DAY]
    refs = young.groupby(["customer_id", "order_ts"])["order_id"].min()
    rows = parquet.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == len(refs) == report.rows > 0
    for row in rows:
        assert row["order_ref"] == refs[row["customer_id"], row["event_timestamp"]]
        assert row["as_of"] == moment
        assert 0 < row["probability"] < 1
    known = moment + LABEL.horizon + LABEL.lateness + DAY
    with pytest.raises(NoRequestError, match="again: label again_30d: expected rows"):
        score_population(settings, SPEC, known)


def test_a_batch_scores_the_rows_of_a_table_that_is_named(settings, again, tmp_path):
    orders = raw_table(settings, ORDERS).read().sort_by([("order_ts", "descending")])
    customers = orders["customer_id"].unique()[:3]
    # By then their last orders are older than the windows of features.
    coming = AS_OF + 60 * DAY
    rows = pa.table(
        {
            "customer_id": pa.concat_arrays([customers, customers]),
            "order_ref": pa.array([1, 2, 3, 4, 5, 6]),
            "event_timestamp": pa.array([coming] * 6, TIME_TYPE),
            "remark": pa.array([None] * 6, pa.string()),
            # A team's column never takes a feature's place.
            **{name: pa.array([1e6] * 6) for name in FEATURES},
        }
    )
    source = tmp_path / "tomorrow.parquet"
    parquet.write_table(rows, source)
    to = Scores.model_validate({"to": str(tmp_path / "out"), "from": str(source)})
    scored_spec = SPEC.model_copy(update={"scores": to})
    assert score_population(settings, scored_spec, AS_OF).rows == 6
    written = parquet.read_table(tmp_path / "out").to_pandas()
    assert sorted(written["order_ref"]) == [1, 2, 3, 4, 5, 6]
    assert (written["event_timestamp"] == coming).all()
    # As /predict would answer now: nothing is known of that time.
    keys = pa.table({"customer_id": customers})
    moments = pa.array([AS_OF] * 3, TIME_TYPE)
    now = keys.append_column("event_timestamp", moments)
    now = now.append_column("label", pa.array([0] * 3))
    frame = with_features(settings, SPEC, now)
    for name in FEATURES:
        now = now.append_column(name, pa.array([1e6] * 3))
    assert with_features(settings, SPEC, now).equals(frame)
    expected = version_scores(settings, SPEC, "1", frame).rounded().top
    by_customer = dict(zip(frame["customer_id"].to_pylist(), expected, strict=True))
    for row in written.to_dict("records"):
        assert row["probability"] == by_customer[row["customer_id"]]

    parquet.write_table(rows.drop_columns(["order_ref", "event_timestamp"]), source)
    message = r"again: .*tomorrow.parquet: order_ref: expected int64, found no such col"
    with pytest.raises(DataError, match=message):
        score_population(settings, SPEC, AS_OF, str(source))
    epoch = pa.array([1_700_000_000] * 6)
    times = rows.drop_columns("event_timestamp").append_column("event_timestamp", epoch)
    parquet.write_table(times, source)
    message = r"event_timestamp: expected times, found int64"
    with pytest.raises(DataError, match=message):
        score_population(settings, SPEC, AS_OF, str(source))
    parquet.write_table(rows.drop_columns("event_timestamp"), source)
    assert score_population(settings, SPEC, AS_OF, str(source)).rows == 6


def test_the_monitor_compares_with_evaluated_rows_and_takes_outcomes_from_feedback(
    settings, tracking, again
):
    evaluation = load_evaluation(tracking, again.run_id)
    reference = load_reference(settings, Registry(settings).version(SPEC.name, "1"))
    assert len(reference.rows) == evaluation.rows
    snapshot = reference.snapshot
    assert backfilled_outcomes(settings, SPEC, "1", snapshot, AS_OF) is None
    outcomes = backfilled_outcomes(settings, SPEC, "1", snapshot - 8 * WEEK, AS_OF)
    metrics = {item.metric: item.value for item in measure(SPEC, outcomes, {})}
    for name in ("auc", "log_loss", "f1"):
        assert metrics[name] == pytest.approx(evaluation.challenger[name], abs=1e-6)
    answers = about([("4", None), ("4", None)])
    labels, _ = read_actuals(
        SPEC, label_source(settings, SPEC), answers, {"r0": 1.0}, AS_OF
    )
    assert np.isnan(labels).tolist() == [False, True]


def about(rows, moment=AS_OF - 200 * DAY):
    """Answers about customers and orders, in the form of `predictions`."""
    columns = {
        "request_id": [f"r{number}" for number in range(len(rows))],
        "entity": [entity for entity, _ in rows],
        "as_of": pa.array([moment] * len(rows), TIME_TYPE),
        "request_data": [
            json.dumps({"order_ref": ref} if ref else {}) for _, ref in rows
        ],
    }
    return pa.table(columns)


def test_outcomes_arrive_with_the_rows_of_the_label_that_answers_name(
    settings, tracking, again
):
    frame, plan = load_frame(tracking, again.run_id)
    orders = raw_table(settings, ORDERS).read().to_pandas()
    refs = orders.groupby(["customer_id", "order_ts"])["order_id"].min()
    tested = snapshot_rows(frame, plan.test).slice(0, 40).to_pylist()
    asked = [
        (str(row["customer_id"]), int(refs[row["customer_id"], row["event_timestamp"]]))
        for row in tested
    ]
    expected = [float(row["label"]) for row in tested]
    answers = about([*asked, ("4", 10**12), ("4", None), (None, 7)])
    labels, ambiguous = read_actuals(
        SPEC, label_source(settings, SPEC), answers, {"r41": 1.0}, AS_OF
    )
    assert labels.tolist() == pytest.approx(
        [*expected, np.nan, 1.0, np.nan], nan_ok=True
    )
    assert ambiguous == 0

    # Without a key, an answer is about the row of its very moment.
    keyless = SPEC.model_copy(update={"outcome_key": None})
    row = tested[0]
    answers = about([(str(row["customer_id"]), None)], row["event_timestamp"])
    labels, _ = read_actuals(
        keyless, label_source(settings, keyless), answers, {}, AS_OF
    )
    assert labels.tolist() == [row["label"]]
    answers = about([(str(row["customer_id"]), None)], row["event_timestamp"] + DAY / 7)
    labels, _ = read_actuals(
        keyless, label_source(settings, keyless), answers, {}, AS_OF
    )
    assert np.isnan(labels).all()


def test_an_answer_that_fits_two_rows_of_the_label_is_unknown_and_counted(settings):
    ORDERS.labels["same"] = replace(
        LABEL, expression=lambda orders: again_30d(orders).mutate(order_ref=1)
    )
    spec = SPEC.model_copy(update={"label": "same"})
    customers = raw_table(settings, ORDERS).read()["customer_id"].value_counts()
    usual = next(row["values"] for row in customers.to_pylist() if row["counts"] > 20)
    try:
        answers = about([(str(usual), 1), ("-5", 1)])
        labels, ambiguous = read_actuals(
            spec, label_source(settings, spec), answers, {"r0": 0.0}, AS_OF
        )
    finally:
        del ORDERS.labels["same"]
    assert labels.tolist() == pytest.approx([0.0, np.nan], nan_ok=True)
    assert ambiguous == 1


def test_each_row_of_a_label_counts_once_in_a_figure():
    answers = about([("4", 1), ("4", 2), ("4", 1), ("5", 1), ("4", None), (None, 1)])
    keys = units(SPEC, answers)
    is_last = keys["entity"].isna() | ~keys.duplicated(keep="last")
    assert is_last.tolist() == [False, True, True, True, True, True]


def test_a_label_without_the_column_of_the_outcome_key_is_refused(settings):
    spec = SPEC.model_copy(update={"outcome_key": {"ref": "int64"}})
    with pytest.raises(
        DataError, match=r"again.toml: outcome_key: ref: expected a col"
    ):
        train(settings, spec, AS_OF, "no ref")
