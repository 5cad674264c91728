"""Everything that is measured of the version in production, and what is seen to be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflow_server.registry import PRODUCTION, Registry
from monitoring.concept import Outcomes, decayed, miscalibrated, rises
from monitoring.drift import SCORE, Drift, measure
from monitoring.failures import COUNTS, Counted, counts
from monitoring.harm import harm, slow
from monitoring.performance import logged, replayed
from monitoring.previous import outdone
from monitoring.reference import Reference, load_reference
from monitoring.verdict import FEWEST, WATCHED, Finding, worse
from stack.errors import GyreError
from training.metrics import Scored

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pyarrow as pa

    from monitoring.feedback import Settled
    from monitoring.past import Past
    from monitoring.performance import Judged
    from monitoring.window import Window
    from stack.settings import Settings
    from stack.spec import ModelSpec

UNMEASURED = "performance was not measured: no snapshot matured since, too few outcomes are known"


@dataclass(frozen=True)
class Look:
    """What was measured. drift is None where the window is too small or the reference missing.

    performance: what is too much worse on outcomes. harm: why the version must go back, if it
    must. counted: what serving has counted, as JSON; None where it does not answer.
    """

    drift: Drift | None
    performance: list[Finding]
    notes: list[str]
    harm: str | None
    figures: dict[str, float]
    outcomes_left_out: dict[str, int]
    counted: str | None


def find_reference(settings: Settings, spec: ModelSpec, version: str) -> Reference | str:
    """Return what the version is compared with, or why there is nothing."""
    try:
        return load_reference(settings, spec, Registry(settings).version(spec.name, version))
    except GyreError as exc:
        return str(exc)


def look_at(
    settings: Settings,
    spec: ModelSpec,
    past: Past,
    reference: Reference | str,
    seen: Window,
    mine: pa.Table,
    settled: Settled,
    folder: Path,
) -> Look:
    """Measure everything that can be measured; what cannot is a note.

    mine: the version's rows of `predictions` that can be judged. folder: where Evidently's
    reports go.
    """
    now = counts(settings, spec.name)
    counted = None if now is None else COUNTS.dump_json(now).decode()
    own, scores = past.counted(now or {}), seen.rows[SCORE].tolist()
    before = (now or {}).get(f"{PRODUCTION} {past.previous}", Counted())
    failed, late = (own.failed, own.failed + own.answered), slow(own, before)
    if isinstance(reference, str):
        why = harm(scores, spec.threshold, [], *failed) or late
        return Look(None, [], [f"no reference: {reference}"], why, {}, settled.left_out, counted)
    drift, notes = None, list[str]()
    if len(seen.rows) >= FEWEST:
        current = seen.rows[list(reference.rows)]
        drift = measure(reference.population, current, folder, spec.drift.significant)
        if drift.unreported:
            notes.append(f"Evidently made no report: {drift.unreported}")
    of, at = (settings, spec), past.as_of
    known, threshold = settled.known, reference.threshold
    again = _or_note(notes, lambda: replayed(*of, past.version, reference.snapshot, at))
    true = _or_note(notes, lambda: logged(*of, mine, known, threshold, at))
    judged = [each for each in (again, true) if each is not None]
    found = [(each, worse(each.performance, reference.evaluated)) for each in judged]
    figures = {
        f"{each.performance.kind}_{name}": each.performance.metrics[name]
        for each in judged for name in WATCHED if name in each.performance.metrics
    }  # fmt: skip
    bad = [line for _, lines in found for line in lines]
    if again is not None:
        more, words, measured = _against_evaluation(spec, reference, again)
        bad, notes, figures = bad + more, notes + words, figures | measured
    usual = reference.population[SCORE].tolist()
    why = harm(scores, reference.threshold, usual, *failed) or late
    if why is None and past.previous is not None:
        told = (outdone(*of, past.version, past.previous, *each) for each in found if each[1])
        why = next(filter(None, told), None)
    if not judged:
        notes.append(UNMEASURED)
    return Look(drift, bad, notes, why, figures, settled.left_out, counted)


def _or_note(notes: list[str], measure: Callable[[], Judged | None]) -> Judged | None:
    """None with a note where it cannot be measured: that must not keep a harmful version."""
    try:
        return measure()
    except GyreError as exc:
        notes.append(f"performance was not measured: {exc}")
        return None


def _against_evaluation(
    spec: ModelSpec, reference: Reference, again: Judged
) -> tuple[list[Finding], list[str], dict[str, float]]:
    """What a replay says of concept and calibration: what is bad, notes, and figures."""
    by = spec.segment if spec.segment in {*reference.rows} & {*again.rows.column_names} else None
    then = Outcomes(
        reference.y,
        Scored(reference.rows[SCORE].to_numpy(), reference.threshold),
        reference.rows[by].to_numpy() if by else None,
    )
    segment = again.rows[by].to_pandas().to_numpy() if by else None
    now = Outcomes(again.rows["label"].to_numpy(), again.scored, segment)
    found = rises(then, now)
    bad, notes = decayed(found, classes=reference.threshold is not None)
    ece, uncalibrated = miscalibrated(then, now, spec.seed)
    figures = {"replay_ece": ece, "concept_p": float(np.min([rise.p for rise in found]))}
    return bad + uncalibrated, [*notes], figures
