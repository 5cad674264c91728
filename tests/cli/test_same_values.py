"""A version is served the values of its training, and is watched on the rows that it is about."""

import json
import re
from datetime import datetime

import pytest

from feature_engine.offline.raw import raw_table
from feature_repo.datasets import load_dataset
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from tests.conftest import new_settings
from tests.support.tools.clone import Copy, few_orders, fewer_trees, mlflow_and_redis
from training.evaluation.reference import load_reference

pytestmark = pytest.mark.journey

MODEL = "customer_churn_model"
DATASET = "feature_repo/datasets/orders.py"
ORDERS = load_dataset("orders")
EXPRESSION = 'Window("dollar_value", "mean", name="avg_order_value"),'
ANOTHER = 'Window(_.dollar_value * 2, "mean", name="avg_order_value"),'
REFUSED = (
    f" changed: version 1 of {MODEL} (production) was trained with another definition."
)
EVERYBODY = "filter(_.before > 0)"
SOME = "filter((_.before > 0) & (_.customer_id % 3 != 0))"
FURTHER = re.compile(
    r'\[\[estimators\]\]\nname = "hist_.*?(?=^# Rules)', re.DOTALL | re.MULTILINE
)
LATENESS = "lateness=timedelta(days=2)"
STATED = LATENESS + ', unlabelled="every third is kept out"'


class Project(Copy):
    def edit(self, old, new):
        text = (self.folder / DATASET).read_text()
        assert old in text
        (self.folder / DATASET).write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project of few customers and one estimator, with a version in production."""
    folder = tmp_path_factory.mktemp("copy")
    settings = new_settings(folder / ".gyre", demo_start=None)
    with mlflow_and_redis(settings):
        project = Project(folder, settings)
        few_orders(folder / "data" / "cdnow_orders.parquet")
        spec = folder / "models" / f"{MODEL}.toml"
        spec.write_text(FURTHER.sub("", spec.read_text()))
        fewer_trees(spec)
        project.run("cd feature_repo && feast apply")
        project.run("gyre ingest orders")
        project.edit(EVERYBODY, SOME)
        project.refusal = project.run(f"gyre train {MODEL}", code=1)
        project.edit(LATENESS, STATED)
        project.output = project.run(f"gyre train {MODEL}")
        assert "version 1 is in production" in project.output
        yield project


def population(settings, moment):
    """Customers with an order in the 180 days before `moment`, from the raw rows."""
    rows = raw_table(settings, ORDERS).read(columns=["customer_id", "order_ts"])
    ages = [(moment - time).days for time in rows["order_ts"].to_pylist()]
    pairs = zip(rows["customer_id"].to_pylist(), ages, strict=True)
    return {customer for customer, days in pairs if 0 <= days < 180}


def test_a_label_that_some_members_lack_is_refused_unless_a_reason_is_given(trained):
    count = r"[\d,]+ of [\d,]+ members of the population have no churned_90d\."
    assert re.search(count, trained.refusal)
    assert 'Label(unlabelled="…") in orders.py' in trained.refusal
    assert "have no churned_90d (every third is kept out)\n" in trained.output


def test_training_and_scoring_use_the_same_members(trained):
    settings = trained.settings
    version = Registry(settings).version(MODEL, "1")
    run = Tracking(settings).run(version.run_id)
    reference = load_reference(settings, version)
    members = population(settings, reference.snapshot)
    labelled = sum(customer % 3 != 0 for customer in members)
    assert len(reference.rows) == len(members) == int(run.params["test_members"])
    label_count = reference.rows["label"].notna().sum()
    assert label_count == labelled == int(run.params["test_rows"])
    scored = json.loads(trained.run(f"gyre score {MODEL} --json 2> score.log"))
    moment = datetime.fromisoformat(scored["as_of"])
    assert scored["rows"] == len(population(settings, moment))


def test_a_changed_definition_is_refused_by_ingest_until_it_is_allowed(trained):
    trained.edit(EXPRESSION, ANOTHER)
    output = trained.run("gyre ingest orders", code=1)
    line = r"customer_features \(.*avg_order_value.*\)" + re.escape(REFUSED)
    assert re.search(line, output)
    assert "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest orders" in output
    assert "Traceback" not in output
    trained.run("gyre ingest orders", GYRE_CHANGE_LIVE_FEATURES="true")
