"""The end of a monitoring run: verdict, decision, alerts and rollback."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from math import isfinite

from core.errors import DataError, GyreError, RegistryError
from core.locks import one_writer
from core.settings import Settings
from mlflow_server.alerts import Alerts, DriftAlert, is_open
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import promote
from monitoring.check import CheckResult, farthest_from_limit
from monitoring.decisions.causes import last_retraining, read_retrainings
from monitoring.decisions.decision import (
    INPUTS,
    STALE,
    Decision,
    Inputs,
    Verdict,
    decide,
    describe,
    find_reasons,
    judge,
)
from monitoring.decisions.store import DecisionRow, store_checks, store_decision
from monitoring.run import SERVING_COUNTS, MonitoringRun, load_past
from training.runs import nothing_new

AUTHOR = "monitor"
"""Author of the ledger rows that a monitoring run writes."""
NOT_STORED = "decisions cannot be stored"
CHECKS_NOT_STORED = "the results of the checks cannot be stored"


@dataclass(frozen=True)
class MonitorReport:
    """One monitoring run of one model.

    Attributes:
        model: Name of the model.
        as_of: Moment of the run, aware UTC.
        version: The version in production; None if there is none.
        verdict: Verdict on the window: see monitoring/decisions/decision.py.
        words: The verdict in one sentence.
        decision: The decision that follows from the verdict.
        cause: Name of the incident, and of the cause that a retraining answers.
        entities: Number of entities in the window.
        results: Results of the checks.
        left_out: Number of predictions of the window that do not count, by reason.
        outcomes_left_out: Number of lines of feedback that do not count, by reason.
        malformed: Number of log lines that could not be read.

    """

    model: str
    as_of: datetime
    version: str | None
    verdict: Verdict
    words: str
    decision: Decision
    cause: str = ""
    entities: int = 0
    results: tuple[CheckResult, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    outcomes_left_out: dict[str, int] = field(default_factory=dict)
    malformed: int = 0

    @property
    def figures(self) -> dict[str, float]:
        """The value of each check that has one, by the name of the check's result."""
        return {
            result.name: result.value
            for result in self.results
            if result.value is not None and isfinite(result.value)
        }

    def summary(self) -> str:
        """Return verdict and decision in one line."""
        return (
            f"{self.model} version {self.version}: {self.words}; "
            f"{self.decision.action} ({self.decision.rule})"
        )


def conclude(
    run: MonitoringRun, results: Sequence[CheckResult], malformed: int
) -> MonitorReport:
    """Decide, act and store the decision.

    The past is read once more under the model's lock, and the decision is stored before the lock
    is free: another run may have decided since this one began, and of two runs only one retrains.
    A harmful version is rolled back even where the lock cannot be taken, or decisions can be
    neither read nor stored.

    Args:
        run: The run, as its checks saw it.
        results: Results of the checks.
        malformed: Number of log lines that could not be read.

    Raises:
        RegistryError, PromotionRefusedError: The rollback failed. An alert says so, too.
        DataError: The lock could not be taken, or decisions could not be read: then nothing but
            a rollback is done. Or the decision could not be stored: an alert says so, too.

    """
    settings = run.settings
    model = run.spec.name
    with Alerts(settings) as alerts:
        with _lock_if_free(settings, f"monitor_{model}") as lock_error:
            past = load_past(settings, run.model, run.version, run.as_of)
            past_error = lock_error or past.error
            run = replace(run, past=past)
            inputs = decision_inputs(run, results)
            if past_error and inputs.harm is None:
                raise past_error
            report = _report(run, inputs, results, malformed)
            if report.decision.rule == STALE:
                return report
            # First: a harmful version answers requests until it is rolled back.
            rollback_error = act(settings, alerts, report, inputs.previous)
            storing_error = _store_decision(run, report, inputs, alerts)
        alerts.deliver(model, run.as_of)
        try:
            store_checks(settings, model, run.as_of, results)
        except DataError as exc:  # for the next delivery
            message = f"{CHECKS_NOT_STORED}: {exc}"
            alerts.note(model, CHECKS_NOT_STORED, message, run.as_of)
    error = rollback_error or past_error or storing_error
    if error:
        raise error
    return report


@contextmanager
def _lock_if_free(settings: Settings, name: str) -> Iterator[DataError | None]:
    """Hold a lock during the block. Where it cannot be taken, yield the error and hold none."""
    lock_error: DataError | None = None
    with ExitStack() as stack:
        try:
            stack.enter_context(one_writer(settings, name))
        except DataError as exc:
            lock_error = exc
        yield lock_error


def decision_inputs(run: MonitoringRun, results: Sequence[CheckResult]) -> Inputs:
    """Return everything that the decision depends on.

    Raises:
        RegistryError, DataError: A store does not answer.

    """
    past = run.past
    limits = run.spec.monitoring
    verdict = judge(results)
    harms = (
        result.words for result in results if result.status == "harmful" and result.acts
    )
    harm = next(harms, None)
    retraining = None
    if harm is None:  # a rollback does not wait for it
        decisions, trainings = read_retrainings(
            run.settings, run.newest_spec, run.model.created
        )
        # An earlier try of this run may have decided, too.
        earlier = [row for row in decisions if row.as_of != run.as_of]
        retraining = last_retraining(earlier, trainings, past.training_ids)
    earlier_verdicts = [row.verdict for row in past.decisions]
    inputs = Inputs(
        as_of=run.as_of,
        version=run.version,
        verdicts=(*earlier_verdicts, verdict),
        findings=tuple(find_reasons(verdict, results)),
        harm=harm,
        previous=past.previous,
        last_retraining=retraining,
        last_promotion=past.promotion.time if past.promotion else None,
        cooldown=timedelta(hours=limits.cooldown_hours),
        windows=limits.windows,
        bad_windows=limits.bad_windows,
    )
    if decide(inputs).action == "retrain":
        # The training reports an error better, such as that a dataset has no rows.
        with suppress(GyreError):
            news = nothing_new(run.settings, run.newest_spec, run.as_of)
            inputs = replace(inputs, nothing_new=news)
    return inputs


def _report(
    run: MonitoringRun, inputs: Inputs, results: Sequence[CheckResult], malformed: int
) -> MonitorReport:
    verdict = inputs.verdicts[-1]
    cause = f"drift of version {run.version}"
    if inputs.harm is not None:
        # The row: a version that is put back and does harm once more is another incident.
        row = run.past.promotion.sequence if run.past.promotion else 0
        cause = f"harm of version {run.version} (ledger row {row})"
    return MonitorReport(
        model=run.spec.name,
        as_of=run.as_of,
        version=run.version,
        verdict=verdict,
        words=describe(verdict, results),
        decision=decide(inputs),
        cause=cause,
        entities=len(run.window.rows),
        results=tuple(results),
        left_out=run.window.left_out,
        outcomes_left_out=run.outcomes.left_out,
        malformed=malformed,
    )


def _store_decision(
    run: MonitoringRun, report: MonitorReport, inputs: Inputs, alerts: Alerts
) -> DataError | None:
    """Store the decision. Where that fails, note an alert and return the error."""
    counts = run.serving
    row = DecisionRow(
        model=report.model,
        created=run.model.created,
        version=run.version,
        as_of=report.as_of,
        verdict=report.verdict,
        words=report.words,
        cause=report.cause,
        inputs=INPUTS.dump_json(inputs).decode(),
        entities=report.entities,
        serving=None if counts is None else SERVING_COUNTS.dump_json(counts).decode(),
        **asdict(report.decision),
    )
    try:
        store_decision(run.settings, row)
    except DataError as exc:
        alerts.note(report.model, NOT_STORED, f"{NOT_STORED}: {exc}", report.as_of)
        return exc
    return None


def act(
    settings: Settings, alerts: Alerts, report: MonitorReport, previous: str | None
) -> GyreError | None:
    """Note alerts, one for each incident, and roll back a version that does harm.

    An alert is stored before the rollback and delivered after it, so that no receiver delays the
    rollback.

    Args:
        settings: Settings of the installation.
        alerts: Store of the alerts.
        report: Report of the run.
        previous: The version to go back to.

    Returns:
        Why the rollback failed, which the alert says too; None if it did not fail.

    """
    at = report.as_of
    model = report.model
    incident = report.cause
    rollback_error: GyreError | None = None
    open_causes = {row["cause"] for row in alerts.rows(model) if is_open(row, at)}
    goes_on = report.verdict == "bad" and incident in open_causes
    if report.decision.action != "nothing" or goes_on:
        content = _decision_alert(report)
        alerts.note(model, incident, content, at)
        try:
            if report.decision.action == "rollback":
                _roll_back(settings, report, str(previous))
        except GyreError as exc:
            rollback_error = exc
            message = f"{content.message}; the rollback failed: {exc}"
            alerts.note(model, incident, replace(content, message=message), at)
    for result in report.results:
        if result.acts and result.status in {"alert", "unknown"}:
            alerts.note(model, result.incident, _check_alert(report, result), at)
    return rollback_error


def _check_alert(report: MonitorReport, result: CheckResult) -> DriftAlert:
    remedy = f". {result.remedy}" if result.remedy else ""
    return DriftAlert(
        feature=result.feature or result.name,
        drift_type=result.kind,
        severity="significant",
        psi_score=None,
        detected_at=report.as_of,
        message=f"{result.words}{remedy}",
        version=report.version,
    )


def _decision_alert(report: MonitorReport) -> DriftAlert:
    """Return an alert of the decision that names the result farthest from its limit."""
    decision = report.decision
    verdict = report.verdict.replace("_", " ")
    is_harm = decision.rule == "harm"
    bad = [
        result
        for result in report.results
        if result.status == "bad" and result.acts and not is_harm
    ]
    worst = farthest_from_limit(bad)
    is_psi = worst is not None and worst.name.startswith("psi/")
    return DriftAlert(
        feature=worst.feature if worst else "predictions",
        drift_type=worst.kind if worst else "harm",
        severity="critical" if is_harm else "significant",
        psi_score=worst.value if worst and is_psi else None,
        detected_at=report.as_of,
        message=f"{verdict}: {decision.reason}; {decision.action}",
        version=None if is_harm else report.version,
    )


def _roll_back(settings: Settings, report: MonitorReport, previous: str) -> None:
    """Put the previous version into production.

    Raises:
        RegistryError: The files of the version are damaged, or MLflow does not answer.
        PromotionRefusedError: Another version has come into production since.

    """
    registry = Registry(settings)
    model = report.model
    damage = registry.damage(model, previous)
    if damage:
        raise RegistryError(f"{model} version {previous} is damaged: {damage}")
    with Ledger(settings) as ledger:
        promote(
            registry,
            ledger,
            model,
            previous,
            who=AUTHOR,
            why=report.decision.reason,
            action="automatic rollback",
            replaces=report.version,
        )
