"""A month of the past in a home of its own: `gyre replay`, and what it leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.records import Records
from monitoring.verdict import FEWEST
from stack.ending import members
from stack.settings import load_settings
from tests.conftest import BIN
from training.batch import scores

MODEL = "customer_churn_model"
LIMIT = 400
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(LIMIT + 60)]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Settings of the replay's home once it is over, and what it said."""
    home = tmp_path_factory.mktemp("replay") / "home"
    own = {k: v for k, v in os.environ.items() if not k.startswith(("GYRE_", "PROMETHEUS_"))}
    done = subprocess.run(
        [str(BIN / "gyre"), "replay", "--home", str(home), "--months", "1"],
        env=own, capture_output=True, text=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return load_settings(home=home), done.stdout


def test_each_moment_of_the_past_is_told_in_order_and_the_table_ends_it(told):
    _, text = told
    moments = re.findall(r"^\[ *\d+ s\] (\d{4}-\d\d-\d\d)  (.*)$", text, re.MULTILINE)
    (first, began), (second, seen) = moments
    assert first < second <= f"{datetime.now(UTC):%Y-%m-%d}"
    assert began == "the first version → version 1 is in production, the first one"
    assert re.match(rf"{MODEL} version 1: (ok|bad) on \d+ entities; nothing \(\w+\): ", seen)
    assert f"| {first} |  |  |  |  |  | version 1, new |" in text
    assert re.search(rf"\| {second} \| \d+ \| \d\.\d\d \w+ \| .* \| (ok|bad) \| nothing", text)


def test_what_happened_is_of_its_own_moment_so_that_nothing_was_stale(told):
    settings, _ = told
    assert settings.replay == datetime.now(UTC).date() or datetime.now(UTC).hour == 0
    with closing(Ledger(settings)) as ledger, closing(Records(settings)) as records:
        (promoted,) = ledger.rows(MODEL)
        (decided,) = records.decisions(MODEL)
    midnights = [moment.hour for moment in (promoted.time, decided.as_of)]
    assert promoted.applied_at
    assert midnights == [0, 0]
    apart = decided.as_of - promoted.time
    assert timedelta(days=13) < apart < timedelta(days=18)
    assert decided.version == "1"
    assert promoted.who == "airflow:backfill"


def test_the_population_was_scored_as_of_then_and_the_monitor_looked_at_it(told):
    settings, _ = told
    with closing(Records(settings)) as records:
        (decided,) = records.decisions(MODEL)
    rows = scores(settings).read()
    assert rows["as_of"].unique().to_pylist() == [decided.as_of]
    assert decided.figures["entities"] == rows.num_rows >= FEWEST
    assert decided.figures["psi_score"] >= 0


def test_a_home_with_a_history_is_not_replayed_over_and_nothing_is_left_running(told):
    home = told[0].home
    again = subprocess.run(
        [str(BIN / "gyre"), "replay", "--home", str(home)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (again.returncode != 0, "holds a stack already" in again.stderr) == (True, True)
    assert [process for process in members(home) if psutil.pid_exists(process.pid)] == []
