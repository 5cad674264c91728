"""A stack without Airflow on which a drift was found and answered: what notebooks look into."""

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import pandas as pd

import gyre
from cli.demo import AGE
from cli.up import newest_entities
from core.spec import load_spec
from core.tokens import serving_headers
from feature_engine.ingest.source import pull
from feature_repo.datasets import load_dataset
from tests.conftest import new_settings, wait_until
from tests.support.tools.stack import MODEL, Stack

HORIZON = timedelta(days=90)
BATCH_ROWS = 10_000


@contextmanager
def drifted_stack(home):
    """Bring a stack up with a version of 180 days ago, and end it with the block."""
    settings = new_settings(home, demo_start=None, without=frozenset({"airflow"}))
    stack = Stack(settings)
    try:
        stack.run(f"up --as-of {(datetime.now(UTC) - AGE).isoformat()}")
        yield stack
    finally:
        stack.run("down")


def go_through_a_drift(stack):
    """Bring a drift about, and the version that answers it; the environment has the stack's settings.

    Today's customers are others than those of the first version. Two windows are bad, as the rule for
    a retraining asks for.
    """
    ask_for_all(stack.settings)
    stack.run(f"monitor {MODEL}")
    stack.run(f"monitor {MODEL}")
    reason = gyre.decisions(MODEL)["cause"].iloc[-1]
    stack.run(f"train {MODEL} --reason '{reason}'")
    first = newest_entities(stack.settings, load_spec(MODEL), 1)

    def has_new_version():
        (version,) = gyre.predict(MODEL, pd.DataFrame(first))["model_version"]
        return version == "2"

    wait_until("version 2", has_new_version)
    ask_for_all(stack.settings)
    stack.run(f"monitor {MODEL}")


def ask_for_all(settings):
    """Ask for each customer, and send as feedback what the shop's later orders say."""
    now = datetime.now(UTC)
    keys = pd.DataFrame(newest_entities(settings, load_spec(MODEL)))
    orders = pull(settings, load_dataset("orders"), now + HORIZON).read_all()
    later = orders.to_pandas().query("order_ts > @now")["customer_id"]
    for start in range(0, len(keys), BATCH_ROWS):
        answers = gyre.predict(MODEL, keys[start : start + BATCH_ROWS])
        churned = ~answers["customer_id"].isin(later)
        outcomes = answers[["request_id"]].assign(actual=churned.astype(int))
        httpx.post(
            f"{settings.serving_address}/feedback",
            json=outcomes.to_dict("records"),
            headers=serving_headers(settings),
            timeout=60,
        ).raise_for_status()
