"""A canary from the training of a version to production, while serving answers."""

import json
import re
from itertools import cycle, islice
from math import sqrt

import httpx
import pytest

from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger
from monitoring.trials.rollout import AUTHOR, STEP
from tests.conftest import new_settings, wait_until
from tests.serving.conftest import read_log
from tests.support.tools.clone import (
    Copy,
    few_orders,
    fewer_trees,
    mlflow_and_redis,
    serving,
)

MODEL = "customer_churn_model"
CUSTOMERS = range(1, 1500)
"""Those that `few_orders` leaves."""
FURTHER = re.compile(
    r'\[\[estimators\]\]\nname = "hist_.*?(?=^# Rules)', re.DOTALL | re.MULTILINE
)
ROLLOUT = """
[rollout]
policy = "canary"
minutes = 0
requests = 100
latency = 100
"""
"""Requests are not compared by their time: a busy machine is none of the version's faults."""
STEPS = (5, 25, 50, 100)
ENOUGH = 110
"""Requests, a few more than a judgement needs."""
ROLL_OUT = """
from datetime import UTC, datetime
from pydantic_core import to_json
from core.settings import load_settings
from core.spec import load_spec
from monitoring.trials.rollout import roll_out

spec = load_spec("customer_churn_model")
print(to_json(roll_out(load_settings(), spec, datetime.now(UTC))).decode())
"""
"""What the DAG `rollout_customer_churn_model` does every five minutes."""


class Canary(Copy):
    """A project whose spec has a canary, and customers who ask its server."""

    def roll_out(self):
        return json.loads(self.run('python -c "$ROLL_OUT"', ROLL_OUT=ROLL_OUT))

    def versions(self):
        """Return the version that answers each customer."""
        body = [{"customer_id": customer} for customer in CUSTOMERS]
        url = f"{self.settings.serving_address}/predict/batch"
        rows = httpx.post(url, json=body, timeout=60).raise_for_status().json()
        return {row["customer_id"]: row["model_version"] for row in rows}

    def challenged(self):
        """Return the customers that version 2 answers."""
        versions = self.versions()
        return {customer for customer in versions if versions[customer] == "2"}

    def follow(self, percent):
        """Wait until serving gives version 2 its share of the customers; return them."""
        deviation = sqrt(percent * (100 - percent) / 100**2 / len(CUSTOMERS))

        def is_followed():
            share = len(self.challenged()) / len(CUSTOMERS)
            return abs(share - percent / 100) <= 4 * deviation

        wait_until(f"{percent} %", is_followed)
        return self.challenged()

    def population(self):
        """Return the customers that the label is defined for, by serving's log."""
        rows = read_log(self.settings.home / "serving" / "log")
        return {int(row["entity"]) for row in rows if row["in_population"]}

    def ask(self, customers):
        """Ask for some of them, one a request, as often as a judgement needs."""
        url = f"{self.settings.serving_address}/predict"
        with httpx.Client(timeout=60) as client:
            for customer in islice(cycle(sorted(customers)), ENOUGH):
                body = {"customer_id": customer}
                client.post(url, json=body).raise_for_status()

    def judged_step(self, population, challenged):
        """Ask until the step is judged: a busy server leaves out the shadow's answers."""
        reports = []

        def is_judged():
            for customers in (population - challenged, population & challenged):
                self.ask(customers)
            reports.append(self.roll_out())
            return reports[-1]["action"] != "hold"

        wait_until("a judgement", is_judged)
        return reports[-1]

    def rows(self):
        with Ledger(self.settings) as ledger:
            return ledger.rows(MODEL)


@pytest.fixture
def project(tmp_path):
    """A project of few customers with version 1 in production, served."""
    settings = new_settings(tmp_path / ".gyre", demo_start=None)
    with mlflow_and_redis(settings):
        project = Canary(tmp_path, settings)
        few_orders(tmp_path / "data" / "cdnow_orders.parquet")
        spec = tmp_path / "models" / f"{MODEL}.toml"
        text = FURTHER.sub("", spec.read_text())
        spec.write_text(text.replace("\n[[estimators]]", f"{ROLLOUT}\n[[estimators]]"))
        fewer_trees(spec)
        project.run("cd feature_repo && feast apply")
        project.run("gyre ingest orders")
        output = project.run(f"gyre train {MODEL}")
        assert "version 1 is in production" in output, (
            "nothing is there to compare with"
        )
        with serving(settings, **project.environment):
            yield project


@pytest.mark.nightly
def test_a_trained_version_goes_through_every_step_while_serving_answers(project):
    output = project.run(f"gyre train {MODEL} --force --reason 'a second one'")
    assert "version 2 is the shadow" in output
    assert Registry(project.settings).aliases(MODEL) == {
        "production": "1",
        "shadow": "2",
    }
    assert project.challenged() == set()
    population = project.population()
    answered_before = set()
    percent = 0
    for next_percent in STEPS:
        held = project.roll_out()
        assert held["action"] == "hold", held["summary"]
        challenged = project.follow(percent)
        assert answered_before <= challenged
        step = project.judged_step(population, challenged)
        assert step["action"] == "advance", step["summary"]
        assert f"goes on to {next_percent} %: 0 of " in step["summary"]
        assert step["evidence"]["percent"] == percent
        assert step["evidence"]["challenger"]["requests"] >= 100
        row = [row for row in project.rows() if row.to_version == "2"][-1]
        assert (row.role, row.to_version) == ("challenger", "2")
        assert (row.percent, row.who, row.action) == (next_percent, AUTHOR, STEP)
        answered_before = challenged
        percent = next_percent

    everybody = project.follow(100)
    assert everybody == set(CUSTOMERS)
    done = project.judged_step(population, everybody)
    assert done["action"] == "done", done["summary"]
    goes_into_production_and_answers(project)


def goes_into_production_and_answers(project):
    settings = project.settings
    assert Registry(settings).aliases(MODEL) == {"production": "2"}
    rows = project.rows()
    assert [(row.role, row.to_version) for row in rows] == [
        ("production", "1"),
        ("shadow", "2"),
        ("challenger", "2"),
        ("shadow", None),
        ("challenger", "2"),
        ("challenger", "2"),
        ("challenger", "2"),
        ("production", "2"),
        ("challenger", None),
    ]
    steps = [row for row in rows if (row.role, row.to_version) == ("challenger", "2")]
    assert [row.percent for row in steps] == [*STEPS]
    assert all(row.applied_at for row in rows)

    def only_production_serves():
        status = httpx.get(f"{settings.serving_address}/status", timeout=60).json()
        return status["models"][MODEL]["versions"] == {"production": "2"}

    wait_until("production", only_production_serves)
    assert set(project.versions().values()) == {"2"}
    assert project.roll_out()["action"] == "nothing"
    with Alerts(settings) as alerts:
        assert [row for row in alerts.rows(MODEL) if "rollout" in row["cause"]] == []
