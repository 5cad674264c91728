"""What the status pages say of the loop, and of what they could not ask."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from feature_repo.freshness import Freshness
from mlflow_server.ledger import LedgerRow
from mlflow_server.pages import RunPage
from mlflow_server.records import DecisionRow
from serving.announcement import Held, ModelState
from serving.counted import Counted
from serving.health import Check, headline, of_model, of_server
from serving.loop import Known, Rows, Runs
from serving.loop_metrics import LoopMetrics
from serving.observed import PATIENCE, Observed, Reading, ask
from serving.status_page import model_page
from stack.spec import load_spec
from tests.conftest import new_settings, wait_until

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
REPORT = f"{DECISION.as_of:%Y-%m-%dT%H%M%S}"


def seen(value: Any) -> Observed[Any]:
    return Observed(value, NOW)


ROWS = Rows([LEDGER], [DECISION], {"nothing": DECISION.as_of}, [])
FRESH = Freshness("orders", NOW - HOUR, NOW - 40 * HOUR, 48 * HOUR)
WELL = Known(
    SPEC, ModelState(roles={"production": Held(version="2", digests={})}),
    seen({"production": "2"}), seen(FRESH), seen(ROWS),
    seen(Runs(RUN, RUN, True, RUN, {REPORT: RUN.artifact("reports/x/report.html")})),
)  # fmt: skip


def checked(known: Known, *workers: str) -> dict[str, Check]:
    return {check.what: check for check in of_model(known, workers or ("2",), NOW)}


def rows(**changed: Any) -> Known:
    return replace(WELL, rows=seen(replace(ROWS, **changed)))


def test_a_healthy_loop_says_so_and_each_check_when_it_was_seen() -> None:
    found = checked(WELL)
    assert {check.ok for check in found.values()} == {True}, found
    assert headline([*found.values()]) == "The loop is healthy"
    assert found["production"].said == ("version 2 since 2026-11-19 06:00:00 UTC, by ann: first")
    assert None not in {check.seen for check in found.values()}


def test_sources_that_disagree_are_all_shown() -> None:
    found = checked(replace(WELL, aliases=seen({"production": "3"})), "1", "2")["production"]
    assert (found.ok, found.said) == (
        False, "workers: version 1 and 2; MLflow's alias: version 3; ledger: version 2"
    )  # fmt: skip


def test_what_does_not_answer_is_unknown_and_says_why() -> None:
    silent: Observed[Any] = Observed(why="MLflow does not answer")
    known = replace(WELL, aliases=silent, runs=silent, freshness=silent, rows=silent)
    found = checked(known)
    assert {check.ok for check in found.values()} == {None}
    assert all("unknown: MLflow does not answer" in check.said for check in found.values())
    assert headline([*found.values()]) == "Nothing is known to be wrong; 6 unknown"


@pytest.mark.parametrize(
    ("known", "what", "ok", "said"),
    [
        (rows(decisions=[replace(DECISION, as_of=NOW - 4 * HOUR)]), "last look of the monitor",
         False, "(4 h ago); at most 3 h"),
        (rows(decisions=[]), "last look of the monitor", False, "no monitor has looked yet"),
        (rows(decisions=[], ledger=[replace(LEDGER, time=NOW - HOUR)]),
         "last look of the monitor", None, "no monitor has looked yet"),
        (rows(decisions=[replace(DECISION, verdict="bad", reason="auc 0.6")]), "verdict", False,
         "version 2: bad; nothing (ok): auc 0.6"),
        (rows(decisions=[replace(DECISION, verdict="insufficient_data")]), "verdict", None, "data"),
        (rows(decisions=[replace(DECISION, version="1")]), "verdict", None,
         "none yet of version 2; version 1: ok"),
        (rows(ledger=[]), "production", False, "ledger: no version"),
        (replace(WELL, runs=seen(Runs(replace(RUN, status="FAILED")))), "last training", False,
         "failed, ended 2026-11-20 04:00 UTC, for weekly: version 2 promoted"),
        (replace(WELL, runs=seen(Runs(None))), "last training", None, "none yet"),
        (replace(WELL, freshness=seen(replace(FRESH, watermark=NOW - 3 * HOUR))),
         "features complete up to", False, "(3 h ago); at most 2 h"),
        (replace(WELL, freshness=seen(replace(FRESH, newest=NOW - 49 * HOUR))),
         "newest event of orders", False, "(49 h ago); at most 48 h"),
        (replace(WELL, freshness=seen(replace(FRESH, watermark=None))),
         "features complete up to", None, "nothing was ingested yet"),
        (rows(alerts=[ALERT]), "alerts", False, "drift <of> 2 (3 times): bad bad"),
        (rows(alerts=[ALERT | {"last": f"{NOW - 25 * HOUR}"}]), "alerts", True, "none open"),
        (rows(alerts=[ALERT | {"last": f"{NOW - 25 * HOUR}", "delivered": False}]), "alerts",
         False, "not delivered: drift <of> 2"),
        (replace(WELL, state=ModelState(refused={"3": "altered"})), "refused", False,
         "version 3: altered"),
    ],
)  # fmt: skip
def test_each_check_says_what_is_wrong(known: Known, what: str, ok: bool | None, said: str) -> None:
    found = checked(known)
    assert (found[what].ok, said in found[what].said) == (ok, True), found[what]
    others = {each.what for each in found.values() if each.ok is not True}
    assert others - {what} <= ({"verdict"} if said.startswith("no monitor") else set())


def test_a_log_that_waits_for_the_disk_is_not_healthy() -> None:
    ready = {"ready": True, "resources": {"redis": {"ok": True, "detail": "answers"}}}
    found = of_server(ready, {"predictions": 31.0, "feedback": 0.0}, NOW)
    assert {check.what: check.ok for check in found} == {
        "serving": True, "redis": True, "predictions on disk": False, "feedback on disk": True,
    }  # fmt: skip


def test_the_page_of_a_model_links_its_runs_and_hides_no_text(tmp_path: Any) -> None:
    known = rows(alerts=[ALERT])
    page = model_page(new_settings(tmp_path), known, Counted(CollectorRegistry()), NOW)
    assert f'href="{RUN.artifact("model_card.html")}"' in page
    assert f'href="{RUN.artifact("reports/x/report.html")}">report</a>' in page
    assert "drift &lt;of&gt; 2" in page
    assert "<of>" not in page
    shown, rest = page.split("…</summary>")[-1].split("</details>")[0], "bad bad"
    assert rest in shown  # no text is lost, only folded
    unknown = model_page(
        new_settings(tmp_path), Known(SPEC, WELL.state, *[Observed[Any]() for _ in range(4)]),
        Counted(CollectorRegistry()), NOW,
    )  # fmt: skip
    assert "unknown: not read yet" in unknown
    assert "no row yet" not in unknown


def test_what_is_unknown_has_no_sample_and_what_is_not_a_number_is_none() -> None:
    def text(known: Known) -> str:
        registry = CollectorRegistry()
        registry.register(LoopMetrics([known], NOW))
        return generate_latest(registry).decode()

    told, model = text(WELL), f'model="{SPEC.name}"'
    assert f'gyre_drift_psi{{feature="lifetime_value",{model}}} NaN' in told
    assert f"gyre_alerts_undelivered{{{model}}} 0.0" in told
    assert f'gyre_production_version{{{model},told_by="ledger",version="2"}} 1.0' in told
    silent = text(Known(SPEC, WELL.state, *[Observed[Any]() for _ in range(4)]))
    assert [x for x in silent.splitlines() if x[0] != "#"] == [
        f"gyre_feature_age_promise_seconds{{{model}}} 7200.0"
    ]


def test_a_source_that_hangs_holds_nobody_up_and_is_asked_once() -> None:
    released, asked = threading.Event(), list[int]()

    def hangs() -> str:
        asked.append(1)
        released.wait(60)
        return "told"

    slow, quick = Reading(hangs, 60), Reading(lambda: "at once", 60)
    began = time.monotonic()
    ask([slow, quick])
    slow.begin()
    assert time.monotonic() - began < PATIENCE + 2
    assert (slow.last.value, quick.last.value, len(asked)) == (None, "at once", 1)
    released.set()
    wait_until("told", lambda: slow.last.value == "told")

    def fails() -> str:
        raise ValueError("the database\nrefused")

    broken = Reading(fails, 60)
    ask([broken])
    assert (broken.last.value, broken.last.why) == (None, "the database refused")


def test_the_pages_of_a_running_server_carry_no_scripts(rig: Any, served: Any) -> None:
    front, page = (served.client.get(path) for path in ("/", f"/status/{rig.spec.name}"))
    assert f'href="/status/{rig.spec.name}"' in front.text
    for found in (front, page):
        assert found.headers["content-type"] == "text/html; charset=utf-8"
        assert f"version {served.first} since" in found.text
        assert "<script" not in found.text
    unknown = served.client.get("/status/nothing")
    assert (unknown.status_code, SPEC.name in unknown.json()["detail"]) == (404, True)
