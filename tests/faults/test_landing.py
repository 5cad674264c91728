"""An ingest that is killed while it lands: run again, it ends as if nothing had happened."""

import json
import signal
import subprocess

import pytest

from core.settings import PROJECT
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table
from feature_repo.landing import land
from feature_repo.quarantine import quarantined
from feature_repo.source import pull
from tests.conftest import AS_OF, new_settings
from tests.feature_repo.test_ingest import DAY, HOUR, Shop, order
from tests.preloaded import commands_folder

ORDERS = load_dataset("orders")
# It ends itself when it opens a file whose path has some ending.
LAND = """
import json, os, signal, sys
from datetime import datetime
from core.settings import Settings
from feature_repo.datasets import load_dataset
from feature_repo.landing import land
from feature_repo.source import pull

settings, as_of, ending = json.loads(sys.argv[1])
settings = Settings.model_validate(settings)
as_of = datetime.fromisoformat(as_of)

def kill_at_ending(event, args):
    if event == "open" and str(args[0]).endswith(ending):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(kill_at_ending)
dataset = load_dataset("orders")
land(settings, dataset, pull(settings, dataset, as_of), as_of)
"""


@pytest.mark.parametrize("ending", ["quarantine/orders.lock", "raw/orders.lock"])
def test_a_landing_killed_and_run_again_neither_loses_nor_repeats_a_row(
    tmp_path, ending
):
    shop = Shop(new_settings(tmp_path / "home"), tmp_path / "orders.parquet")
    settings = shop.settings
    first_rows = [order(number, 1, AS_OF - DAY) for number in range(1, 11)]
    shop.has(*first_rows)
    land(settings, ORDERS, pull(settings, ORDERS, AS_OF), AS_OF)
    good_rows = [order(number, 1, AS_OF - DAY) for number in range(11, 1_001)]
    # As a delivery of their own they would be stopped.
    bad_rows = [order(number, 1, AS_OF - DAY, -1.0) for number in range(2_001, 2_041)]
    shop.has(*first_rows, *good_rows, *bad_rows)
    arguments = [settings.model_dump(mode="json"), (AS_OF + HOUR).isoformat(), ending]
    process = subprocess.run(
        [commands_folder() / "python", "-c", LAND, json.dumps(arguments)],
        cwd=PROJECT,
        check=False,
    )
    assert process.returncode == 128 + signal.SIGKILL
    assert raw_table(settings, ORDERS).read().num_rows == len(first_rows)
    land(settings, ORDERS, pull(settings, ORDERS, AS_OF), AS_OF + HOUR)
    landed = raw_table(settings, ORDERS).read()["order_id"].to_pylist()
    assert sorted(landed) == list(range(1, 1_001))
    entries = quarantined(settings, ORDERS)
    numbers = sorted(entry["row"]["order_id"] for entry in entries)
    assert numbers == list(range(2_001, 2_041))
    assert list(settings.cache.iterdir()) == []
