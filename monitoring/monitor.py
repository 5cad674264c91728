"""`monitor_<MODEL>`: what was logged becomes a verdict, and the verdict a decision.

Done here are the way back, alerts, and figures in MLflow. Who calls starts a
retraining (in Airflow by an Asset event): this process may not be Airflow's.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter

from core.errors import DataError, GyreError, RegistryError, TrainingError
from core.monitoring_spec import PSI
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.alerts import DriftAlert, deliver, note
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote, reconcile
from mlflow_server.records import DecisionRow, Records, is_open
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.check_list import run_checks
from monitoring.checks.result import REPORTS, CheckResult, MonitorReport
from monitoring.collect import collect
from monitoring.decision import INPUTS, STALE, Decision, Inputs, Verdict, decide, judge
from monitoring.details import window_details
from monitoring.past import WHO
from monitoring.run import MonitoringRun, Reference, prepare
from monitoring.serving_status import COUNTS
from training.validate import answered, learnable, newest_snapshot

log = logging.getLogger(__name__)
VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Verdict)
SHOWN = {"remark", "alert", "bad", "unknown"}
"""Status of results whose remark is shown, if it is no finding."""
NOT_IN_A_NAME = re.compile(r"[^\w./ -]")
"""MLflow refuses such a character in the name of a metric; a segment's value may have any."""


def monitor(settings: Settings, spec: ModelSpec, as_of: datetime) -> MonitorReport:
    """Check the version in production as of `as_of`; store verdict and decision; act on it.

    Where `as_of` is older than the newest promotion, the report is returned and nothing else done.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    collected, registry = collect(settings), Registry(settings)
    with closing(Ledger(settings)) as ledger:
        reconcile(registry, ledger, spec.name)
    version = registry.production(spec.name)
    if version is None:
        with closing(Records(settings)) as records:
            deliver(settings, records, spec.name, as_of)
        decision = Decision("nothing", "insufficient_data", "nothing is in production")
        return MonitorReport(spec.name, as_of, None, "insufficient_data", decision)
    with TemporaryDirectory(prefix="gyre-monitor-") as name:
        folder = Path(name)
        run, reference = prepare(settings, spec, version, as_of, folder)
        results = run_checks(run, reference)
        inputs = _decision_inputs(run, results)
        report = _report(run, inputs, results, collected.malformed)
        if report.decision.rule != STALE:
            _keep(run, report, inputs)
            try:
                # First: no report is worth a harmful version's next minute.
                act(settings, report, results, inputs)
            finally:
                _keep_details(run, reference)
            _publish(settings, spec, report, folder)
    return report


def _decision_inputs(run: MonitoringRun, results: list[CheckResult]) -> Inputs:
    """What is decided on; that nothing can be learnt becomes one more result."""
    spec, past, verdict = run.spec, run.past, judge(results)
    harm = next(
        (result.remark for result in results if result.status == "harmful"), None
    )
    incident, new = f"drift of version {run.version}", False
    try:
        # A newly matured snapshot makes it another incident.
        newest = newest_snapshot(run.settings, spec, run.as_of)
        incident = f"{incident}, labels up to {newest:%Y-%m-%d}"
        new = learnable(run.settings, spec, run.as_of)
    except (
        DataError,
        TrainingError,
    ) as exc:  # no reason to do harm meanwhile, or to be silent
        text = f"nothing can be learnt: {exc}"
        results.append(CheckResult("learnable", status="remark", remark=text))
    if harm:  # of the same version, put back since, it is another incident
        row = past.promotion.sequence if past.promotion else 0
        incident = f"harm of version {run.version} (ledger row {row})"
    of_incident = [row.as_of for row in past.retrained if row.cause == incident]
    bad = [result.remark for result in results if result.status == "bad"]
    limits = spec.monitoring
    return Inputs(
        as_of=run.as_of,
        version=run.version,
        verdicts=(
            *(VERDICTS.validate_python(row.verdict) for row in past.own),
            verdict,
        ),
        findings=tuple(bad) if verdict == "bad" else (),
        harm=harm,
        previous=past.previous,
        cause=incident,
        answered=answered(run.settings, spec, incident, of_incident, run.as_of),
        last_retraining=past.retrained[-1].as_of if past.retrained else None,
        cooldown=timedelta(hours=limits.cooldown_hours),
        learnable=new,
        last_promotion=past.promotion.time if past.promotion else None,
        windows=limits.windows,
        bad_windows=limits.bad_windows,
    )


def _report(
    run: MonitoringRun, inputs: Inputs, results: Sequence[CheckResult], malformed: int
) -> MonitorReport:
    remarks = (result.remark for result in results if result.status in SHOWN)
    return MonitorReport(
        model=run.spec.name,
        as_of=run.as_of,
        version=run.version,
        verdict=inputs.verdicts[-1],
        decision=decide(inputs),
        cause=inputs.cause,
        entities=len(run.window.rows),
        findings=inputs.findings,
        notes=tuple(text for text in remarks if text and text not in inputs.findings),
        figures={
            each.name: float(each.value) for each in results if each.value is not None
        },
        left_out=run.window.left_out,
        outcomes_left_out=run.outcomes.left_out,
        malformed=malformed,
    )


def _keep(run: MonitoringRun, report: MonitorReport, inputs: Inputs) -> None:
    counted = None if run.counters is None else COUNTS.dump_json(run.counters).decode()
    why = (
        report.decision.action,
        report.decision.rule,
        report.decision.reason,
        report.cause,
    )
    stored = (INPUTS.dump_json(inputs).decode(), report.figures, counted)
    row = DecisionRow(
        report.model, run.version, report.as_of, report.verdict, *why, *stored
    )
    with closing(Records(run.settings)) as records:
        records.keep(row)


def _keep_details(run: MonitoringRun, reference: Reference | str) -> None:
    """Store what pictures show; whatever fails here, decision and way back stand."""
    if isinstance(reference, str):
        return
    try:
        details = window_details(run, reference)
        with closing(Records(run.settings)) as records:
            records.keep_details(run.spec.name, run.as_of, details)
    except Exception:
        log.warning(
            "no pictures of %s as of %s", run.spec.name, run.as_of, exc_info=True
        )


def act(
    settings: Settings,
    report: MonitorReport,
    results: Sequence[CheckResult],
    inputs: Inputs,
) -> None:
    """Go back where the version does harm; alert once per incident.

    Alerts are stored first and delivered last: no receiver is worth a harmful version's next
    minute, and what could not be delivered earlier is tried again.

    Raises:
        RegistryError, PromotionRefusedError: there was no going back; that is alerted of, too.

    """
    at, name, rule = report.as_of, report.model, report.decision.rule
    went_wrong: GyreError | None = None
    with closing(Records(settings)) as records:
        known = {row["cause"] for row in records.alerts(name) if is_open(row, at)}
        # An incident of its own: the drift itself was alerted of before.
        incident = f"parked: {report.cause}" if rule == "parked" else report.cause
        again = report.verdict == "bad" and incident in known
        if report.decision.action != "nothing" or rule == "answered" or again:
            details = _drift_alert(report, results)
            note(records, name, incident, details, at)
            if report.decision.action == "rollback":
                went_wrong = _go_back(settings, report, str(inputs.previous))
            if went_wrong:
                message = f"{details.message}, which failed: {went_wrong}"
                note(records, name, incident, replace(details, message=message), at)
        for each in (result for result in results if result.status == "alert"):
            what = DriftAlert(
                each.feature, each.kind, "significant", None, at, each.remark
            )
            note(records, name, each.incident, what, at)
        deliver(settings, records, name, at)
    if went_wrong:
        raise went_wrong


def _drift_alert(report: MonitorReport, results: Sequence[CheckResult]) -> DriftAlert:
    """Name the result that says most, and say what is done."""
    decision, at = report.decision, report.as_of
    message = f"{report.verdict}: {decision.reason}; {decision.action}"
    if decision.rule == "harm":
        return DriftAlert("predictions", "harm", "critical", None, at, message)
    bad = [result for result in results if result.status == "bad"]
    if report.verdict != "bad" or not bad:
        return DriftAlert("score", "data_drift", "significant", None, at, message)
    psi = {
        result.feature: result.value for result in bad if result.name.startswith(PSI)
    }
    most = max(bad, key=lambda result: psi.get(result.feature) or 0)
    return DriftAlert(
        most.feature, most.kind, "significant", psi.get(most.feature), at, message
    )


def _go_back(
    settings: Settings, report: MonitorReport, before: str
) -> GyreError | None:
    """Put the version before into production if its files are as registered; or return why not."""
    registry, name = Registry(settings), report.model
    try:
        if wrong := registry.damage(name, before):
            raise RegistryError(f"{name} version {before} is damaged: {wrong}")
        with closing(Ledger(settings)) as ledger:
            why = report.decision.reason
            promote(
                registry,
                ledger,
                name,
                before,
                who=WHO,
                why=why,
                replaces=report.version,
            )
    except GyreError as exc:
        return exc
    return None


def _publish(
    settings: Settings, spec: ModelSpec, report: MonitorReport, folder: Path
) -> None:
    """Figures as metric series of the version's monitoring run; the report when news or daily."""
    tracking, experiment = Tracking(settings), f"{spec.experiment}_monitoring"
    key = f"{spec.name} version {report.version}"
    run_id = tracking.start_or_find_run(
        experiment, key, key, {"version": str(report.version)}
    )
    figures = {
        NOT_IN_A_NAME.sub("_", name): value for name, value in report.figures.items()
    }
    finite = {name: value for name, value in figures.items() if isfinite(value)}
    tracking.log(
        run_id, metrics=finite, tags={"verdict": report.verdict}, at=report.as_of
    )
    tracking.log_json(run_id, REPORTS.dump_python(report, mode="json"), "latest.json")
    stamp = f"{report.verdict} {report.as_of:%Y-%m-%d}"
    if tracking.run(run_id).tags.get("reported") != stamp:
        reports = f"reports/{report.as_of:%Y-%m-%dT%H%M%S}"
        tracking.log_artifacts(run_id, folder, reports)
        tracking.log(run_id, tags={"reported": stamp})
