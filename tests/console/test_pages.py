"""The pages of a running console, and what its process is made of."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from typing import Any

import psutil
import pytest

from feature_repo.dataset_record import read_record
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote, release
from mlflow_server.registry import Registry
from tests.conftest import at_most, wait_until

HEAVY = {
    "airflow", "duckdb", "evidently", "feast", "great_expectations", "mlflow", "numpy", "pandas",
    "pyarrow", "sklearn",
}  # fmt: skip


def test_the_first_page_names_the_model_and_what_is_wrong(
    rig: Any, served: Any, console: Any, looked: Any
) -> None:
    console.page_with("bad: said to &lt;nobody&gt;; not delivered yet")
    page = console.page_with(f"version {served.first} since")
    assert "<title>Gyre: The loop needs a look: " in page
    assert f'<article><h3><a href="/status/{rig.spec.name}">{rig.spec.name}</a>' in page
    assert "by test: because" in page
    assert "bad: said to &lt;nobody&gt;; not delivered yet" in page
    assert "drift): total_orders_30d: PSI 0.31" in page
    assert read_record(rig.settings, "orders").watermark is not None
    assert "model customer_churn_model" in page  # as a worker says it
    assert "<script" not in page
    answer = console.client.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"


def test_the_page_of_a_model_has_its_rows_runs_and_requests(
    rig: Any, served: Any, console: Any, looked: Any
) -> None:
    for _ in range(3):
        assert rig.predict(served.client).status_code == 200
    name = rig.spec.name
    said = "requests since serving began with 200"
    wait_until("its counts", lambda: said in console.page(name))
    wait_until("its runs", lambda: "its monitoring</a>" in console.page(name))
    page = console.page(name)
    assert f'<th scope="row">production</th><td>version {served.first}</td>' in page
    assert "mean time to answer /predict" in page
    assert page.count('<td class="verdict">') == 3
    assert "customer_tenure_days" in page.split("shown, never acted on")[0]
    assert re.search(
        r"""report\.html" aria-label="[^"]*; click: Evidently's report">""", page
    )
    versions = page.split('<section aria-labelledby="versions">')[1].split(
        "</section>"
    )[0]
    assert f">version {served.second}</a>" in versions
    assert "<strong>production</strong>" in versions
    assert "no interval is known of" in page  # nothing has kept details of these runs
    assert "no monitoring run has stored it yet" in page
    assert "bad: said to &lt;nobody&gt;" in page
    assert '<td class="who">test</td>' in page
    for link in ('model_card.html">model card</a>', 'report.html">report</a>',
                 '">its monitoring</a>', '">last training</a>',
                 f'/#/models/{name}">MLflow</a>'):  # fmt: skip
        assert link in page
    assert "<script" not in page
    assert "<nobody>" not in page
    unknown = console.client.get("/status/nothing")
    assert (unknown.status_code, name in unknown.text) == (404, True)


def test_a_version_that_answers_a_share_is_shown_beside_production(
    rig: Any, served: Any, console: Any, looked: Any
) -> None:
    name, registry = rig.spec.name, Registry(rig.settings)
    with closing(Ledger(rig.settings)) as ledger:
        trial = {"role": "challenger", "percent": 10, "who": "ann", "why": "as a trial"}
        promote(registry, ledger, name, served.second, **trial)
        row = f'<th scope="row">challenger</th><td>version {served.second}</td><td>10 %</td>'
        wait_until("a worker that holds it", lambda: row in console.page(name))
        page = console.page(name)
        release(registry, ledger, name, "challenger", who="ann", why="over")
    assert "ann: as a trial" in page
    assert f"gyre compare {name} says who is better" in page
    wait_until("its end", lambda: "No rollout is on its way" in console.page(name))
    assert '<th scope="row">ended</th>' in console.page(name)


def test_data_docs_are_linked_and_nothing_beside_them_is_shown(
    rig: Any, console: Any
) -> None:
    folder = rig.settings.data_docs
    (folder.parent / "secret.json").write_text("{}")
    address = "/data-docs/orders/index.html"  # of the rig's own ingest
    assert (
        f'href="{address}">Data Docs of orders'
        in console.client.get("/data/orders").text
    )
    assert "Successful Expectations" in console.client.get(address).text
    for path in (
        "../secret.json",
        "%2e%2e/secret.json",
        "..%2fsecret.json",
        "nothing/",
    ):
        assert console.client.get(f"/data-docs/{path}").status_code == 404


def test_metrics_tell_of_the_loop_and_not_of_requests(
    rig: Any, console: Any, looked: Any
) -> None:
    lines = (
        f'gyre_drift_psi{{feature="total_orders_30d",model="{rig.spec.name}"}} 0.31',
        f'gyre_alerts_undelivered{{model="{rig.spec.name}"}} 1.0',
        'gyre_source_silence_seconds{dataset="orders"',
        'gyre_data_validation_passed{dataset="orders"} 1.0',
        f'gyre_window_quantile{{feature="score",model="{rig.spec.name}",quantile="0.05"}} 0.1',
    )

    def told() -> str:
        return str(console.client.get("/metrics").text)

    wait_until(
        "what is known of the loop", lambda: all(line in told() for line in lines)
    )
    assert "gyre_requests" not in told()


def test_it_is_small_and_imports_none_of_the_heavy_tools(
    console: Any, looked: Any
) -> None:
    console.page()
    assert HEAVY & console.modules() == set()
    assert psutil.Process(console.process.pid).memory_full_info().pss < 160 * 2**20


@pytest.mark.timed
def test_a_database_that_is_locked_is_unknown_and_nobody_waits(
    rig: Any, console: Any, looked: Any
) -> None:
    name = rig.spec.name
    with sqlite3.connect(rig.settings.home / "ledger.db", isolation_level=None) as held:
        held.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        console.page(name)
        assert time.monotonic() - began < at_most(3)
        held.execute("ROLLBACK")
    wait_until("rows", lambda: "ledger, verdicts, alerts" not in console.page(name))
