"""Rows in quarantine: listed, mended at the source, or released once the rule is mended."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from cli.main import typer_app
from feature_repo import validation
from feature_repo.quarantine import quarantine, quarantine_table, quarantined, release
from tests.feature_repo.test_ingest import DAY, HOUR, ORDERS, order, shop  # noqa: F401  (a fixture)

NEGATIVE = "expect_column_values_to_be_between(dollar_value)"
CDS = "expect_column_values_to_be_between(number_of_cds)"


def test_a_row_is_listed_with_its_rule_and_lands_once_it_is_mended(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    (row,) = quarantined(shop.settings, ORDERS)
    assert row["rules"] == NEGATIVE
    assert (row["quarantined_at"], row["row"]["order_id"]) == (as_of, 2)
    assert shop.online(as_of, 7)[0]["lifetime_orders"] == 1
    again = shop.ingest(as_of + HOUR)
    assert (again.inserted, again.replaced, again.quarantined) == (0, 0, 0)

    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, 5.0))
    later = as_of + 2 * HOUR
    assert shop.ingest(later).inserted == 1
    assert shop.online(later, 7)[0]["lifetime_value"] == 15.0
    assert quarantined(shop.settings, ORDERS) == [row]


@pytest.fixture
def amounts_down_to_minus_ten(tmp_path, monkeypatch):
    """A function that mends the suite of the orders as a person would."""

    def mend():
        text = (validation.EXPECTATIONS / "orders.json").read_text()
        old = '"dollar_value", "min_value": 0'
        assert old in text
        (tmp_path / "orders.json").write_text(text.replace(old, '"dollar_value", "min_value": -10'))
        monkeypatch.setattr(validation, "EXPECTATIONS", tmp_path)

    return mend


def amounts(pairs):
    return [(row["dollar_value"], stored["dollar_value"]) for row, stored in pairs]


def test_rows_of_a_mended_rule_are_released_and_stay_although_the_source_repeats_them(
    shop,  # noqa: F811
    as_of,
    amounts_down_to_minus_ten,
):
    moment = as_of - DAY + timedelta(microseconds=1)
    shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, moment, -5.1), order(3, 8, moment, -50.0))
    shop.ingest(as_of)
    assert release(shop.settings, ORDERS, as_of + HOUR).released == 0
    amounts_down_to_minus_ten()
    report = release(shop.settings, ORDERS, as_of + HOUR)
    assert (report.released, report.broken, report.unreadable) == (1, 1, 0)
    assert report.conflicts == []
    (landed,) = [row for row in shop.raw() if row["order_id"] == 2]
    assert (landed["ingested_at"], landed["order_ts"]) == (as_of + HOUR, moment)
    assert landed["dollar_value"] == -5.1
    assert [row["row"]["order_id"] for row in quarantined(shop.settings, ORDERS)] == [3]
    later = shop.ingest(as_of + 2 * HOUR, full=True)
    assert (later.inserted, later.replaced, later.quarantined) == (0, 0, 0)
    assert shop.online(as_of + 2 * HOUR, 7)[0]["lifetime_value"] == pytest.approx(4.9)


def test_a_row_whose_key_has_landed_meanwhile_is_shown_beside_it_and_changes_nothing(
    shop,  # noqa: F811
    as_of,
    amounts_down_to_minus_ten,
):
    first = order(1, 7, as_of - 2 * DAY)
    shop.has(first, order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    shop.has(first, order(2, 7, as_of - DAY, 5.0))
    shop.ingest(as_of + HOUR)
    before = shop.raw()
    amounts_down_to_minus_ten()
    report = release(shop.settings, ORDERS, as_of + 2 * HOUR)
    assert report.released == 0
    assert amounts(report.conflicts) == [(-5.0, 5.0)]
    assert shop.raw() == before
    assert len(quarantined(shop.settings, ORDERS)) == 1


def test_the_command_says_what_was_released_and_what_stays(
    shop,  # noqa: F811
    as_of,
    amounts_down_to_minus_ten,
):
    first = order(1, 7, as_of - DAY)
    shop.has(first, order(2, 7, as_of - DAY, -5.0), order(3, 8, as_of - DAY, -50.0),
             order(4, 8, as_of - DAY, -2.0))  # fmt: skip
    shop.ingest(as_of)
    shop.has(first, order(4, 8, as_of - DAY, 2.0))
    shop.ingest(as_of + HOUR)
    amounts_down_to_minus_ten()
    # Times of the test lie ahead of the clock by which the command judges them.
    rules = json.loads((validation.EXPECTATIONS / "orders.json").read_text())
    timeless = [rule for rule in rules["expectations"] if "as_of" not in json.dumps(rule)]
    suite = json.dumps(rules | {"expectations": timeless})
    (validation.EXPECTATIONS / "orders.json").write_text(suite)
    settings = {"GYRE_HOME": str(shop.settings.home)}
    run = CliRunner().invoke(typer_app, ["quarantine", "release"], env=settings)
    assert run.exit_code == 0, run.output
    lines = run.stdout.splitlines()
    assert lines[:4] == [
        "orders: 1 rows released; now: gyre ingest orders",
        "1 rows still break a rule and stay",
        "0 entries are no rows of orders and stay",
        "1 rows stay, as the dataset has a row of their key",
    ]
    assert '"dollar_value": -2.0' in lines[4]
    assert '"dollar_value": 2.0' in lines[5]


def test_of_several_rows_of_a_key_the_newest_gets_in(shop, as_of, amounts_down_to_minus_ten):  # noqa: F811
    shop.has(order(1, 7, as_of - 2 * DAY))
    shop.ingest(as_of)
    for hours, amount in enumerate((-5.0, -6.0), 1):
        shop.has(order(1, 7, as_of - 2 * DAY), order(2, 7, as_of - DAY, amount))
        shop.ingest(as_of + hours * HOUR)
    amounts_down_to_minus_ten()
    report = release(shop.settings, ORDERS, as_of + 3 * HOUR)
    assert report.released == 1
    assert amounts(report.conflicts) == [(-5.0, -6.0)]


def test_a_part_of_a_rules_name_chooses_what_is_released(
    shop,  # noqa: F811
    as_of,
    amounts_down_to_minus_ten,
):
    shop.has(order(1, 7, as_of - DAY), order(2, 7, as_of - DAY, -5.0),
             order(3, 7, as_of - DAY, 5.0, 2_000), order(4, 7, as_of + DAY))  # fmt: skip
    assert shop.ingest(as_of).quarantined == 3
    amounts_down_to_minus_ten()
    report = release(shop.settings, ORDERS, as_of + HOUR, "number_of_cds")
    assert (report.released, report.broken) == (0, 1)
    report = release(shop.settings, ORDERS, as_of + HOUR, "dollar_value")
    assert (report.released, report.broken) == (1, 0)
    assert release(shop.settings, ORDERS, as_of + 2 * DAY).released == 1, "its time has come"


def test_what_is_no_row_of_the_dataset_stays_and_is_counted(shop, as_of):  # noqa: F811
    shop.has(order(1, 7, as_of - DAY), order(2, 7, as_of - DAY, -5.0))
    shop.ingest(as_of)
    request = json.dumps({"entry": "1-1", "events": "no events"})
    other_columns = json.dumps({"order_id": 5, "coupon": "X"})
    other_type = json.dumps(dict.fromkeys(sorted(ORDERS.schema.names), "text"))
    aside = quarantine_table(shop.settings, ORDERS)
    texts = [request, other_columns, other_type]
    quarantine(aside, texts, ["cannot be processed"] * 3, as_of)
    report = release(shop.settings, ORDERS, as_of + HOUR)
    assert (report.released, report.broken, report.unreadable) == (0, 1, 3)
    assert len(shop.aside()) == 4
