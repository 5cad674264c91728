"""Requests with events, and the features that follow."""

import time
from datetime import UTC, datetime

import pytest

URL = "/events/orders"
NEW = 900_000
"""Keys of orders and customers that the shipped file does not have begin here."""


def order(number, customer, amount=10.0, **changed):
    return {"order_id": NEW + number, "customer_id": customer, "dollar_value": amount,
            "number_of_cds": 1, "order_ts": datetime.now(UTC).isoformat(), **changed}  # fmt: skip


def soon(read, expected):
    """Wait until `read` returns what is expected."""
    end = time.monotonic() + 900
    value = read()
    while value != expected:
        assert time.monotonic() < end, f"expected {expected}, found {value}"
        time.sleep(0.02)
        value = read()


def accepts(served, events, count=1):
    answer = served.client.post(URL, json=events)
    assert (answer.status_code, answer.json()["accepted"]) == (202, count)


@pytest.fixture
def features(rig, served):
    """Return a feature that a customer is scored with; None: nobody knows the customer."""

    def feature(customer, name="lifetime_orders"):
        answer = rig.predict_online(served.client, customer)
        if answer.status_code == 404:
            return None
        return rig.row_of(answer)["features"][name]

    return feature
