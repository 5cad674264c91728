"""The page of a dataset: rules, ingests, events that were posted, and who reads it."""

import json
import re
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace

import pytest

from core.errors import BatchRejectedError
from core.files import replace_file
from feature_engine.events.broker import consumer_lags
from feature_engine.ingest.record import RECORD, read_record, record_file
from tests.conftest import wait_until
from tests.support.feature_engine.installation import applied, suite, template  # noqa: F401  (fixtures)
from tests.support.feature_engine.shop import DAY, HOUR, order, shop  # noqa: F401  (a fixture)
from tests.support.monitoring.page_text import one_line, plain
from tests.support.serving import event_requests
from tests.support.serving.console import console as start_console

pytestmark = pytest.mark.journey

MODEL = "customer_churn_model"
CUSTOMER = event_requests.NEW + 500
REASONS = {
    "missing": "a column is missing 1",
    "extra_forbidden": "a column that the dataset does not have 1",
    "int_type": "a value of a wrong type (int type) 1",
    "in_future": "a time more than 60 s in the future 1",
}


@pytest.fixture
def page(shop, tmp_path):
    """Return the page of the shop's orders once a text is on it."""
    home = SimpleNamespace(settings=shop.settings, folder=tmp_path)
    with start_console(home) as (client, _):

        def page():
            return one_line(client.get("/data/orders").text)

        def page_with(text):
            wait_until(text, lambda: text in page())
            return page()

        yield page_with


def test_rules_and_ingests_of_a_dataset_are_shown_also_once_a_rule_has_stopped_it(
    shop, page
):
    now = datetime.now(UTC).replace(microsecond=0)
    orders = [order(number, number, now - DAY) for number in range(1, 40)]
    shop.has(*orders, order(50, 50, now - DAY, -1.0))
    shop.ingest(now - 3 * HOUR)
    late_order = order(60, 60, now - 5 * HOUR)
    shop.has(*orders, late_order)
    shop.ingest(now - 2 * HOUR)
    newest, first = read_record(shop.settings, "orders").ingests
    assert (first.inserted, first.quarantined, first.late) == (39, 1, 0)
    assert (newest.inserted, newest.late) == (1, 1)
    text = page("0 to 10,000")
    assert f'<a href="/status/{MODEL}">{MODEL}</a>' in text
    assert "customer_features" in text
    assert text.count('<span class="pill ok">passed</span>') == 2
    allowed = "dollar_value 0 to 10,000, in 95 % of the rows as allowed 0 ok"
    assert f"between {allowed}" in plain(text)
    assert "1 row of the ingest as of" in plain(text)
    assert "mean between deliveries only dollar_value 5 to 200 10 0 ok" in plain(text)

    bad_orders = [order(number, 1, now - 2 * HOUR, -1.0) for number in range(100, 150)]
    shop.has(*orders, *bad_orders)
    with pytest.raises(BatchRejectedError):
        shop.ingest(now - HOUR)
    text = page("was stopped, nothing was changed")
    assert text.count('<span class="pill attention">stopped</span>') == 3
    assert (
        "expect_column"
        not in text.partition('id="rules"')[2].partition("</section>")[0]
    )
    stopped = (
        "dollar_value 0 to 10,000, in 95 % of the rows 50 rows, such as -1 0 stopped"
    )
    assert stopped in plain(text)


def test_rows_that_a_rule_sets_aside_are_counted_in_its_line(shop, page):
    now = datetime.now(UTC).replace(microsecond=0)
    orders = [order(number, number, now - DAY) for number in range(1, 40)]
    shop.has(*orders, order(50, 50, now - DAY, -1.0), order(51, 51, None))
    shop.ingest(now)
    text = plain(page("set aside</span>"))
    assert "10,000, in 95 % of the rows such as -1 1 set aside" in text
    assert "order_ts not null, in 95 % of the rows null 1 set aside" in text


def test_rules_over_several_columns_have_rows_as_examples(shop, page, suite):
    now = datetime.now(UTC).replace(microsecond=0)
    pair = {"column_A": "order_id", "column_B": "customer_id", "mostly": 0.5}
    columns = {"column_list": ["customer_id", "number_of_cds"]}
    suite(
        {"type": "expect_column_pair_values_a_to_be_greater_than_b", "kwargs": pair},
        {
            "type": "expect_compound_columns_to_be_unique",
            "kwargs": columns,
            "severity": "warning",
        },
    )
    shop.has(*(order(number, 7, now - DAY) for number in (5, 8, 9)))
    shop.ingest(now)
    text = plain(page("rows of the ingest"))
    assert "such as [5, 7] 1 set aside" in text
    assert "customer_id&#39;: 7, &#39;number_of_cds&#39;: 1}" in text


def test_a_record_of_an_earlier_version_is_shown(shop, page):
    assert "no ingest of orders has ended yet" in page("no ingest of orders")
    now = datetime.now(UTC)
    shop.has(order(1, 1, now - DAY))
    shop.ingest(now)
    content = json.loads(RECORD.dump_json(read_record(shop.settings, "orders")))
    for name in ("ingests", "views"):
        del content[name]
    content["delivery_rules"] = ["expect_column_mean_to_be_between(dollar_value)"]
    replace_file(record_file(shop.settings, "orders"), json.dumps(content))
    (shop.settings.data_docs / "orders" / "index.json").unlink()
    text = page("No ingest is recorded yet: the next one will be.")
    assert "no results of rules are stored" in text
    assert read_record(shop.settings, "orders").watermark == now


def test_events_are_counted_accepted_and_refused_by_reason(
    rig, fast_rig, served, console
):
    with fast_rig.consuming():
        event_requests.accepts(served, event_requests.order(7_000, CUSTOMER))
        good = event_requests.order(7_001, CUSTOMER)
        for wrong in (
            {"order_id": 1},
            good | {"extra": 1},
            good | {"order_id": "<b>text</b>"},
            good | {"order_ts": "2999-01-01T00:00:00Z"},
        ):
            answer = served.client.post(event_requests.URL, json=wrong)
            assert answer.status_code == 422
        # An event that waits would be a problem on the pages of other tests.
        lags = partial(consumer_lags, rig.settings)
        wait_until("the consumer", lambda: lags()["orders"].entries == 0)
    metrics = served.client.get("/metrics").text
    refused = re.findall("gyre_events_refused_total{(.*?)}", metrics)
    labels = {f'dataset="orders",reason="{reason}"' for reason in REASONS}
    assert labels <= {*refused}
    assert "text" not in "".join(refused)

    def text():
        return plain(console.client.get("/data/orders").text)

    for words in REASONS.values():
        wait_until(words, lambda: words in text())  # noqa: B023
    # Tests of other files may have sent events to this server.
    (accepted,) = re.findall(r'gyre_events_total{dataset="orders"} (\d+)', metrics)
    assert f"accepted events {accepted} refused requests 4 " in text()
