"""`monitor_<MODEL>`: what was logged becomes a verdict, and the verdict a decision.

Nothing is carried out here but the alert and, on harm, the way back: a retraining is started by
whoever calls (in Airflow an Asset event), because this process may not be Airflow's.
"""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from feature_repo.freshness import freshness
from mlflow_server.alerts import DriftAlert, retry
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import reconcile
from mlflow_server.records import DecisionRow, Records
from mlflow_server.registry import Registry
from monitoring.act import act, drift_alert, publish
from monitoring.batch import or_batch
from monitoring.collect import ANSWERS, collect, predictions
from monitoring.decision import INPUTS, STALE, Decision, Inputs, Verdict, decide
from monitoring.feedback import settle
from monitoring.look import find_reference, look_at
from monitoring.past import ASKED, USUAL, load_past
from monitoring.performance import judgeable
from monitoring.readout import note_of_trial
from monitoring.reference import Reference
from monitoring.report import MonitorReport
from monitoring.skew import skew
from monitoring.verdict import collapse, judge
from monitoring.window import window
from stack.errors import DataError, TrainingError
from training.validate import answered, learnable, newest_snapshot

if TYPE_CHECKING:
    from datetime import datetime

    from monitoring.look import Look
    from monitoring.past import Past
    from monitoring.verdict import Finding
    from monitoring.window import Window
    from stack.settings import Settings
    from stack.spec import ModelSpec

VERDICTS: TypeAdapter[Verdict] = TypeAdapter(Verdict)


def monitor(settings: Settings, spec: ModelSpec, as_of: datetime) -> MonitorReport:
    """Look at the version in production as of `as_of`; store verdict and decision; say it.

    Where `as_of` is older than the newest promotion, what is seen is said and nothing else done.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    taken, registry = collect(settings), Registry(settings)
    with closing(Ledger(settings, as_of)) as ledger:
        reconcile(registry, ledger, spec.name)
    version = registry.production(spec.name)
    if version is None:
        with closing(Records(settings)) as records:
            retry(settings, records, spec.name, as_of)
        decision = Decision("nothing", "insufficient_data", "nothing is in production")
        return MonitorReport(spec.name, as_of, None, "insufficient_data", decision, "", 0, (), (),
                             {}, {}, {}, taken.malformed)  # fmt: skip
    versions = registry.versions(spec.name)
    past = load_past(settings, spec, version, versions, as_of)
    table = predictions(settings)
    registered = {each.version for each in versions}
    # The version's own, whatever the spec says by now.
    reference = find_reference(settings, spec, version)
    types = reference.features if isinstance(reference, Reference) else spec.features
    of = (spec.name, version, registered, types, as_of)
    asked = window(table, *of)
    seen, usual = or_batch(asked, settings, *of), past.usual()
    classes = spec.task == "classification"
    told = settle(settings, taken.told, spec.name, as_of, classes=classes)
    with TemporaryDirectory(prefix="gyre-monitor-") as name:
        known = judgeable(spec, version, told.known, as_of)
        mine = table.read(columns=ANSWERS, where=known)
        look = look_at(settings, spec, past, reference, seen, mine, told, Path(name))
        skewed = skew(settings, spec, version, table, as_of)
        look.figures.update(skewed.figures())
        look.notes.extend(skewed.notes())
        look.figures.update({ASKED: float(len(asked.rows))} | ({USUAL: usual} if usual else {}))
        conditions = skewed.alerts(as_of)
        unmeasured = set[str]() if skewed.vectors else {"skew"}
        if few := collapse(len(asked.rows), usual):
            conditions |= _few(few, version, as_of)
        try:
            conditions |= _aged(settings, spec, as_of)
        except DataError as exc:
            unmeasured.add("freshness")
            look.notes.append(f"freshness was not measured: {exc}")
        look.notes.extend(each.message for each in conditions.values())
        look.notes.extend(note_of_trial(settings, spec, version, told.known, as_of))
        verdict, bad, notes = judge(spec.drift, len(seen.rows), look.drift, look.performance)
        look.notes.extend(notes)
        inputs = _inputs(settings, spec, past, look, verdict, tuple(bad))
        report = _decide(settings, spec, inputs, seen, look, taken.malformed)
        if report.decision.rule == STALE:
            return report
        alarm = drift_alert(report.decision, verdict, bad, as_of)
        # First: no report is worth a harmful version's next minute.
        act(settings, report, alarm, conditions, inputs=inputs, unmeasured=unmeasured)
        publish(settings, spec, report, Path(name))
    return report


# What is alerted of whatever the verdict, by cause, and retrained for never.


def _aged(settings: Settings, spec: ModelSpec, as_of: datetime) -> dict[str, DriftAlert]:
    return {
        cause: DriftAlert(spec.dataset, "freshness", "significant", None, as_of, why)
        for cause, why in freshness(settings, spec.dataset).problems(as_of)
    }


def _few(few: Finding, version: str, as_of: datetime) -> dict[str, DriftAlert]:
    cause, of = f"too few predictions of version {version}", (few.feature, few.drift_type)
    return {cause: DriftAlert(*of, "significant", None, as_of, f"{cause}: {few}")}


def _inputs(
    settings: Settings,
    spec: ModelSpec,
    past: Past,
    look: Look,
    verdict: Verdict,
    findings: tuple[str, ...],
) -> Inputs:
    as_of, version = past.as_of, past.version
    try:
        cause, new = _cause(settings, spec, version, as_of), learnable(settings, spec, as_of)
    except (DataError, TrainingError) as exc:  # no reason to do harm meanwhile, or to tell nothing
        cause, new = f"drift of version {version}", False
        look.notes.append(f"nothing can be learnt: {exc}")
    cause = f"harm of version {version}" if look.harm else cause
    of_cause = [row.as_of for row in past.retrained if row.cause == cause]
    return Inputs(
        as_of=as_of,
        version=version,
        verdicts=(*(VERDICTS.validate_python(row.verdict) for row in past.own), verdict),
        findings=findings,
        harm=look.harm,
        previous=past.previous,
        cause=cause,
        answered=answered(settings, spec, cause, of_cause, as_of),
        last_retraining=past.retrained[-1].as_of if past.retrained else None,
        cooldown=timedelta(hours=spec.retraining.cooldown_hours),
        learnable=new,
        last_promotion=past.promotion.time if past.promotion else None,
        tried=past.tried,
    )


def _decide(
    settings: Settings,
    spec: ModelSpec,
    inputs: Inputs,
    seen: Window,
    look: Look,
    malformed: int,
) -> MonitorReport:
    """Decide, and store it with its inputs."""
    decision, entities, verdict = decide(inputs), len(seen.rows), inputs.verdicts[-1]
    drift = look.drift.figures() if look.drift else {}
    figures = {"entities": float(entities)} | look.figures | drift
    if decision.rule != STALE:
        stored = INPUTS.dump_json(inputs).decode()
        with closing(Records(settings)) as records:
            records.keep(
                DecisionRow(spec.name, inputs.version, inputs.as_of, verdict, decision.action,
                            decision.rule, decision.reason, inputs.cause, stored, figures,
                            look.counted)
            )  # fmt: skip
    return MonitorReport(
        spec.name, inputs.as_of, inputs.version, verdict, decision, inputs.cause, entities,
        inputs.findings, tuple(look.notes), figures, seen.left_out, look.outcomes_left_out,
        malformed,
    )  # fmt: skip


def _cause(settings: Settings, spec: ModelSpec, version: str, as_of: datetime) -> str:
    """Name what a retraining would answer; a newly matured snapshot makes it another cause."""
    newest = newest_snapshot(settings, spec, as_of)
    return f"drift of version {version}, labels up to {newest:%Y-%m-%d}"
