"""The backtest on a year of the real orders, of every eighth customer: it knows no future."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.main import typer_app
from core.errors import MonitoringError, TrainingError
from core.spec import load_spec
from core.training_spec import Estimator, Snapshots
from feature_repo.datasets import load_dataset
from feature_repo.definition import Label
from feature_repo.features import raw_table
from feature_repo.ingest import FAR_FUTURE, whole_history
from feature_repo.source import pull
from monitoring.backtest.evaluation import BACKTESTS, backtest, evaluate, table, write
from monitoring.backtest.history import History
from monitoring.backtest.policies import POLICIES, serving
from tests.conftest import new_settings
from tests.training.test_label_rows import again_30d
from training.frame import TIME, at, build_frame, features
from training.metrics import log_loss
from training.onnx_export import pipeline_scores
from training.snapshots import Snapshot
from training.train import fit_pipeline
from training.validate import plan_run

ORDERS = load_dataset("orders")
SMALL = Estimator(
    name="small", type="random_forest", parameters={"n_estimators": 10, "max_depth": 4}
)
SPEC = load_spec("customer_churn_model").model_copy(update={"estimators": (SMALL,)})
MONTHS = timedelta(days=400)


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    rows = pull(
        new_settings(tmp_path_factory.mktemp("shop")), ORDERS, FAR_FUTURE
    ).read_all()
    return rows.filter(pc.equal(pc.bit_wise_and(rows["customer_id"], 7), 0))


def until(rows, length):
    """The first `length` of the history, and when that ends."""
    end = pc.min(rows["order_ts"]).as_py() + length
    return rows.filter(pc.less_equal(rows["order_ts"], pa.scalar(end, TIME))), end


def shop(home, rows):
    home.mkdir(exist_ok=True)
    pq.write_table(rows, home / "orders.parquet")
    return new_settings(home / "home", sources={"orders": str(home / "orders.parquet")})


@pytest.fixture(scope="module")
def walked(orders, tmp_path_factory):
    """Settings, the history, and the report of a backtest."""
    rows, end = until(orders, MONTHS)
    settings = shop(tmp_path_factory.mktemp("walked"), rows)
    with whole_history(settings, SPEC, end) as (beside, last):
        history = History(beside, SPEC, ORDERS, last)
        yield settings, history, evaluate(history)


def test_a_training_and_a_monitoring_run_see_nothing_that_was_not_known_at_that_moment(
    walked, orders, tmp_path
):
    _, whole, _ = walked
    name = whole.newest(whole.weeks[16])
    moment = whole.known[name]
    later = orders.filter(pc.greater(orders["order_ts"], pa.scalar(moment, TIME)))
    assert later.num_rows > 500
    rows, _ = until(orders, moment - pc.min(orders["order_ts"]).as_py())
    settings = shop(tmp_path / "shop", rows)
    with whole_history(settings, SPEC, moment) as (beside, _):
        then = History(beside, SPEC, ORDERS, moment)
        assert then.newest(moment) == name
        assert then.model(name).served == whole.model(name).served
        assert then.model(name).threshold == whole.model(name).threshold
        week = then.weeks[-1]
        assert week <= moment
        now = [Snapshot(week, week)]
        assert at(then.windows, now).equals(at(whole.windows, now))
        first = whole.newest(whole.start)
        for policy in ("drift-triggered", "outcome-triggered"):
            seen = then.monitor(first, policy, week)
            assert seen == whole.monitor(first, policy, week)
            assert seen[0] != "insufficient_data"


def test_one_frame_holds_the_rows_of_separate_ones_and_a_model_scores_them(walked):
    _, history, report = walked
    beside, as_of = history.settings, history.weeks[8]
    version = raw_table(beside, ORDERS).version
    plan = plan_run(beside, SPEC, ORDERS, as_of, version)
    frame = build_frame(beside, SPEC, ORDERS, plan.snapshots, as_of, version)
    assert frame.equals(at(history.frame, plan.snapshots))
    pipeline = fit_pipeline(SPEC, SMALL, at(frame, plan.train))
    for month, scored in report.months.items():
        rows = build_frame(
            beside, SPEC, ORDERS, [Snapshot(month, month)], history.end, version
        )
        loss = log_loss(
            rows["label"].to_numpy(), pipeline_scores(pipeline, features(SPEC, rows))
        )
        assert history.loss(plan.test[-1].start, month) == pytest.approx(loss, abs=1e-5)
        assert scored.rows == rows.num_rows


def test_the_report_adds_up_and_lies_in_its_folder_and_nothing_else_does(walked):
    settings, history, report = walked
    folder = write(settings, report)
    assert BACKTESTS.validate_json((folder / "backtest.json").read_bytes()) == report
    assert (folder / "backtest.md").read_text() == f"{table(report)}\n"
    assert (folder / "backtest.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in settings.home.iterdir()] == ["backtest"]
    by_name = {result.policy: result for result in report.results}
    frozen, weekly = by_name["frozen"], by_name["weekly"]
    assert (frozen.trainings, frozen.minus_frozen.value) == (1, 0)
    assert {step.serves for step in frozen.steps} == {history.newest(history.start)}
    assert (
        weekly.trainings
        == len({step.trained for step in weekly.steps if step.trained})
        > 1
    )
    assert weekly.seconds == pytest.approx(
        sum(
            history.model(step.trained).seconds for step in weekly.steps if step.trained
        )
    )
    for result in report.results:
        losses = [history.loss(serving(result.steps, m), m) for m in report.months]
        assert result.metrics["log_loss"] == pytest.approx(np.mean(losses))
        assert (
            result.minus_frozen.low
            <= result.minus_frozen.value
            <= result.minus_frozen.high
        )


@pytest.mark.parametrize(
    ("days", "error", "said"),
    [
        (150, TrainingError, "nothing to train on"),
        (230, MonitoringError, "history too short"),
    ],
)
def test_a_history_too_short_is_said(orders, tmp_path, days, error, said):
    rows, end = until(orders, timedelta(days=days))
    settings = shop(tmp_path / "shop", rows)
    with pytest.raises(error, match=said):
        backtest(settings, SPEC, end)
    assert [path.name for path in settings.home.glob("*/*")] == []


def test_an_unknown_model_is_one_line():
    done = CliRunner().invoke(typer_app, ["backtest", "no_such_model"])
    assert "no model 'no_such_model': models/ has customer_churn_model" in str(
        done.exception
    )


def test_a_label_with_rows_of_its_own_is_walked_too(orders, tmp_path):
    """By the month, two of them a test: a window is a week's rows, outcomes are a month's."""
    label = Label(again_30d, horizon=timedelta(days=30), lateness=timedelta(days=2))
    features_ = {
        n: kind for n, kind in SPEC.features.items() if n != "days_since_last_order"
    }
    snapshots = Snapshots(every="month", train=3, test=2, rows="label")
    own = {
        "label": "again",
        "population": None,
        "snapshots": snapshots,
        "features": features_,
    }
    spec = SPEC.model_copy(update=own)
    rows, end = until(orders, timedelta(days=330))
    ORDERS.labels["again"] = label
    try:
        with whole_history(shop(tmp_path / "shop", rows), SPEC, end) as (beside, last):
            history = History(beside, spec, ORDERS, last)
            report = evaluate(history)
    finally:
        del ORDERS.labels["again"]
    week = history.weeks[3]
    window = at(history.windows, [Snapshot(week - timedelta(weeks=1), week)])
    assert 0 < window.num_rows < len(rows)
    assert pc.max(window["event_timestamp"]).as_py() <= week
    for month, scored in report.months.items():
        period = next(each for each in history.snapshots if each.start == month)
        assert scored.rows == at(history.frame, [period]).num_rows > 0
        fresh = history.newest(month)
        assert history.known[fresh] <= month
        assert all(history.known[tested] <= month for tested in history.tested(fresh))
    assert {result.policy for result in report.results} == {*POLICIES}
