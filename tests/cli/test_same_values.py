"""A version is served the values it was trained on, and watched on the rows that it speaks of."""

from __future__ import annotations

import json
import re
from datetime import datetime

import pytest

from feature_repo.datasets import load_dataset
from feature_repo.feast_config import write_feast_config
from feature_repo.features import raw_table
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from tests.cli.clone import Copy, few_orders
from tests.conftest import mlflow_server, new_settings, redis_server
from tests.preloaded import commands_folder
from training.artifacts import read
from training.reference import load_reference

MODEL, DATASET = "customer_churn_model", "feature_repo/datasets/orders.py"
SPEC_FILE = f"models/{MODEL}.toml"
ORDERS = load_dataset("orders")
EXPRESSION = 'Window("dollar_value", "mean", name="avg_order_value"),'
ELSEWHERE = 'TOTALS.insert(0, Window("dollar_value", "mean", name="avg_order_value"))'
"""The same window, before all others."""
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
WORD = {"GYRE_CHANGE_LIVE_FEATURES": "true"}
ONLINE = """
from datetime import UTC, datetime
from feature_repo.online import OnlineFeatures
from core.settings import load_settings

reader = OnlineFeatures(load_settings(), "customer_churn_v1", ["avg_order_value"])
print(f"online: {reader.read([{'customer_id': 4}], datetime.now(UTC))}")
"""


class Project(Copy):
    def edit(self, old, new, file=DATASET):
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def shrink(self):
        """Leave few customers and one estimator, which is enough for a version."""
        few_orders(self.folder)
        spec = self.folder / SPEC_FILE
        spec.write_text(FURTHER.sub("", spec.read_text()))
        self.edit("n_estimators = 100", "n_estimators = 20", SPEC_FILE)
        self.before = self.content()

    def restore(self):
        for name, content in self.before.items():
            (self.folder / name).write_bytes(content)

    def online(self):
        (self.folder / "online.log").write_text(ONLINE)
        return self.run("python - < online.log").rpartition("online: ")[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    settings = new_settings(folder / ".gyre", demo_start=None)
    mlflow = mlflow_server(settings, commands_folder() / "python")
    with mlflow, redis_server(settings.redis_port, settings.home):
        project = Project(folder, settings)
        project.shrink()
        write_feast_config(settings)
        project.run("cd feature_repo && feast apply")
        project.run("gyre ingest orders")
        project.edit(EVERYBODY, SOME)
        project.refused = project.run(f"gyre train {MODEL}", code=1)
        project.edit(LATENESS, STATED)
        project.trained = project.run(f"gyre train {MODEL}")
        assert "version 1 is in production" in project.trained
        yield project


@pytest.fixture
def project(trained):
    yield trained
    trained.restore()


def population(settings, moment):
    """Customers with an order in the 180 days before `moment`, from the raw rows."""
    rows = raw_table(settings, ORDERS).read(columns=["customer_id", "order_ts"])
    age = [(moment - at).days for at in rows["order_ts"].to_pylist()]
    pairs = zip(rows["customer_id"].to_pylist(), age, strict=True)
    return {customer for customer, days in pairs if 0 <= days < 180}


def test_a_label_that_some_members_lack_is_refused_without_a_reason(trained):
    assert re.search(
        r"[\d,]+ of [\d,]+ members of the population have no churned_90d\.",
        trained.refused,
    )
    assert 'Label(unlabelled="…") in orders.py' in trained.refused
    assert "have no churned_90d (every third is kept out)\n" in trained.trained


def test_training_scoring_and_monitor_speak_of_the_same_members(trained):
    settings = trained.settings
    tracking = Tracking(settings)
    version = Registry(settings).version(MODEL, "1")
    run = tracking.run(version.run_id)
    reference = load_reference(settings, version)
    members = population(settings, reference.snapshot)
    labelled = sum(customer % 3 != 0 for customer in members)
    assert len(reference.rows) == len(members) == int(run.params["test_members"])
    label_count = reference.rows["label"].notna().sum()
    assert label_count == labelled == int(run.params["test_rows"])
    text = f"{len(members) - labelled:,} of {len(members):,} members of the population have no"
    assert run.tags["unlabelled"].startswith(text)
    card = read(tracking, version.run_id, "model_card.html").decode()
    assert text in card
    scored = json.loads(trained.run(f"gyre score {MODEL} --json 2> score.log"))
    moment = datetime.fromisoformat(scored["as_of"])
    assert scored["rows"] == len(population(settings, moment))


def test_a_population_that_nobody_is_in_is_refused_before_it_trains(project):
    project.edit(
        'feature = "days_since_last_order"', 'feature = "lifetime_orders"', SPEC_FILE
    )
    project.edit("below = 180", "below = 1", SPEC_FILE)
    said = project.run(f"gyre train {MODEL}", code=1)
    assert f"{MODEL}: nobody is in the population as of " in said
    assert (
        "none has lifetime_orders from 0 to below 1. Expected values of [population]"
        in said
    )


def test_ingest_refuses_another_meaning_and_keeps_the_old_values(project):
    before = project.online()
    project.edit(EXPRESSION, ANOTHER)
    output = project.run("gyre ingest orders", code=1)
    assert re.search(
        r"customer_features \(.*avg_order_value.*\)" + re.escape(REFUSED), output
    )
    assert "GYRE_CHANGE_LIVE_FEATURES=true gyre ingest orders" in output
    assert "Traceback" not in output
    assert project.online() == before


def test_an_error_of_an_expression_is_one_line_and_its_traceback_is_in_a_log(project):
    project.edit(EVERYBODY, "filter(boom)")
    said = project.run(f"gyre train {MODEL}", code=1)
    log = project.settings.home / "logs" / "errors.log"
    wanted = rf"gyre: {DATASET}:\d+: NameError: name 'boom' is not defined\ntraceback: {log}$"
    assert re.search(wanted, said, re.MULTILINE)
    assert "Traceback" in log.read_text()


def test_the_same_windows_in_another_order_are_no_change(project):
    project.edit(EXPRESSION, "")
    project.edit("INSTANTS = [", f"{ELSEWHERE}\nINSTANTS = [")
    assert "0 new" in project.run("gyre ingest orders")
    project.restore()
    assert "0 new" in project.run("gyre ingest orders")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("None if time is None else (now - time) // day", "None if time is None else 1",
         "customer_recency (days_since_last_order, customer_tenure_days)"),
        pytest.param(
            "for window in TOTALS", 'for window in TOTALS if window.name != "lifetime_value"',
            "customer_segment), service.customer_churn_v1", marks=pytest.mark.nightly,
        ),
    ],
)  # fmt: skip
def test_what_feast_apply_publishes_reaches_no_version_without_a_word(
    project, old, new, said
):
    before = project.online()
    project.edit(old, new)
    assert said + REFUSED[:-1] in project.run("cd feature_repo && feast apply")
    assert said + REFUSED in project.run("gyre ingest orders", code=1)
    project.restore()
    project.run("cd feature_repo && feast apply")
    assert "0 new" in project.run("gyre ingest orders")
    assert project.online() == before


@pytest.mark.nightly
def test_one_field_more_is_published(project):
    project.edit("INSTANTS = [", 'INSTANTS = [Window("order_ts", "min", name="once"), ')
    project.run("cd feature_repo && feast apply")
    assert "0 new" in project.run("gyre ingest orders")
    project.restore()
    project.run("cd feature_repo && feast apply")


def test_an_explicit_word_changes_what_is_served(project):
    before = project.online()
    project.edit(EXPRESSION, ANOTHER)
    project.run("gyre ingest orders", **WORD)
    doubled = project.online()
    assert doubled != before
    assert "0 new" in project.run("gyre ingest orders")
