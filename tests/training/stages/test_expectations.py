"""A training begins with Great Expectations on the raw rows that it is pinned to."""

import json
import shutil
from datetime import timedelta

import pyarrow as pa
import pytest

from core.errors import TrainingError
from feature_engine.ingest import landing
from feature_engine.ingest.pinned_rows import validate_rows
from feature_engine.offline.raw import raw_table
from feature_repo import rules
from feature_repo.rules import EXPECTATIONS
from mlflow_server.api.tracking import Tracking
from tests.conftest import AS_OF, new_settings
from tests.support.feature_engine.shop import order
from tests.support.feature_engine.suites import RULES_OF_DELIVERIES, RULES_OF_ROWS
from tests.support.training.chains import open_run
from tests.training.conftest import ORDERS, SPEC
from training.artifacts import artifact_bytes

BETWEEN = "expect_column_values_to_be_between"
DAY = timedelta(days=1)


@pytest.fixture
def suites(tmp_path, monkeypatch):
    """A copy of the suites, to be changed."""
    folder = tmp_path / "expectations"
    shutil.copytree(EXPECTATIONS, folder)
    monkeypatch.setattr(rules, "EXPECTATIONS", folder)
    return folder


def add_rule(suites, expectation=BETWEEN, **kwargs):
    file = suites / "orders.json"
    suite = json.loads(file.read_text())
    suite["expectations"].append({"type": expectation, "kwargs": kwargs})
    file.write_text(json.dumps(suite))


@pytest.fixture
def shop(tmp_path, suites):
    """Settings, and a function that lands orders."""
    settings = new_settings(tmp_path / "home")
    table = raw_table(settings, ORDERS)

    def add(*orders):
        rows = pa.Table.from_pylist([*orders], ORDERS.schema)
        rows = rows.append_column("ingested_at", rows[ORDERS.event_time])
        table.merge(rows, ORDERS.key, ORDERS.schema.names)

    add(*(order(number, number, AS_OF - 400 * DAY) for number in range(1, 101)))
    return settings, add


def validate(shop, as_of=AS_OF):
    settings, _ = shop
    version = raw_table(settings, ORDERS).version
    return validate_rows(settings, ORDERS, version, as_of)


def test_rows_of_old_rules_are_held_against_those_of_today(shop, suites):
    # Rules of a delivery are not applied: the newest order is 400 days old, and must be fresh.
    assert validate(shop).words == "100 rows of version 0 pass 10 rules"
    add_rule(suites, column="order_id", max_value=90)
    result = validate(shop)
    # Values of rows are on the page alone, which `gyre forget` deletes.
    assert result.rejections == (f"{BETWEEN}(order_id): 10 rows",)
    assert "order_id" in result.page
    add_rule(suites, column="order_id", max_value=90, mostly=0.5)


def test_a_rule_with_mostly_counts_the_rows_that_break_it(shop, suites):
    add_rule(suites, column="order_id", max_value=75, mostly=0.7)
    expected = "100 rows of version 0 pass 11 rules; rows that break one, within its `mostly`: 25"
    assert validate(shop).words == expected
    add_rule(suites, column="order_id", max_value=75, mostly=0.8)
    assert validate(shop).rejections


@pytest.mark.parametrize(("rule", "bad_value"), RULES_OF_ROWS)
def test_each_kind_of_rule_of_single_rows_ends_a_training(
    shop, suites, rule, bad_value
):
    _, add = shop
    add(order(101, 1, AS_OF - DAY) | {"number_of_cds": bad_value})
    add_rule(suites, rule["type"], **rule["kwargs"])
    assert f"{rule['type']}(number_of_cds): 1 rows" in validate(shop).rejections


@pytest.mark.parametrize(("rule", "_message"), RULES_OF_DELIVERIES)
def test_no_rule_over_many_rows_is_applied_to_a_table(shop, suites, rule, _message):
    _, add = shop
    add(*(order(n, 7, AS_OF - DAY) | {"number_of_cds": 9} for n in range(101, 200)))
    add_rule(suites, rule["type"], **rule["kwargs"])
    assert validate(shop).words == "199 rows of version 1 pass 10 rules"


def test_only_rows_at_or_before_as_of_are_judged(shop, suites):
    _, add = shop
    add_rule(suites, column="order_id", max_value=100)
    add(order(101, 1, AS_OF))
    assert validate(shop, AS_OF - DAY).words.startswith("100 rows of version 1 pass")
    assert validate(shop).rejections


@pytest.mark.parametrize("batch_rows", [50, 1000])
def test_a_key_that_is_there_twice_stops_a_training(shop, monkeypatch, batch_rows):
    settings, _ = shop
    monkeypatch.setattr(landing, "BATCH_ROWS", batch_rows)
    table = raw_table(settings, ORDERS)
    table._append(table.read().slice(3, 1))
    (text,) = validate(shop).rejections
    assert text == "expect_column_values_to_be_unique(order_id): 2 rows"


def test_a_result_is_kept_for_the_same_rows_and_rules(shop, suites, monkeypatch):
    _, add = shop
    found = validate(shop)
    with monkeypatch.context() as patched:
        patched.setattr(rules.DatasetRules, "validate", None)
        assert validate(shop) == found
        assert validate(shop, AS_OF - DAY) == found
        add_rule(suites, column="order_id", max_value=1000)
        with pytest.raises(TypeError):
            validate(shop)
    assert validate(shop).words.endswith("pass 11 rules")
    add(order(101, 1, AS_OF - DAY))
    assert validate(shop).words.startswith("101 rows")


def test_a_failing_rule_ends_the_training_with_a_page_in_mlflow(tracked, suites):
    # Other tests of this MLflow have learnt from the same rows.
    spec = SPEC.model_copy(update={"seed": 8})
    passed = Tracking(tracked).run(open_run(tracked, spec, AS_OF, "passes"))
    assert "pass 10 rules" in passed.tags["gyre.expectations.orders"]
    add_rule(suites, column="dollar_value", max_value=30)
    with pytest.raises(TrainingError, match=rf"{BETWEEN}\(dollar_value\)") as raised:
        open_run(tracked, SPEC.model_copy(update={"seed": 9}), AS_OF, "stricter")
    tracking = Tracking(tracked)
    runs = [run for run in tracking.runs(SPEC.experiment) if run.key == "stricter"]
    assert [run.status for run in runs] == ["FAILED"]
    assert "expectations/orders.json" in runs[0].tags["outcome"]
    page = "expectations/orders.html"
    link = f"/runs/{runs[0].run_id}/artifacts/{page}"
    assert link in str(raised.value)
    assert b"dollar_value" in artifact_bytes(tracking, runs[0].run_id, page)


def test_another_try_judges_the_rows_that_the_first_one_pinned(tracked, suites):
    spec = SPEC.model_copy(update={"seed": 11})
    rule = suites / "orders.json"
    before = rule.read_text()
    add_rule(suites, column="dollar_value", max_value=30)
    with pytest.raises(TrainingError, match="breaks a rule"):
        open_run(tracked, spec, AS_OF - DAY, "tries")
    rule.write_text(before)
    table = raw_table(tracked, ORDERS)
    pinned_version = table.version
    row = table.read().slice(5, 1)
    table.merge(row, ORDERS.key, ORDERS.schema.names)
    run_id = open_run(tracked, spec, AS_OF, "tries")
    words = Tracking(tracked).run(run_id).tags["gyre.expectations.orders"]
    assert f"of version {pinned_version} pass" in words
