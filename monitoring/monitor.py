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

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.reconcile import history
from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from monitoring.alerts import alert
from monitoring.collect import collect, outcomes, predictions
from monitoring.decision import Decision, Inputs, Verdict, decide
from monitoring.drift import SCORE, Drift, measure
from monitoring.failures import failures
from monitoring.performance import WATCHED, findings, logged, replay
from monitoring.reference import load_reference
from monitoring.verdict import FEWEST, harm, judge
from monitoring.window import Window, window
from stack.errors import GyreError
from training.validate import learnable, newest_snapshot

if TYPE_CHECKING:
    import pyarrow as pa

    from stack.settings import Settings
    from stack.spec import ModelSpec

INPUTS = TypeAdapter(Inputs)
VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Verdict)


@dataclass(frozen=True)
class Look:
    """What was measured. drift is None where the window is too small or the reference missing."""

    drift: Drift | None
    performance: list[str]
    notes: list[str]
    harm: str | None
    figures: dict[str, float]


@dataclass(frozen=True)
class MonitorReport:
    """One look at one model. version is None where nothing is in production."""

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

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    taken, version = collect(settings), Registry(settings).production(spec.name)
    if version is None:
        decision = Decision("nothing", "insufficient_data", "nothing is in production")
        return MonitorReport(spec.name, as_of, None, "insufficient_data", decision, "", 0, (), (),
                             {}, {}, taken.malformed)  # fmt: skip
    found = predictions(settings).read()
    seen = window(found, spec.name, version, list(spec.features), as_of)
    with TemporaryDirectory(prefix="gyre-monitor-") as name:
        mine = found.filter((pc.field("model") == spec.name) & (pc.field("version") == version))
        look = _look(settings, spec, version, seen, mine, as_of, Path(name))
        report = _decide(settings, spec, version, seen, look, as_of, taken.malformed)
        _publish(settings, spec, report, Path(name))
    _act(settings, spec, report)
    return report


def _look(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    seen: Window,
    mine: pa.Table,
    as_of: datetime,
    folder: Path,
) -> Look:
    """Measure everything that can be measured; what cannot is a note."""
    try:
        reference = load_reference(settings, spec, Registry(settings).version(spec.name, version))
    except GyreError as exc:
        return Look(None, [], [f"no reference: {exc}"], None, {})
    drift = None
    if len(seen.rows) >= FEWEST:
        current = seen.rows[list(reference.rows)]
        drift = measure(reference.rows, current, folder, spec.drift.significant)
    past = replay(settings, spec, version, reference.snapshot, as_of)
    true = logged(settings, spec, mine, outcomes(settings).read(), as_of)
    measured = [each for each in (past, true) if each is not None]
    bad = [line for each in measured for line in findings(each, reference.evaluated)]
    figures = {f"{each.kind}_{name}": each.metrics[name] for each in measured for name in WATCHED}
    scores = seen.rows[SCORE].tolist()
    harmful = harm(scores, spec.threshold, reference.rows[SCORE].tolist(),
                   *failures(settings, spec.name, version))  # fmt: skip
    return Look(drift, bad, [], harmful, figures)


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
    # Without its own row of an earlier try: a killed task decides the same again.
    rows = [row for row in records.decisions(spec.name) if row.as_of != as_of]
    entities = len(seen.rows)
    verdict, bad, notes = judge(spec.drift, entities, look.drift, look.performance)
    cause = f"harm of version {version}" if look.harm else _cause(settings, spec, version, as_of)
    retrained = [
        row for row in records.decisions(spec.name, action="retrain") if row.as_of != as_of
    ]
    inputs = Inputs(
        as_of=as_of,
        version=version,
        verdicts=(
            *(VERDICTS.validate_python(r.verdict) for r in rows if r.version == version),
            verdict,
        ),
        findings=tuple(bad),
        harm=look.harm,
        previous=_previous(ledger, spec.name, version),
        cause=cause,
        answered=any(row.cause == cause for row in retrained),
        last_retraining=retrained[-1].as_of if retrained else None,
        cooldown=timedelta(hours=spec.retraining.cooldown_hours),
        learnable=learnable(settings, spec, as_of),
    )
    decision = decide(inputs)
    figures = {"entities": float(entities), **look.figures}
    figures |= {
        f"psi_{name}": value for name, value in (look.drift.psi if look.drift else {}).items()
    }
    stored = INPUTS.dump_json(inputs).decode()
    records.keep(DecisionRow(spec.name, version, as_of, verdict, decision.action, decision.rule,
                             decision.reason, cause, stored, figures))  # fmt: skip
    records.close()
    ledger.close()
    return MonitorReport(
        spec.name, as_of, version, verdict, decision, cause, entities, tuple(bad),
        (*look.notes, *notes), figures, seen.left_out, malformed,
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


def _act(settings: Settings, spec: ModelSpec, report: MonitorReport) -> None:
    """Alert once per cause, and go back where the version does harm."""
    decision = report.decision
    if report.verdict != "bad" and decision.action == "nothing":
        return
    if decision.action == "rollback":
        _go_back(settings, spec.name, report)
    records = Records(settings)
    message = f"{report.verdict}: {decision.reason}; {decision.action}"
    alert(settings, records, spec.name, report.cause, message, report.as_of)
    records.close()


def _go_back(settings: Settings, model: str, report: MonitorReport) -> None:
    ledger = Ledger(settings)
    if previous := _previous(ledger, model, str(report.version)):
        promote(Registry(settings), ledger, model, previous, who="monitor",
                why=report.decision.reason, replaces=report.version)  # fmt: skip
    ledger.close()
