"""Pages on a year of hourly runs, and on what a bad installation has; each time is printed."""

import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from core.project import ENV_FILE
from tests.conftest import at_most, wait_until
from tests.support.monitoring.page_text import one_line
from tests.support.monitoring.year_pages import (
    PAGES,
    SPEC,
    console,
    year,  # noqa: F401  (a fixture)
)

pytestmark = pytest.mark.journey

MEMORY_MIB = 160
"""What the console allocates; the pages of libraries (100 MiB) are shared with other processes."""
WITHIN = 2.0
"""Seconds within which a page answers, whatever is missing."""


def timed(client, path):
    began = time.perf_counter()
    answer = client.get(path)
    took = time.perf_counter() - began
    assert answer.status_code == 200, answer.text
    return one_line(answer.text), took


def allocated_mib(process):
    """Return the memory of a process without what it maps from files.

    How much of a library is mapped depends on what the kernel has cached of it.
    """
    memory = psutil.Process(process.pid).memory_info()
    return (memory.rss - memory.shared) / 2**20


@pytest.mark.timed
def test_pages_of_a_year_of_hourly_runs_take_little_time_and_memory(year):
    with console(year, sys.executable) as (client, process):
        for path in PAGES:
            first = timed(client, path)[1]
            again = timed(client, path)[1]
            assert first < at_most(WITHIN), path
            took = f"first {1000 * first:.0f} ms, then {1000 * again:.0f} ms"
            print(f"{path}: {took}")  # noqa: T201  (-s)
        memory = allocated_mib(process)
        print(f"console: {memory:.0f} MiB")  # noqa: T201
        assert memory < MEMORY_MIB

        check = f"/status/{SPEC.name}?check=psi/total_orders_30d"
        wait_until("its chart", lambda: "<figure" in client.get(check).text)
        page = client.get(check).text
        assert page.count("<figure") == 1
        charts = json.loads(page.split('id="charts">')[1].partition("</script>")[0])
        assert charts["charts"].keys() == {"psi/total_orders_30d"}
        assert 120 <= len(charts["times"]) <= 122, "a point for 6 hours of 30 days"


@pytest.mark.timed
def test_every_page_without_runs_names_the_missing_data(tmp_path):
    with console(tmp_path / "home") as (client, _):
        for path in PAGES:
            assert timed(client, path)[1] < at_most(WITHIN), path
        missing = {
            "none in production": "/",
            "no monitoring run yet": "/",
            "orders: nothing is ingested yet": "/",
            "no change of a role yet": f"/status/{SPEC.name}?tab=ledger",
            "no monitoring run of these days": f"/status/{SPEC.name}?tab=checks",
            "no ingest of orders has ended yet": "/data/orders",
        }
        for words, path in missing.items():
            # Not at the first look: of what is slow to answer a page says that it is unknown.
            wait_until(words, lambda: words in timed(client, path)[0])  # noqa: B023


@pytest.mark.timed
def test_a_hanging_database_is_shown_as_unknown_within_two_seconds(
    tmp_path,
):
    with socket.create_server(("127.0.0.1", 0)) as hangs:
        url = f"postgresql://gyre:secret@127.0.0.1:{hangs.getsockname()[1]}/gyre"
        home = tmp_path / "home"
        home.mkdir()
        (home / ENV_FILE).write_text(f"GYRE_LEDGER_URL={url}\n")
        with console(home) as (client, _), ThreadPoolExecutor(len(PAGES)) as threads:
            # The first look is the one at which all other sources are new, too.
            answers = [timed(client, "/")]
            answers += threads.map(partial(timed, client), PAGES)
        for path, (text, took) in zip(("/", *PAGES), answers, strict=True):
            assert took < at_most(WITHIN), path
            if path.startswith("/status"):
                assert "the database: " in text
            assert "secret" not in text
