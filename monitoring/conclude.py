"""The end of a monitoring run: verdict, decision, and what is done about them."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
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
from monitoring.decisions.past import COUNTS, load_past
from monitoring.decisions.store import DecisionRow, store_checks, store_decision
from monitoring.run import WHO, MonitoringRun
from training.runs import nothing_new

NOT_STORED = "decisions cannot be stored"
CHECKS_NOT_STORED = "what the checks found cannot be stored"


@dataclass(frozen=True)
class MonitorReport:
    """One monitoring run of one model.

    Attributes:
        model: Its name.
        as_of: The moment, aware UTC.
        version: The version in production; None if there is none.
        verdict: See monitoring/decisions/decision.py.
        words: The verdict in one sentence.
        decision: What follows.
        cause: Names the incident, and what a retraining answers.
        entities: Of the window.
        results: What the checks found.
        left_out: Predictions of the window that do not count, by why.
        outcomes_left_out: Lines of feedback that do not count, by why.
        malformed: Lines of the logs that are no rows.

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
        """The value of each check that has one, by its name."""
        return {
            result.name: result.value
            for result in self.results
            if result.value is not None and isfinite(result.value)
        }

    def summary(self) -> str:
        """Say in one line what was seen and what follows."""
        return (
            f"{self.model} version {self.version}: {self.words}; "
            f"{self.decision.action} ({self.decision.rule})"
        )


def conclude(
    run: MonitoringRun, results: Sequence[CheckResult], malformed: int
) -> MonitorReport:
    """Decide, act and store the decision.

    From reading the last decisions to storing this one it is one step under the model's lock: of
    two runs at once one retrains. A harmful version goes back whatever cannot be read or stored.

    Raises:
        DataError: The decision could not be stored; that is alerted of.
        RegistryError, PromotionRefusedError: There was no going back; that is alerted of, too.

    """
    settings = run.settings
    model = run.spec.name
    problem: GyreError | None = None
    with Alerts(settings) as alerts:
        with ExitStack() as step:
            try:
                step.enter_context(one_writer(settings, f"monitor_{model}"))
            except DataError as exc:
                problem = exc
            past = load_past(
                settings, run.newest_spec, run.model, run.version, run.as_of
            )
            problem = problem or past.problem
            run = replace(run, past=past)
            inputs = decision_inputs(run, results)
            if problem and inputs.harm is None:
                raise problem
            report = _report(run, inputs, results, malformed)
            if report.decision.rule == STALE:
                return report
            # First: nothing stored is worth a harmful version's next minute.
            problem = act(settings, alerts, report, inputs.previous) or problem
            try:
                store_decision(settings, _decision_row(run, report, inputs))
            except DataError as exc:
                alerts.note(model, NOT_STORED, f"{NOT_STORED}: {exc}", run.as_of)
                problem = problem or exc
        alerts.deliver(model, run.as_of)
        try:
            store_checks(settings, model, run.as_of, results)
        except DataError as exc:
            alerts.note(
                model, CHECKS_NOT_STORED, f"{CHECKS_NOT_STORED}: {exc}", run.as_of
            )
    if problem:
        raise problem
    return report


def decision_inputs(run: MonitoringRun, results: Sequence[CheckResult]) -> Inputs:
    """Return everything that the decision depends on."""
    past = run.past
    limits = run.spec.monitoring
    verdict = judge(results)
    harm = (
        result.words for result in results if result.status == "harmful" and result.acts
    )
    earlier = [row.verdict for row in past.own]
    inputs = Inputs(
        as_of=run.as_of,
        version=run.version,
        verdicts=(*earlier, verdict),
        findings=tuple(find_reasons(verdict, results)),
        harm=next(harm, None),
        previous=past.previous,
        last_retraining=past.last_retraining,
        last_promotion=past.promotion.time if past.promotion else None,
        cooldown=timedelta(hours=limits.cooldown_hours),
        windows=limits.windows,
        bad_windows=limits.bad_windows,
    )
    if decide(inputs).action == "retrain":
        # That there is nothing at all to learn from is the training's to say.
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
        # Of the same version, put back since, it is another incident.
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


def _decision_row(
    run: MonitoringRun, report: MonitorReport, inputs: Inputs
) -> DecisionRow:
    counts = run.serving
    return DecisionRow(
        model=report.model,
        created=run.model.created,
        version=run.version,
        as_of=report.as_of,
        verdict=report.verdict,
        words=report.words,
        cause=report.cause,
        inputs=INPUTS.dump_json(inputs).decode(),
        entities=report.entities,
        serving=None if counts is None else COUNTS.dump_json(counts).decode(),
        **asdict(report.decision),
    )


def act(
    settings: Settings, alerts: Alerts, report: MonitorReport, previous: str | None
) -> GyreError | None:
    """Note alerts, one per incident, and go back where the version does harm.

    Alerts are stored before the rollback and delivered after it, so that no receiver delays it.

    Returns:
        Why there was no going back; that is alerted of, too.

    """
    at = report.as_of
    model = report.model
    problem: GyreError | None = None
    incident = report.cause
    open_causes = {row["cause"] for row in alerts.rows(model) if is_open(row, at)}
    goes_on = report.verdict == "bad" and incident in open_causes
    if report.decision.action != "nothing" or goes_on:
        content = _decision_alert(report)
        alerts.note(model, incident, content, at)
        try:
            if report.decision.action == "rollback":
                _go_back(settings, report, str(previous))
        except GyreError as exc:
            problem = exc
            message = f"{content.message}; the rollback failed: {exc}"
            alerts.note(model, incident, replace(content, message=message), at)
    for result in report.results:
        if result.acts and result.status in {"alert", "unknown"}:
            alerts.note(model, result.incident, _check_alert(report, result), at)
    return problem


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
    """Name the result that is furthest beyond its limit, and say what is done."""
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


def _go_back(settings: Settings, report: MonitorReport, previous: str) -> None:
    """Put the version before into production.

    Raises:
        RegistryError: Its files are not those registered, or MLflow does not answer.
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
            who=WHO,
            why=report.decision.reason,
            action="automatic rollback",
            replaces=report.version,
        )
