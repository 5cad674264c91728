"""A stack is saved while it works, and goes on elsewhere from its backup."""

import time
from datetime import UTC, datetime
from functools import partial

import httpx
import psutil
import pytest

from core.project import ENV_FILE
from feature_engine.offline.raw import raw_table
from feature_repo.datasets import load_dataset
from monitoring.decisions.store import newest_decisions
from stack.supervisor import states
from tests.conftest import at_most, new_settings, wait_until
from tests.serving.conftest import Rig
from tests.support.serving.load import under_load
from tests.support.tools.stack import MODEL, Stack

ORDER = {
    "order_id": 900_001,
    "customer_id": 20_000,
    "number_of_cds": 3,
    "dollar_value": 59.97,
}


def answers(stack):
    """Return the answers of 1,000 customers without the request ids."""
    rows = []
    with httpx.Client(base_url=stack.settings.serving_address) as client:
        for customer in range(1, 1001):
            answer = Rig.online(partial(Rig.predict, client, customer))
            rows.append(answer.raise_for_status().json() | {"request_id": None})
    return rows


def decisions(stack):
    return newest_decisions(stack.settings, MODEL)


def orders(stack):
    table = raw_table(stack.settings, load_dataset("orders"))
    return table.read()["order_id"].to_pylist()


def send_event_that_waits(stack):
    """Stop the consumer, and send an order, which stays on the stream."""
    consumer = states(stack.settings)["consumer"]["pid"]
    psutil.Process(consumer).suspend()
    event = ORDER | {"order_ts": datetime.now(UTC).isoformat()}
    url = f"{stack.settings.serving_address}/events/orders"
    assert httpx.post(url, json=event, timeout=60).status_code == 202


@pytest.mark.nightly
def test_a_stack_restored_from_a_backup_continues_the_work_of_the_first(tmp_path):
    first = Stack(new_settings(tmp_path / "first" / "home"))
    second = Stack(new_settings(tmp_path / "second" / "home"))
    folder = tmp_path / "backup"
    try:
        first.run("up")
        answers_before = answers(first)
        first.run(f"monitor {MODEL}")
        (first.settings.home / ENV_FILE).write_text("GYRE_KEEP_DAYS__SCORES=500\n")
        send_event_that_waits(first)
        ledger = first.ledger()
        decisions_before = decisions(first)
        client = httpx.Client(base_url=first.settings.serving_address)
        with client, under_load(client) as responses:
            began = time.monotonic()
            first.run(f"backup {folder}")
            backup_seconds = time.monotonic() - began
        assert {response.status for response in responses} == {200}
        assert ORDER["order_id"] not in orders(first)
        first.run("down")
        (tmp_path / "first").rename(tmp_path / "gone")

        began = time.monotonic()
        second.run(f"restore {folder}")
        second.run("up")
        restore_seconds = time.monotonic() - began
        print(f"\nbackup {backup_seconds:.1f} s, restore {restore_seconds:.1f} s")  # noqa: T201
        assert backup_seconds < at_most(60)
        assert restore_seconds < at_most(120)

        assert answers(second) == answers_before
        assert second.ledger() == ledger
        assert decisions_before
        # Airflow may have added one since, of an earlier moment too.
        moments = {row.as_of for row in decisions_before}
        restored = [row for row in decisions(second) if row.as_of in moments]
        assert restored == decisions_before
        wait_until("the event", lambda: ORDER["order_id"] in orders(second))
        ingested = second.run("ingest orders")
        assert "0 new, 0 corrected, 0 quarantined" in ingested
        assert "version 1" in second.run(f"monitor {MODEL}")
        assert len(decisions(second)) > len(decisions_before)
        assert "nothing new to learn" in second.run(f"train {MODEL}")
        second.run(f"reproduce {MODEL} 1")
    finally:
        second.run("down")
        if first.settings.home.exists():
            first.run("down")
