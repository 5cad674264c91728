"""What is done about a decision here: the way back, alerts and their ends, figures in MLflow."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

from mlflow_server.alerts import DriftAlert, alert, deliver, note, over, retry
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.records import Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.decision import helpless, settled
from monitoring.past import WHO
from monitoring.report import REPORTS
from stack.errors import GyreError, RegistryError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path
    from typing import Any

    from mlflow_server.alerts import Severity
    from monitoring.decision import Decision, Inputs
    from monitoring.report import MonitorReport
    from monitoring.verdict import Finding
    from stack.settings import Settings
    from stack.spec import ModelSpec

ESCALATED = "escalated: retraining does not help"
"""One cause, whatever versions the schedule brings meanwhile."""
CAUSES = {"parked": "parked: {}", "escalate": ESCALATED}
"""By rule: what it alerts of is news, though a retraining of the same cause was told before."""
CONDITIONS = {"freshness", "volume", "skew"}
"""Types of alerts that are of no verdict: over as soon as a look does not see them."""


def drift_alert(
    decision: Decision, verdict: str, findings: Sequence[Finding], as_of: datetime
) -> DriftAlert:
    """Name the finding that says most, and say what is done."""
    message = f"{verdict}: {decision.reason}; {decision.action}"
    if decision.rule == "harm":
        return DriftAlert("predictions", "harm", "critical", None, as_of, message)
    severity: Severity = "critical" if decision.rule == "escalate" else "significant"
    if not findings:
        return DriftAlert("score", "data_drift", severity, None, as_of, message)
    most = max(findings, key=lambda each: each.psi or 0)
    return DriftAlert(most.feature, most.drift_type, severity, most.psi, as_of, message)


def act(
    settings: Settings,
    report: MonitorReport,
    found: DriftAlert,
    conditions: Mapping[str, DriftAlert],
    *,
    inputs: Inputs,
    unmeasured: Collection[str],
) -> None:
    """Go back where the version does harm; alert once per cause; tell once what is over.

    conditions: by cause, what is alerted of whatever the decision is. inputs: what was decided on.
    unmeasured: types of conditions that could not be measured: what was alerted of goes on.
    Whatever could not be delivered earlier is tried again.

    Raises:
        RegistryError, PromotionRefusedError: there was no going back; that is alerted of, too.

    """
    decision, at, name = report.decision, report.as_of, report.model
    goes_on, went_wrong = set(conditions), None
    with closing(Records(settings)) as records:
        known = [row for row in records.alerts(name) if row["over"] is None]
        cause = CAUSES.get(decision.rule, "{}").format(report.cause)
        seen_again = report.verdict == "bad" and cause in {row["cause"] for row in known}
        if decision.action != "nothing" or decision.rule == "answered" or seen_again:
            # Noted first, told last: a killed look is told by the next one, and no receiver is
            # worth a harmful version's next minute.
            due = note(records, name, cause, found, at)
            goes_on.add(cause)
            if decision.action == "rollback":
                went_wrong = _go_back(settings, report, str(inputs.previous))
            if went_wrong:
                message = f"{found.message}, which failed: {went_wrong}"
                note(records, name, cause, replace(found, message=message), at)
            if due:
                deliver(settings, records, name, cause, at)
        for each, seen in conditions.items():
            alert(settings, records, name, each, seen, at)
        if decision.action == "rollback" and not went_wrong:  # the alert has told its end
            records.end_alert(name, cause, None, at)
        own = (row for row in known if row["details"] and row["cause"] not in goes_on)
        for row in own:
            if why := _over(row, report, inputs, unmeasured):
                over(settings, records, row, why, at)
        retry(settings, records, name, at)
    if went_wrong:
        raise went_wrong


def _over(
    row: Mapping[str, Any], report: MonitorReport, inputs: Inputs, unmeasured: Collection[str]
) -> str | None:
    """Why an alert that this look does not see is over; None if it is not."""
    if row["cause"] == ESCALATED:
        return None if helpless(inputs) else "a window was ok, or a person promoted"
    kind = json.loads(row["details"])["drift_type"]
    if kind in CONDITIONS and kind not in unmeasured:
        return "it is not so any more"
    if not re.search(rf"\bversion {report.version}\b", row["cause"]):
        return f"version {report.version} answers now"
    return "its window is ok again" if settled(inputs.verdicts) and kind not in unmeasured else None


def _go_back(settings: Settings, report: MonitorReport, before: str) -> GyreError | None:
    """Put the version before into production if all its files are as registered; or say why not."""
    registry, name = Registry(settings), report.model
    try:
        if wrong := registry.damage(name, before):
            return RegistryError(f"{name} version {before} is damaged: {wrong}")
        with closing(Ledger(settings, report.as_of)) as ledger:
            promote(registry, ledger, name, before, who=WHO, why=report.decision.reason,
                    replaces=report.version)  # fmt: skip
    except GyreError as exc:
        return exc
    return None


def publish(settings: Settings, spec: ModelSpec, report: MonitorReport, folder: Path) -> None:
    """Figures as metric series of the version's monitoring run; the report when news or daily."""
    tracking, experiment = Tracking(settings), f"{spec.experiment}_monitoring"
    key = f"{spec.name} version {report.version}"
    run_id = tracking.start_or_find_run(experiment, key, key, {"version": str(report.version)})
    finite = {name: value for name, value in report.figures.items() if isfinite(value)}
    tracking.log(run_id, metrics=finite, tags={"verdict": report.verdict}, at=report.as_of)
    tracking.log_json(run_id, REPORTS.dump_python(report, mode="json"), "latest.json")
    tags = tracking.run(run_id).tags
    stamp = f"{report.verdict} {report.as_of:%Y-%m-%d}"
    if tags.get("reported") == stamp:
        return
    for file in sorted(folder.iterdir()):
        tracking.log_artifact(run_id, file, f"reports/{report.as_of:%Y-%m-%dT%H%M%S}")
    tracking.log(run_id, tags={"reported": stamp})
