"""`monitor_<MODEL>`: the prediction log becomes a verdict, and the verdict a decision.

A run rolls back, alerts, and writes its figures to MLflow. The caller starts a retraining (in
Airflow by an Asset event), as this process may not be one of Airflow's.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import in_one_line
from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import reconcile
from monitoring.checks.check_list import run_checks
from monitoring.conclude import MonitorReport, conclude
from monitoring.decisions.decision import STALE, Decision
from monitoring.decisions.topic import send_decisions
from monitoring.exports import export
from monitoring.log.collect import collect
from monitoring.log.external import take_predictions
from monitoring.run import MonitoringRun, prepare_run

log = logging.getLogger(__name__)
ABOUT_EXPERIMENT = (
    "A run is a version of the model, and its metrics are those of each monitoring run of the "
    "version; Evidently's reports are its artifacts. `psi/` is the drift of each feature, "
    "`online/` and `backfilled/` are metrics on outcomes that came since."
)
"""Text above the runs on MLflow's page of the experiment."""
NOT_PUBLISHED = "the results of the checks are not in MLflow"
NOT_EXPORTED = "predictions or decisions are not in the team's tables"
NOT_SENT = "decisions are not on the team's topic"
NOT_IN_A_METRIC = re.compile(r"[^\w./ -]")
"""Characters that MLflow refuses in the name of a metric, such as the "=" of a segment."""


def monitor(settings: Settings, spec: ModelSpec, as_of: datetime) -> MonitorReport:
    """Check the version in production as of `as_of`; store verdict and decision; act on it.

    Where `as_of` is older than the newest promotion, nothing is stored or done.

    Raises:
        RegistryError, DataError: A store does not answer: see `conclude`.

    """
    collected = collect(settings)
    registry = Registry(settings)
    with Ledger(settings) as ledger:
        reconcile(registry, ledger, spec.name)
    version = registry.production(spec.name)
    if version is None:
        with Alerts(settings) as alerts:
            alerts.deliver(spec.name, as_of)
        reason = "nothing is in production"
        return MonitorReport(
            model=spec.name,
            as_of=as_of,
            version=None,
            verdict="insufficient_data",
            words=reason,
            decision=Decision("nothing", "insufficient_data", reason),
        )
    taken = take_predictions(settings, spec, version)
    with TemporaryDirectory(prefix="gyre-monitor-") as name:
        folder = Path(name)
        run, reference = prepare_run(settings, spec, version, as_of, folder)
        report = conclude(run, run_checks(run, reference), collected.malformed)
        report = replace(report, left_out=report.left_out | taken.refused)
        if report.decision.rule != STALE:
            with _alert_of_failure(run, NOT_PUBLISHED):
                _publish(settings, spec, report, folder)
            with _alert_of_failure(run, NOT_EXPORTED):
                export(run)
            if settings.decisions_topic:
                with _alert_of_failure(run, NOT_SENT):
                    send_decisions(settings, spec.name, as_of)
    return report


@contextmanager
def _alert_of_failure(run: MonitoringRun, problem: str) -> Iterator[None]:
    """Raise an alert where the block fails: the decision stands."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  (it becomes an alert)
        words = f"{problem}: {in_one_line(exc)}"
        log.error("%s", words)  # noqa: TRY400  (the cause may name a password)
        with Alerts(run.settings) as alerts:
            alerts.alert(run.spec.name, problem, words, run.as_of)


def _publish(
    settings: Settings, spec: ModelSpec, report: MonitorReport, folder: Path
) -> None:
    """Log the figures as metric series of the version's run in MLflow.

    Evidently's report is added once a day, and whenever the verdict changes.
    """
    tracking = Tracking(settings)
    key = f"{spec.name} version {report.version}"
    run_id = tracking.start_or_find_run(
        f"{spec.experiment}_monitoring",
        key,
        key,
        {"version": str(report.version)},
        about=ABOUT_EXPERIMENT,
    )
    metrics = {
        NOT_IN_A_METRIC.sub("_", name): value for name, value in report.figures.items()
    }
    # With steps MLflow draws a line, without them the last value alone.
    run = tracking.run(run_id)
    seconds = (report.as_of - run.started).total_seconds()
    tracking.log(
        run_id,
        metrics=metrics,
        tags={"verdict": report.verdict, "words": report.words},
        at=report.as_of,
        step=round(seconds / 3600),
    )
    reported = f"{report.verdict} {report.as_of:%Y-%m-%d}"
    if run.tags.get("reported") != reported:
        tracking.log_artifacts(
            run_id, str(folder), f"reports/{report.as_of:%Y-%m-%dT%H%M%S}"
        )
        tracking.log(run_id, tags={"reported": reported})
    # The next monitoring run writes into the same run of MLflow.
    tracking.end(run_id)
