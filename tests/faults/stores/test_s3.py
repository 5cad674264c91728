"""S3 stops answering in the middle: the old state answers, and the next run is whole."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.files import replace_file
from feature_engine.ingest.forgotten import forgotten, keep_out
from feature_engine.ingest.pipeline import ingest
from feature_engine.ingest.record import read_rules
from feature_engine.offline.raw import raw_table
from feature_engine.offline.views import view_table
from tests.conftest import AS_OF, feast_apply, new_settings, redis_server
from tests.faults.conftest import standing_still
from tests.support.feature_engine.delivered_source import ORDERS, deliver, source

DAY = timedelta(days=1)


@contextmanager
def installed(home, **more):
    settings = new_settings(home, sources={"orders": source(home.parent)}, **more)
    home.mkdir()
    with redis_server(settings.redis_port, home):
        feast_apply(settings)
        yield settings


def state(settings):
    """Rows of the raw table, and of the view's files by content."""
    raw = raw_table(settings, ORDERS).read(columns=ORDERS.schema.names)
    columns = ["customer_id", "event_timestamp", "total_orders_30d", "lifetime_value"]
    files = view_table(settings, "customer_features").files()
    view = pq.read_table(files, columns=columns)
    order = [(name, "ascending") for name in columns]
    return raw.sort_by("order_id"), view.sort_by(order)


def stopped_at(s3, log, nth, run):
    """Run what writes to S3, which stops answering after the nth write, and is back in the end."""

    def writes():
        return log.read_text().count('"PUT /gyre/')

    last_write = writes() + nth
    with ThreadPoolExecutor() as threads:
        job = threads.submit(run)
        # Often: a write takes a few milliseconds.
        while writes() < last_write and not job.done():
            time.sleep(0.002)
        with standing_still(s3), pytest.raises(DataError, match="S3"):
            job.result()


@pytest.mark.parametrize(
    "moments", [(1,), pytest.param((2, 4, 7), marks=pytest.mark.nightly)]
)
def test_readers_see_the_old_or_the_new_state_when_s3_stops_during_an_ingest(
    s3, tmp_path, monkeypatch, moments
):
    """25, 30: whichever of the nine writes was the last."""
    monkeypatch.setenv("GYRE_DATA_URL", "s3://gyre/a")  # for `feast apply`
    with installed(tmp_path / "home", data_url="s3://gyre/a") as settings:
        deliver(tmp_path, AS_OF - DAY)
        ingest(settings, "orders", AS_OF - DAY)
        for day, nth in enumerate(moments):
            as_of = AS_OF + day * DAY
            deliver(tmp_path, as_of)
            before = state(settings)
            run = partial(ingest, settings, "orders", as_of)
            stopped_at(s3, tmp_path / "s3.log", nth, run)
            meanwhile = state(settings)
            run()
            after = state(settings)
            for rows, old, new in zip(meanwhile, before, after, strict=True):
                assert rows.equals(old) or rows.equals(new)
    monkeypatch.delenv("GYRE_DATA_URL")
    with installed(tmp_path / "on disk") as on_disk:
        ingest(on_disk, "orders", as_of)
        for rows, expected in zip(after, state(on_disk), strict=True):
            assert rows.equals(expected)


def test_each_file_of_its_own_is_named_when_s3_does_not_answer(s3, tmp_path):
    """A list of forgotten keys that nobody can read is not a list without a key."""
    settings = new_settings(tmp_path, data_url="s3://gyre/a")
    keep_out(settings, "customer_id", "4")
    jobs = {
        "forgotten.json": partial(keep_out, settings, "customer_id", "5"),
        "data_docs/orders/index.json": partial(read_rules, settings, "orders"),
        "new.json": partial(replace_file, settings.data / "new.json", "{}"),
    }
    with standing_still(s3), ThreadPoolExecutor() as threads:
        errors = {name: threads.submit(job).exception for name, job in jobs.items()}
        for name, error in errors.items():
            assert isinstance(error(), DataError)
            assert re.match(rf"s3://gyre/a/\S*{name}: Generic S3 error", str(error()))
    assert forgotten(settings).has({"customer_id": "4"})
    with pytest.raises(FileNotFoundError):
        read_rules(settings, "orders")
