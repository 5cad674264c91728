"""Snapshots by the week, and labels with rows of their own: from orders to production."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from datetime import timedelta

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from core.errors import DataError, TrainingError
from core.spec import ModelSpec, load_spec
from feature_repo.datasets.orders import FEATURES as WINDOWS
from feature_repo.definition import Label
from feature_repo.features import raw_table
from mlflow_server.pages import CARD
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.checks.performance import measure
from monitoring.outcomes import actuals, backfilled_outcomes
from tests.conftest import AS_OF
from tests.training.conftest import ORDERS
from training import chain
from training.artifacts import read
from training.batch import score_population
from training.dataset import dataset, load_frame, unlearnable
from training.frame import TIME, at, build_frame, with_features
from training.gate import load_evaluation
from training.reference import load_reference
from training.reproduce import reproduce
from training.snapshots import Snapshot
from training.validate import open_run

SHIPPED = load_spec("customer_churn_model").model_dump()
FEW = {"n_estimators": 20, "max_depth": 6}
FOREST = {"name": "small", "type": "random_forest", "parameters": FEW}
OWN = {"estimators": [FOREST], "gates": SHIPPED["gates"][:1]}
WEEK, DAYS = timedelta(weeks=1), timedelta(days=1)
WEEKLY = ModelSpec.model_validate(
    SHIPPED
    | OWN
    | {"name": "weekly", "experiment": "weekly"}
    | {"snapshots": {"every": "week", "train": 8, "test": 3}}
)
FEATURES = {
    n: kind for n, kind in SHIPPED["features"].items() if n != "days_since_last_order"
}
AGAIN = ModelSpec.model_validate(
    SHIPPED
    | OWN
    | {"name": "again", "experiment": "again", "label": "again_30d", "population": None}
    | {"features": FEATURES}  # an order's own age is always 0
    | {"snapshots": {"every": "week", "train": 20, "test": 8, "rows": "label"}}
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


LABEL = Label(again_30d, horizon=30 * DAYS, lateness=2 * DAYS)


@pytest.fixture(scope="module")
def settings(tracked):
    ORDERS.labels["again_30d"] = LABEL
    yield tracked
    del ORDERS.labels["again_30d"]


def train(settings, spec, as_of, key):
    return chain.train(settings, spec, as_of, key=key, reason=key, who="test")


@pytest.fixture(scope="module")
def weekly(settings):
    return train(settings, WEEKLY, AS_OF, "weekly")


@pytest.fixture(scope="module")
def again(settings):
    return train(settings, AGAIN, AS_OF, "again")


def test_weekly_snapshots_are_trained_evaluated_gated_and_built_again(settings, weekly):
    assert weekly.version == "1", weekly.outcome
    frame, plan = load_frame(Tracking(settings), weekly.run_id)
    assert (len(plan.test), len(plan.train), len(plan.folds)) == (3, 8, 3)
    mondays = [each.start for each in plan.snapshots]
    assert {day.weekday() for day in mondays} == {0}
    assert plan.test[-1].start + 92 * DAYS <= AS_OF < plan.test[-1].start + 99 * DAYS
    assert plan.train[-1].start + 90 * DAYS <= plan.test[0].start
    tested = at(frame, plan.test)
    assert sorted(set(tested["event_timestamp"].to_pylist())) == [
        e.start for e in plan.test
    ]
    evaluation = load_evaluation(Tracking(settings), weekly.run_id)
    assert evaluation.rows == tested.num_rows
    assert evaluation.challenger["log_loss"] < evaluation.baseline["log_loss"]
    run = Tracking(settings).run(weekly.run_id)
    assert run.params["test_members"] == str(tested.num_rows)  # at each of the three
    card = read(Tracking(settings), weekly.run_id, CARD).decode()
    days = [f"{each.start:%Y-%m-%d}" for each in (plan.test[0], plan.test[-1])]
    assert f"snapshot of {days[0]} to {days[1]}: the newest" in card
    assert "members of the population, each of which has a label" in card
    again = reproduce(settings, WEEKLY.name, "1")
    assert again.reproduced, again.summary()


def test_a_version_by_the_week_has_its_reference_and_is_backfilled_on_as_many(
    settings, weekly
):
    version = Registry(settings).version(WEEKLY.name, "1")
    _, plan = load_frame(Tracking(settings), weekly.run_id)
    reference = load_reference(settings, version)
    evaluation = load_evaluation(Tracking(settings), weekly.run_id)
    assert len(reference.rows) == evaluation.rows
    assert reference.snapshot == plan.test[-1].start
    newest = reference.snapshot
    assert backfilled_outcomes(settings, WEEKLY, "1", newest, AS_OF) is None
    judged = backfilled_outcomes(settings, WEEKLY, "1", newest - 5 * WEEK, AS_OF)
    metrics = {each.metric: each.value for each in measure(WEEKLY, judged, {})}
    assert metrics["log_loss"] == pytest.approx(
        evaluation.challenger["log_loss"], abs=1e-6
    )


def test_a_label_with_rows_of_its_own_is_joined_at_the_time_of_each(settings, again):
    assert again.version == "1", again.outcome
    frame, plan = load_frame(Tracking(settings), again.run_id)
    rows = raw_table(settings, ORDERS).read()
    for snapshot in (plan.train[-1], plan.test[-1]):
        placed = rows.filter(
            pc.and_(
                pc.greater_equal(rows["order_ts"], pa.scalar(snapshot.start, TIME)),
                pc.less(rows["order_ts"], pa.scalar(snapshot.start + WEEK, TIME)),
            )
        )
        expected = placed.group_by(["customer_id", "order_ts"]).aggregate([]).num_rows
        assert at(frame, [snapshot]).num_rows == expected > 50
    last = pc.max(at(frame, plan.train)["event_timestamp"]).as_py()
    assert (
        last + LABEL.horizon <= pc.min(at(frame, plan.test)["event_timestamp"]).as_py()
    )
    assert plan.test[-1].last + LABEL.horizon + LABEL.lateness <= AS_OF
    sample = at(frame, plan.test).slice(0, 300).to_pylist()
    orders = rows.select(["customer_id", "order_ts"]).to_pandas()
    by_customer = orders.groupby("customer_id")["order_ts"].apply(list)
    for row in sample:
        placed, now = by_customer[row["customer_id"]], row["event_timestamp"]
        assert row["lifetime_orders"] == sum(time <= now for time in placed)
        assert row["total_orders_30d"] == sum(
            now - 30 * DAYS < time <= now for time in placed
        )
        assert row["label"] == any(now < time <= now + 30 * DAYS for time in placed)


def test_it_is_evaluated_gated_and_built_again_without_a_population(settings, again):
    tracking = Tracking(settings)
    evaluation = load_evaluation(tracking, again.run_id)
    assert evaluation.challenger["log_loss"] < evaluation.baseline["log_loss"]
    run = tracking.run(again.run_id)
    assert run.params["test_rows"] == run.params["test_members"] == str(evaluation.rows)
    card = read(tracking, again.run_id, CARD).decode()
    assert "It speaks of those" not in card
    assert "Tested for" not in card
    built = reproduce(settings, AGAIN.name, "1")
    assert built.reproduced, built.summary()
    with pytest.raises(
        DataError, match=r"again: expected \[population\], to say whom to score"
    ):
        score_population(settings, AGAIN, AS_OF)


def test_the_monitor_compares_with_its_rows_and_takes_outcomes_from_feedback(
    settings, again
):
    version = Registry(settings).version(AGAIN.name, "1")
    evaluation = load_evaluation(Tracking(settings), again.run_id)
    reference = load_reference(settings, version)
    assert len(reference.rows) == evaluation.rows
    assert backfilled_outcomes(settings, AGAIN, "1", reference.snapshot, AS_OF) is None
    judged = backfilled_outcomes(
        settings, AGAIN, "1", reference.snapshot - 8 * WEEK, AS_OF
    )
    assert judged.rows.num_rows == evaluation.rows
    metrics = {each.metric: each.value for each in measure(AGAIN, judged, {})}
    for name in ("auc", "log_loss", "f1"):
        assert metrics[name] == pytest.approx(evaluation.challenger[name], abs=1e-6)
    old = AS_OF - 200 * DAYS
    asked = {"request_id": ["a", "b"], "entity": ["4", "4"]}
    answered = pa.table(asked | {"as_of": pa.array([old, old], TIME)})
    found = actuals(settings, AGAIN, answered, {"a": 1.0}, AS_OF)
    assert found.tolist()[0] == 1.0
    assert found.tolist()[1] != found.tolist()[1]  # nan


def test_what_a_training_will_see_is_said_before_it_begins(settings, again, caplog):
    run_id = open_run(
        settings, AGAIN, AS_OF, key="said", reason="said", who="test", force=True
    )
    with caplog.at_level(logging.INFO, logger="training.dataset"):
        dataset(settings, AGAIN, run_id)
    Tracking(settings).end(run_id, "only opened", "FAILED")
    params = Tracking(settings).run(again.run_id).params
    rows = {name: f"{int(params[f'{name}_rows']):,}" for name in ("train", "test")}
    train, test = params["train_snapshots"], params["test_snapshot"]
    told = f"again: training on about {rows['train']} rows (20 by the week, {train}), "
    told += f"test on about {rows['test']} rows (8 by the week, {test})"
    assert any(message.startswith(told) for message in caplog.messages)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d", params["train_snapshots"]
    )


def changed(change):
    return replace(LABEL, expression=lambda orders: change(again_30d(orders)))


@pytest.mark.parametrize(
    ("label", "error", "told"),
    [
        (
            changed(lambda rows: rows.drop("event_timestamp")),
            DataError,
            "a label's rows: expected columns event_timestamp, found customer_id, amount, label",
        ),
        (
            changed(lambda rows: rows.union(rows.filter(rows.customer_id == 5))),
            TrainingError,
            r"label odd: expected one row for each customer_id, event_timestamp, found .* of 5, 2",
        ),
    ],
)
def test_rows_that_cannot_be_a_labels_are_one_line(settings, label, error, told):
    ORDERS.labels["odd"] = label
    whole = Snapshot(AS_OF - 420 * DAYS, AS_OF - 40 * DAYS)
    spec = AGAIN.model_copy(update={"label": "odd"})
    try:
        with pytest.raises(error, match=told):
            build_frame(
                settings,
                spec,
                ORDERS,
                [whole],
                AS_OF,
                raw_table(settings, ORDERS).version,
            )
    finally:
        del ORDERS.labels["odd"]


def test_a_row_before_any_feature_of_its_entity_cannot_be_a_whole_number(settings):
    early = pa.table({"customer_id": [4], "event_timestamp": pa.array([AS_OF - 900 * DAYS], TIME),
                      "label": [1]})  # fmt: skip
    frame = with_features(settings, AGAIN, early)
    lines = [line for line in unlearnable(AGAIN, frame, frame) if "is null in" in line]
    whole = [name for name, kind in FEATURES.items() if kind == "int64"]
    assert [line.split()[0] for line in lines] == whole


def test_a_count_is_a_double_by_the_remedy_of_the_message(settings):
    early = pa.table({"customer_id": [4], "event_timestamp": pa.array([AS_OF - 900 * DAYS], TIME),
                      "label": [1]})  # fmt: skip
    frame = with_features(settings, AGAIN, early)
    name = "total_orders_30d"
    (line,) = (
        line
        for line in unlearnable(AGAIN, frame, frame)
        if line.startswith(f"{name} is null")
    )
    remedy = re.search(r"derived=(\{.*?\})", line)[1]
    derived = WINDOWS.derived | eval(remedy, {"_": ibis._})
    raw = ibis.table(ibis.Schema.from_pyarrow(raw_table(settings, ORDERS).schema))
    assert str(replace(WINDOWS, derived=derived)(raw).schema()[name]) == "float64"
    spec = AGAIN.model_copy(update={"features": FEATURES | {name: "double"}})
    column = frame.schema.get_field_index(name)
    frame = frame.set_column(column, name, frame[name].cast(pa.float64()))
    assert not [
        line
        for line in unlearnable(spec, frame, frame)
        if "is null" in line and name in line
    ]
