"""`monitor_<MODEL>`: what was logged becomes a verdict, and the verdict a decision.

Nothing is carried out here but the alert and, on harm, the way back: a retraining is started by
whoever calls (in Airflow an Asset event), because this process may not be Airflow's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from pydantic import TypeAdapter

from feature_repo.freshness import freshness
from mlflow_server.alerts import alert
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.reconcile import history, last_applied
from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import PRODUCTION, Registry
from mlflow_server.tracking import Tracking
from monitoring.collect import collect, outcomes, predictions
from monitoring.decision import INPUTS, STALE, Decision, Inputs, Verdict, decide
from monitoring.drift import SCORE, Drift, measure
from monitoring.failures import failures
from monitoring.feedback import Settled, settle
from monitoring.performance import WATCHED, findings, logged, replay
from monitoring.readout import note_of_trial
from monitoring.reference import Reference, load_reference
from monitoring.verdict import FEWEST, harm, judge
from monitoring.window import Window, window
from stack.errors import GyreError
from training.validate import answered, learnable, newest_snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec

UNMEASURED = "performance was not measured: no snapshot matured since, too few outcomes are known"
VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Verdict)


@dataclass(frozen=True)
class Look:
    """What was measured. drift is None where the window is too small or the reference missing."""

    drift: Drift | None
    performance: list[str]
    notes: list[str]
    harm: str | None
    figures: dict[str, float]
    outcomes_left_out: dict[str, int]


@dataclass(frozen=True)
class MonitorReport:
    """One look at one model. version is None where nothing is in production.

    left_out: predictions of the window, by why (window.py). outcomes_left_out: lines of feedback,
    by why (feedback.py). malformed: lines of the logs that are no rows (collect.py).
    """

    model: str
    as_of: datetime
    version: str | None
    verdict: str
    decision: Decision
    cause: str
    entities: int
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    figures: dict[str, float]
    left_out: dict[str, int]
    outcomes_left_out: dict[str, int]
    malformed: int

    def summary(self) -> str:
        """Say in one line what was seen and what follows."""
        return (
            f"{self.model} version {self.version}: {self.verdict} on {self.entities} entities; "
            f"{self.decision.action} ({self.decision.rule}): {self.decision.reason}"
        )

    def retraining_reason(self) -> str:
        """Say what a retraining would answer and why, for run and ledger."""
        return f"{self.cause}: {self.decision.reason}"


REPORTS = TypeAdapter(MonitorReport)


def monitor(settings: Settings, spec: ModelSpec, as_of: datetime) -> MonitorReport:
    """Look at the version in production as of `as_of`; store verdict and decision; say it.

    Where `as_of` is older than the newest promotion, what is seen is said and nothing else done.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    taken, registry = collect(settings), Registry(settings)
    version = registry.production(spec.name)
    if version is None:
        decision = Decision("nothing", "insufficient_data", "nothing is in production")
        return MonitorReport(spec.name, as_of, None, "insufficient_data", decision, "", 0, (), (),
                             {}, {}, {}, taken.malformed)  # fmt: skip
    found = predictions(settings).read()
    registered = {each.version for each in registry.versions(spec.name)}
    # The version's own, whatever the spec says by now.
    reference = _reference(settings, spec, version)
    types = reference.features if isinstance(reference, Reference) else spec.features
    seen = window(found, spec.name, version, registered, types, as_of)
    settled = settle(
        outcomes(settings).read(), taken.told, found, spec.name, as_of,
        classes=spec.task == "classification",
    )  # fmt: skip
    with TemporaryDirectory(prefix="gyre-monitor-") as name:
        mine = found.filter((pc.field("model") == spec.name) & (pc.field("version") == version))
        look = _look(settings, spec, version, reference, seen, mine, settled, as_of, Path(name))
        aged = freshness(settings, spec.dataset).problems(as_of)
        look.notes.extend(why for _, why in aged)
        look.notes.extend(note_of_trial(settings, spec, version, found, settled.known, as_of))
        report = _decide(settings, spec, version, seen, look, as_of, taken.malformed)
        if report.decision.rule == STALE:
            return report
        # First: no report is worth a harmful version's next minute.
        _act(settings, spec, report, aged)
        _publish(settings, spec, report, Path(name))
    return report


def _reference(settings: Settings, spec: ModelSpec, version: str) -> Reference | str:
    """Return what the version is compared with, or why there is nothing."""
    try:
        return load_reference(settings, spec, Registry(settings).version(spec.name, version))
    except GyreError as exc:
        return str(exc)


def _look(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    reference: Reference | str,
    seen: Window,
    mine: pa.Table,
    settled: Settled,
    as_of: datetime,
    folder: Path,
) -> Look:
    """Measure everything that can be measured; what cannot is a note."""
    failed = failures(settings, spec.name, version)
    if isinstance(reference, str):
        found = harm(seen.rows[SCORE].tolist(), spec.threshold, [], *failed)
        return Look(None, [], [f"no reference: {reference}"], found, {}, settled.left_out)
    drift = None
    if len(seen.rows) >= FEWEST:
        current = seen.rows[list(reference.rows)]
        drift = measure(reference.rows, current, folder, spec.drift.significant)
    past = replay(settings, spec, version, reference.snapshot, as_of)
    true = logged(settings, spec, mine, settled.known, reference.threshold, as_of)
    measured = [each for each in (past, true) if each is not None]
    bad = [line for each in measured for line in findings(each, reference.evaluated)]
    figures = {
        f"{each.kind}_{name}": each.metrics[name]
        for each in measured for name in WATCHED if name in each.metrics
    }  # fmt: skip
    scores, before = seen.rows[SCORE].tolist(), reference.rows[SCORE].tolist()
    harmful = harm(scores, reference.threshold, before, *failed)
    notes = [] if measured else [UNMEASURED]
    return Look(drift, bad, notes, harmful, figures, settled.left_out)


def _decide(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    seen: Window,
    look: Look,
    as_of: datetime,
    malformed: int,
) -> MonitorReport:
    records, ledger = Records(settings), Ledger(settings)
    promotion = last_applied(ledger.rows(spec.name), PRODUCTION)
    # Before `as_of`, so without the row of an earlier try: a killed task decides the same again.
    rows = [
        row
        for row in records.decisions(spec.name)
        if row.version == version
        and row.as_of < as_of
        and not (promotion and row.as_of < promotion.time)
    ]
    entities = len(seen.rows)
    verdict, bad, notes = judge(spec.drift, entities, look.drift, look.performance)
    cause = f"harm of version {version}" if look.harm else _cause(settings, spec, version, as_of)
    retrained = [
        row for row in records.decisions(spec.name, action="retrain") if row.as_of != as_of
    ]
    inputs = Inputs(
        as_of=as_of,
        version=version,
        verdicts=(*(VERDICTS.validate_python(row.verdict) for row in rows), verdict),
        findings=tuple(bad),
        harm=look.harm,
        previous=_previous(ledger, spec.name, version),
        cause=cause,
        answered=answered(
            settings, spec, cause, [row.as_of for row in retrained if row.cause == cause], as_of
        ),
        last_retraining=retrained[-1].as_of if retrained else None,
        cooldown=timedelta(hours=spec.retraining.cooldown_hours),
        learnable=learnable(settings, spec, as_of),
        last_promotion=promotion.time if promotion else None,
    )
    decision = decide(inputs)
    figures = {"entities": float(entities), **look.figures}
    figures |= {
        f"psi_{name}": value for name, value in (look.drift.psi if look.drift else {}).items()
    }
    stored = INPUTS.dump_json(inputs).decode()
    if decision.rule != STALE:
        records.keep(DecisionRow(spec.name, version, as_of, verdict, decision.action, decision.rule,
                                 decision.reason, cause, stored, figures))  # fmt: skip
    records.close()
    ledger.close()
    return MonitorReport(
        spec.name, as_of, version, verdict, decision, cause, entities, tuple(bad),
        (*look.notes, *notes), figures, seen.left_out,
        look.outcomes_left_out, malformed,
    )  # fmt: skip


def _previous(ledger: Ledger, model: str, version: str) -> str | None:
    """The version that was in production before `version`."""
    before = [each for each in history(ledger.rows(model)) if each != version]
    return before[-1] if before else None


def _cause(settings: Settings, spec: ModelSpec, version: str, as_of: datetime) -> str:
    """Name what a retraining would answer; a newly matured snapshot makes it another cause."""
    newest = newest_snapshot(settings, spec, as_of)
    return f"drift of version {version}, labels up to {newest:%Y-%m-%d}"


def _publish(settings: Settings, spec: ModelSpec, report: MonitorReport, folder: Path) -> None:
    """Figures as metric series of the version's monitoring run; the report when news or daily."""
    tracking, experiment = Tracking(settings), f"{spec.experiment}_monitoring"
    key = f"{spec.name} version {report.version}"
    run_id = tracking.start_or_find_run(experiment, key, key, {"version": str(report.version)})
    finite = {name: value for name, value in report.figures.items() if isfinite(value)}
    tracking.log(run_id, metrics=finite, tags={"verdict": report.verdict})
    tracking.log_json(run_id, REPORTS.dump_python(report, mode="json"), "latest.json")
    tags = tracking.run(run_id).tags
    stamp = f"{report.verdict} {report.as_of:%Y-%m-%d}"
    if tags.get("reported") == stamp:
        return
    for file in sorted(folder.iterdir()):
        tracking.log_artifact(run_id, file, f"reports/{report.as_of:%Y-%m-%dT%H%M%S}")
    tracking.log(run_id, tags={"reported": stamp})


def _act(
    settings: Settings, spec: ModelSpec, report: MonitorReport, aged: Sequence[tuple[str, str]]
) -> None:
    """Alert once per cause, and go back where the version does harm. aged: causes, and why."""
    decision = report.decision
    if decision.action == "rollback":
        _go_back(settings, spec.name, report)
    records = Records(settings)
    # A retraining that starts after it was parked is news, though its cause is the same.
    cause = f"parked: {report.cause}" if decision.rule == "parked" else report.cause
    told = [row["cause"] for row in records.alerts(spec.name)] if report.verdict == "bad" else []
    if decision.action != "nothing" or decision.rule == "answered" or cause in told:
        message = f"{report.verdict}: {decision.reason}; {decision.action}"
        alert(settings, records, spec.name, cause, message, report.as_of)
    for since, why in aged:
        alert(settings, records, spec.name, since, why, report.as_of)
    records.close()


def _go_back(settings: Settings, model: str, report: MonitorReport) -> None:
    ledger = Ledger(settings)
    if previous := _previous(ledger, model, str(report.version)):
        promote(Registry(settings), ledger, model, previous, who="monitor",
                why=report.decision.reason, replaces=report.version)  # fmt: skip
    ledger.close()
