"""The backtest on a year of the real orders, of every eighth customer."""

from __future__ import annotations

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.backtest import CONSTANT, POLICIES, History, backtest
from core.spec import load_spec
from core.training_spec import Estimator
from feature_repo.datasets import load_dataset
from feature_repo.ingest import FAR_FUTURE, whole_history
from feature_repo.source import pull
from tests.conftest import new_settings
from training.frame import TIME

ESTIMATOR = Estimator(
    name="small", type="random_forest", parameters={"n_estimators": 10, "max_depth": 4}
)
pytestmark = pytest.mark.nightly
SPEC = load_spec("customer_churn_model").model_copy(update={"estimators": (ESTIMATOR,)})


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    home = tmp_path_factory.mktemp("history")
    orders = pull(new_settings(home), load_dataset("orders"), FAR_FUTURE).read_all()
    end = pc.min(orders["order_ts"]).as_py() + timedelta(days=400)
    is_early = pc.less_equal(orders["order_ts"], pa.scalar(end, TIME))
    is_eighth = pc.equal(pc.bit_wise_and(orders["customer_id"], 7), 0)
    file = home / "orders.parquet"
    pq.write_table(orders.filter(pc.and_(is_early, is_eighth)), file)
    settings = new_settings(home / "home", sources={"orders": str(file)})
    with whole_history(settings, SPEC, end) as (folder, last):
        yield History(folder, SPEC, last)


def test_every_policy_has_a_row_and_is_compared_with_the_frozen_model(history):
    table = backtest(history)
    assert [*table.index] == [CONSTANT, *POLICIES]
    frozen = table.loc["frozen"]
    assert (frozen["trainings"], frozen["first trigger"]) == (1, "None")
    assert frozen["minus frozen (95 %)"].startswith("+0.0000")
    assert table.loc["weekly", "trainings"] > table.loc["frozen", "trainings"]
