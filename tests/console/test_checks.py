"""What the console says of the loop, and of what it could not ask."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client.samples import Sample

from core.spec import load_spec
from feature_repo.broker import ConsumerLag
from feature_repo.dataset_record import DatasetRecord
from mlflow_server.ledger import LedgerRow
from mlflow_server.pages import RunPage
from mlflow_server.records import DecisionRow, ModelRows
from mlflow_server.window_details import WindowDetails
from monitoring.console.cached_reader import PATIENCE, CachedReader, Reading, read_all
from monitoring.console.checks import Check, of_events, of_model, of_server
from monitoring.console.loop_metrics import loop_metrics
from monitoring.console.status import ModelStatus
from monitoring.serving_status import ServingStatus
from tests.conftest import at_most, wait_until

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPEC = load_spec("customer_churn_model")
LEDGER = LedgerRow(SPEC.name, 1, "production", 100, None, "2", "ann", "first", None,
                   NOW - 30 * HOUR, NOW - 30 * HOUR)  # fmt: skip
DECISION = DecisionRow(SPEC.name, "2", NOW - HOUR, "ok", "nothing", "ok", "performance holds", "",
                       "{}", {"psi_score": 0.02, "psi_lifetime_value": float("nan")})  # fmt: skip
ALERT = {"model": SPEC.name, "cause": "drift <of> 2", "message": "bad " * 100, "count": 3,
         "first": f"{NOW - 2 * HOUR}", "last": f"{NOW - HOUR}", "delivered": True}  # fmt: skip
RUN = RunPage("r", "http://mlflow/#/experiments/1/runs/r", "FINISHED", NOW - 9 * HOUR,
              NOW - 8 * HOUR, {"reason": "weekly", "outcome": "version 2 promoted"})  # fmt: skip

REFUSED = replace(RUN, tags=RUN.tags | {"outcome": "refused: auc at_least: 0.61"})


def seen(value: Any) -> Reading[Any]:
    return Reading(value, NOW)


def workers(*versions: str, role: str = "production") -> Reading[ServingStatus]:
    labels = [
        {"model": SPEC.name, "role": role, "version": version} for version in versions
    ]
    samples = [Sample("gyre_model_info", each, 1.0) for each in labels]
    return seen(ServingStatus({"ready": True, "resources": {}}, samples))


ROWS = ModelRows([LEDGER], [DECISION], {"nothing": DECISION.as_of}, [])
FRESH = DatasetRecord("orders", NOW - HOUR, watermark=NOW - HOUR, newest=NOW - 40 * HOUR,
                      silence=48 * HOUR)  # fmt: skip
WELL = ModelStatus(
    SPEC, workers("2"), seen({"production": "2"}), seen([FRESH]), seen(ROWS),
    seen(RUN),
)  # fmt: skip
SILENT = ModelStatus(SPEC, *[Reading[Any](why="it does not answer") for _ in range(5)])


def checked(status: ModelStatus) -> dict[str, Check]:
    return {check.name: check for check in of_model(status, NOW)}


def rows(**changed: Any) -> ModelStatus:
    return replace(WELL, rows=seen(replace(ROWS, **changed)))


def test_a_healthy_loop_is_all_well() -> None:
    found = checked(WELL)
    assert {check.ok for check in found.values()} == {True}, found
    assert (
        found["production"].remark
        == "version 2 since 2026-11-19 06:00:00 UTC, by ann: first"
    )
    assert {
        "last monitoring run",
        "verdict",
        "last training",
        "features",
        "alerts",
    } < set(found)


def test_sources_that_disagree_are_all_shown() -> None:
    status = replace(WELL, aliases=seen({"production": "3"}), serving=workers("1", "2"))
    found = checked(status)["production"]
    assert (found.ok, found.remark) == (
        False, "workers: version 1 and 2; MLflow's alias: version 3; ledger: version 2"
    )  # fmt: skip


def test_a_version_that_serving_refuses_is_named_with_why() -> None:
    does = "version 2 answers; version 3 is refused: ModelRefusedError: other inputs"
    serving = workers("2")
    serving.value.ready["resources"][f"model {SPEC.name}"] = {
        "ok": True,
        "detail": does,
    }
    found = checked(replace(WELL, aliases=seen({"production": "3"}), serving=serving))
    assert found["production"].remark == (
        "workers: version 2; MLflow's alias: version 3; ledger: version 2; "
        "version 3 is refused: ModelRefusedError: other inputs"
    )


def test_a_failed_task_is_said_once() -> None:
    failed = "ingest.ingest_orders failed: DataError: orders: no file"
    alert = ALERT | {"cause": f"{failed} #", "message": f"{failed} 7"}
    assert checked(rows(alerts=[alert]))["alerts"].remark == f"{failed} 7"


def test_a_challenger_that_no_worker_holds_is_shown() -> None:
    assert "challenger" not in checked(WELL)
    row = replace(LEDGER, sequence=2, role="challenger", percent=10, to_version="3")
    begun = rows(ledger=[LEDGER, row])
    begun = replace(begun, aliases=seen({"production": "2", "challenger": "3"}))
    found = checked(begun)["challenger"]
    assert (found.ok, found.remark) == (
        False, "workers: no version; MLflow's alias: version 3; ledger: version 3"
    )  # fmt: skip


def test_what_does_not_answer_is_unknown_and_says_why() -> None:
    found = checked(SILENT)
    assert {check.ok for check in found.values()} == {None}
    assert [check.remark for check in found.values()] == [
        "unknown: it does not answer"
    ] * 5
    (serving,) = of_server(Reading(why="it does not answer"))
    assert (serving.ok, serving.remark) == (None, "unknown: it does not answer")


@pytest.mark.parametrize(
    ("cause", "ends"),
    [
        ("drift of version {}, labels up to 2026-08-01", True),
        ("parked: drift of version {}, labels up to 2026-08-01", True),
        ("skew of version {}: avg_order_value", True),
        ("too few predictions of version {}", True),
        ("version {} is refused", True),
        ("harm of version {} (ledger row 2)", False),
        ("rollout of version {} stopped (ledger row 2)", False),
    ],
)
def test_what_befell_a_version_is_over_once_it_is_in_no_role(
    cause: str, ends: Any
) -> None:
    """All but what took it out of its role."""
    for version, ok in (("2", False), ("1", ends), ("12", ends)):
        found = checked(rows(alerts=[ALERT | {"cause": cause.format(version)}]))[
            "alerts"
        ]
        assert (found.ok, cause.format(version) in found.remark) == (ok, not ok)
    shadow = replace(LEDGER, sequence=2, role="shadow", to_version="1")
    tried = rows(alerts=[ALERT | {"cause": cause.format("1")}], ledger=[LEDGER, shadow])
    assert checked(tried)["alerts"].ok is False


def test_without_serving_nobody_knows_what_is_in_production() -> None:
    found = checked(replace(WELL, serving=SILENT.serving))["production"]
    assert (found.ok, found.remark[:9]) == (None, "version 2")


@pytest.mark.parametrize(
    ("status", "what", "ok", "said"),
    [
        (rows(decisions=[replace(DECISION, as_of=NOW - 4 * HOUR)]), "last monitoring run",
         False, "2026-11-20 08:00:00 UTC; at most 3 h"),
        (rows(decisions=[]), "last monitoring run", False, "none yet"),
        (rows(decisions=[], ledger=[replace(LEDGER, time=NOW - HOUR)]),
         "last monitoring run", None, "none yet"),
        (rows(decisions=[replace(DECISION, verdict="bad", reason="auc 0.6")]), "verdict", False,
         "version 2: bad; nothing (ok): auc 0.6"),
        (rows(decisions=[replace(DECISION, verdict="insufficient_data")]), "verdict", None, "data"),
        (rows(decisions=[replace(DECISION, version="1")]), "verdict", None,
         "none yet of version 2; version 1: ok"),
        (rows(ledger=[]), "production", False, "ledger: no version"),
        (replace(WELL, runs=seen(replace(RUN, status="FAILED"))), "last training", False,
         "failed, ended 2026-11-20 04:00:00 UTC, for weekly: version 2 promoted"),
        (replace(WELL, runs=seen(REFUSED)), "last training", False,
         "for weekly: refused: auc"),
        (replace(WELL, runs=seen(None)), "last training", None, "none yet"),
        (replace(WELL, freshness=seen([FRESH, replace(FRESH, watermark=NOW - 3 * HOUR)])),
         "features", False, "not complete since 2026-11-20 09:00 UTC: 3 h, at most 2 h"),
        (replace(WELL, freshness=seen([FRESH, replace(FRESH, newest=NOW - 49 * HOUR)])),
         "features", False, "source is silent since 2026-11-18 11:00 UTC: 49 h, at most 48 h"),
        (replace(WELL, freshness=seen([FRESH, replace(FRESH, watermark=None)])),
         "features", None, "orders: nothing is ingested yet; run: gyre ingest orders"),
        (replace(WELL, freshness=seen([FRESH, replace(FRESH, watermark=None, faults=["broken"])])),
         "features", False, "broken"),
        (rows(alerts=[ALERT]), "alerts", False, "drift <of> 2 (3 times): bad bad"),
        (rows(alerts=[ALERT | {"last": f"{NOW - 4 * HOUR}"}]), "alerts", True, "none open"),
        (rows(alerts=[ALERT | {"last": f"{NOW - 4 * HOUR}", "delivered": False}]), "alerts",
         False, "not delivered: drift <of> 2"),
    ],
)  # fmt: skip
def test_each_check_says_what_is_wrong(
    status: ModelStatus, what: str, ok: bool | None, said: str
) -> None:
    found = checked(status)
    assert (found[what].ok, said in found[what].remark) == (ok, True), found[what]
    others = {each.name for each in found.values() if each.ok is not True}
    assert others - {what} == set()


def test_a_log_that_waits_for_the_disk_is_not_healthy() -> None:
    ready = {"ready": True, "resources": {"redis": {"ok": True, "detail": "answers"}}}
    lags = {"predictions": 31.0, "feedback": 0.0}
    samples = [
        Sample("gyre_log_lag_seconds", {"log": log}, lag) for log, lag in lags.items()
    ]
    found = of_server(seen(ServingStatus(ready, samples)))
    assert {check.name: check.ok for check in found} == {
        "serving": True, "redis": True, "predictions on disk": False, "feedback on disk": True,
    }  # fmt: skip


def test_a_consumer_that_reads_and_processes_nothing_is_not_healthy() -> None:
    lags = {
        "orders": ConsumerLag(3, NOW - timedelta(seconds=61)),
        "visits": ConsumerLag(2, NOW - timedelta(seconds=60)),
        "carts": ConsumerLag(0, None),
    }
    consumer, *checks = of_events(seen(None), seen(lags), NOW)
    assert (consumer.ok, consumer.remark) == (True, "reads the events")
    assert [check.ok for check in checks] == [False, True, True]
    late = "orders: a request has waited for the consumer for 61 s, at most 60 s are expected"
    assert checks[0].remark == f"{late}; requests that wait: 3"
    assert checks[0].since == NOW - timedelta(seconds=61)
    assert checks[1].remark == "visits: requests that wait: 2"
    samples = loop_metrics([], NOW, lags=lags).decode()
    assert 'gyre_consumer_lag_seconds{dataset="orders"} 61.0' in samples
    assert 'gyre_consumer_lag_entries{dataset="orders"} 3.0' in samples
    assert 'gyre_consumer_lag_seconds{dataset="carts"} 0.0' in samples


def test_without_redis_nothing_is_known_of_events() -> None:
    away = Reading[Any](why="Redis: it does not answer")
    for check in of_events(away, away, NOW):
        assert (check.ok, check.remark) == (None, "unknown: Redis: it does not answer")


def test_what_is_unknown_has_no_sample_and_what_is_not_a_number_is_none() -> None:
    told, model = loop_metrics([WELL], NOW).decode(), f'model="{SPEC.name}"'
    assert f'gyre_drift_psi{{feature="lifetime_value",{model}}} NaN' in told
    assert f"gyre_alerts_undelivered{{{model}}} 0.0" in told
    assert (
        f'gyre_production_version{{{model},told_by="ledger",version="2"}} 1.0' in told
    )
    assert f'gyre_source_silence_seconds{{dataset="orders",{model}}} 144000.0' in told
    assert "quantile" not in told  # the window was too small
    silent = loop_metrics([SILENT], NOW).decode()
    assert [x for x in silent.splitlines() if x[0] != "#"] == [
        f"gyre_feature_age_promise_seconds{{{model}}} 7200.0"
    ]


def test_quantiles_of_the_newest_window_stand_beside_those_of_the_reference() -> None:
    details = WindowDetails(quantiles={"score": (0.1, 0.2, 0.3, 0.4, 0.5)},
                            reference_quantiles={"score": (0.0, 0.1, 0.2, 0.3, 0.4)})  # fmt: skip
    told = loop_metrics([rows(details=details)], NOW).decode()
    labels = f'{{feature="score",model="{SPEC.name}",quantile="0.95"}}'
    assert f"gyre_window_quantile{labels} 0.5" in told
    assert f"gyre_reference_quantile{labels} 0.4" in told


def test_data_quality_is_a_share_of_rows_and_unknown_without_any() -> None:
    stopped = DatasetRecord("orders", NOW, rows={NOW.date(): 95}, quarantined={"rule": 5},
                            passed=False)  # fmt: skip
    told = loop_metrics([], NOW, [stopped, DatasetRecord("visits")]).decode()
    assert 'gyre_data_quality_ratio{dataset="orders"} 0.95' in told
    assert 'gyre_data_validation_passed{dataset="orders"} 0.0' in told
    assert "visits" not in told


def test_cpu_and_memory_are_those_of_each_program() -> None:
    told = loop_metrics([], NOW, (), {"serving": (12.5, 2**20)}).decode()
    assert 'gyre_cpu_seconds_total{program="serving"} 12.5' in told
    assert 'gyre_memory_bytes{program="serving"} 1.048576e+06' in told


@pytest.mark.timed
def test_a_source_that_hangs_holds_nobody_up_and_is_asked_once() -> None:
    released, asked = threading.Event(), list[int]()

    def hangs() -> str:
        asked.append(1)
        released.wait(600)
        return "told"

    slow, quick = CachedReader(hangs, 60), CachedReader(lambda: "at once", 60)
    began = time.monotonic()
    read_all([slow, quick])
    slow.begin()
    assert time.monotonic() - began < at_most(PATIENCE + 1)
    assert (slow.reading.value, slow.reading.why) == (None, "no answer within 1 s")
    wait_until("the other", lambda: quick.reading.value == "at once")
    assert len(asked) == 1
    released.set()
    wait_until("told", lambda: slow.reading.value == "told")

    def fails() -> str:
        raise ValueError("the database\nrefused")

    broken = CachedReader(fails, 60)
    read_all([broken])
    wait_until("why", lambda: broken.reading.why == "the database refused")
    assert broken.reading.value is None
