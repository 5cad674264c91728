"""A label with rows of its own, by the week: from orders to production."""

from datetime import timedelta

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import DataError
from core.training_spec import Snapshots
from feature_repo.definition import Label
from feature_repo.features import raw_table
from mlflow_server.registry import Registry
from monitoring.checks.performance import measure
from monitoring.outcomes import actuals, backfilled_outcomes
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS, SHIPPED, changed, train
from training.batch import score_population
from training.dataset import load_frame
from training.frame import TIME, at
from training.gate import load_evaluation
from training.reference import load_reference

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
    features=FEATURES,
    snapshots=Snapshots(every="week", train=20, test=8, rows="label"),
)


def again_30d(orders):
    """1 for an order whose customer orders again within 30 days; of one moment they are one."""
    placed = orders.group_by("customer_id", event_timestamp=orders.order_ts).agg(
        amount=orders.dollar_value.sum()
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
    assert at(frame, [week]).num_rows == len(expected) > 20
    last_trained = pc.max(at(frame, plan.train)["event_timestamp"]).as_py()
    tested = at(frame, plan.test)
    assert last_trained + LABEL.horizon <= pc.min(tested["event_timestamp"]).as_py()
    by_customer = orders.groupby("customer_id")["order_ts"].apply(list)
    for row in tested.slice(0, 300).to_pylist():
        now = row["event_timestamp"]
        ages = [(now - time) / DAY for time in by_customer[row["customer_id"]]]
        assert row["lifetime_orders"] == sum(age >= 0 for age in ages)
        assert row["total_orders_30d"] == sum(0 <= age < 30 for age in ages)
        assert row["label"] == any(-30 <= age < 0 for age in ages)


def test_a_model_without_population_refuses_scoring(settings, again):
    message = r"again: expected \[population\], to say whom to score"
    with pytest.raises(DataError, match=message):
        score_population(settings, SPEC, AS_OF)


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
    ids = {"request_id": ["a", "b"], "entity": ["4", "4"]}
    answers = pa.table(ids | {"as_of": pa.array([AS_OF - 200 * DAY] * 2, TIME)})
    labels = actuals(settings, SPEC, answers, {"a": 1.0}, AS_OF)
    assert np.isnan(labels).tolist() == [False, True]
