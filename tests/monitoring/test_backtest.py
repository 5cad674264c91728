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
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.history import FAR, whole_history
from feature_repo.source import pull
from monitoring.backtest import _backtest, backtest
from monitoring.backtest_history import History
from monitoring.backtest_report import BACKTESTS, table, write
from stack.errors import MonitoringError, TrainingError
from stack.spec import Estimator, load_spec
from tests.conftest import new_settings
from training.frame import TIME, at, build_frame, features
from training.metrics import log_loss
from training.onnx_export import pipeline_scores
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
    rows = pull(new_settings(tmp_path_factory.mktemp("shop")), ORDERS, FAR)
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
    with whole_history(settings, ORDERS, end) as (beside, last):
        history = History(beside, SPEC, ORDERS, last)
        yield settings, history, _backtest(history, 0)


def test_a_training_and_a_look_see_nothing_that_was_not_known_at_that_moment(
    walked, orders, tmp_path
):
    _, whole, _ = walked
    name = whole.newest(whole.weeks[16])
    moment = name + whole.wait
    later = orders.filter(pc.greater(orders["order_ts"], pa.scalar(moment, TIME)))
    assert later.num_rows > 500
    rows, _ = until(orders, moment - pc.min(orders["order_ts"]).as_py())
    settings = shop(tmp_path / "shop", rows)
    with whole_history(settings, ORDERS, moment) as (beside, _):
        then = History(beside, SPEC, ORDERS, moment)
        assert then.newest(moment) == name
        assert then.model(name).onnx == whole.model(name).onnx
        assert then.model(name).threshold == whole.model(name).threshold
        week = then.weeks[-1]
        assert week <= moment
        assert at(then.windows, [week]).equals(at(whole.windows, [week]))
        first = whole.newest(whole.start)
        for trigger in ("drift", "outcomes"):
            seen = then.look(first, trigger, week)
            assert seen == whole.look(first, trigger, week)
            assert seen[0] != "insufficient_data"


def test_one_frame_holds_the_rows_of_separate_ones_and_the_matrix_their_scores(walked):
    _, history, report = walked
    beside, as_of = history.settings, history.weeks[8]
    version = raw_table(beside, ORDERS).version
    plan = plan_run(beside, SPEC, ORDERS, as_of, version)
    frame = build_frame(beside, SPEC, ORDERS, plan.moments, as_of, version)
    assert frame.equals(at(history.frame, plan.moments))
    pipeline = fit_pipeline(SPEC, SMALL, at(frame, plan.train))
    for month in report.rows:
        rows = build_frame(beside, SPEC, ORDERS, [month], history.end, version)
        loss = log_loss(rows["label"].to_numpy(), pipeline_scores(pipeline, features(SPEC, rows)))
        assert report.matrix[plan.test][month]["log_loss"] == pytest.approx(loss, abs=1e-5)
        assert report.rows[month] == rows.num_rows


def test_the_report_adds_up_and_lies_in_its_folder_and_nothing_else_does(walked):
    settings, _, report = walked
    folder = write(settings, report)
    assert BACKTESTS.validate_json((folder / "backtest.json").read_bytes()) == report
    assert (folder / "backtest.md").read_text() == f"{table(report)}\n"
    assert (folder / "backtest.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in settings.home.iterdir()] == ["backtest"]
    by_name = {result.policy: result for result in report.results}
    frozen, weekly = by_name["frozen"], by_name["weekly"]
    assert (frozen.trainings, frozen.minus_frozen.value) == (1, 0)
    assert set(frozen.serves.values()) == {min(report.models)}
    assert weekly.trainings == len({step.trained for step in weekly.steps if step.trained}) > 1
    assert weekly.seconds == pytest.approx(
        sum(report.models[step.trained].seconds for step in weekly.steps if step.trained)
    )
    for result in report.results:
        losses = [report.matrix[result.serves[m]][m]["log_loss"] for m in report.rows]
        assert result.metrics["log_loss"] == pytest.approx(np.mean(losses))
        assert result.minus_frozen.low <= result.minus_frozen.value <= result.minus_frozen.high


@pytest.mark.parametrize(
    ("days", "error", "said"),
    [(150, TrainingError, "nothing to train on"), (230, MonitoringError, "history too short")],
)
def test_a_history_too_short_is_said(orders, tmp_path, days, error, said):
    rows, end = until(orders, timedelta(days=days))
    settings = shop(tmp_path / "shop", rows)
    with pytest.raises(error, match=said):
        backtest(settings, SPEC, end)
    assert [path.name for path in settings.home.glob("*/*")] == []


def test_an_unknown_model_is_one_line():
    done = CliRunner().invoke(typer_app, ["backtest", "no_such_model"])
    assert "no model 'no_such_model': models/ has customer_churn_model" in str(done.exception)
