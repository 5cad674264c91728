"""One monitoring run: everything that its checks look at, read once."""

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa

from core.errors import GyreError
from core.settings import Settings
from core.spec import FeatureType, ModelSpec
from mlflow_server.registry import Registry, Version
from mlflow_server.tracking import Tracking
from monitoring.checks.performance import (
    Judged,
    judgeable,
    measure_backfilled,
    measure_online,
)
from monitoring.collect import ANSWERS, KnownOutcomes, join_outcomes, predictions
from monitoring.past import Past, load_past
from monitoring.serving_status import Counters, counts
from monitoring.window import Window, compared_features, window, with_scores
from training.dataset import load_frame, load_unlabelled
from training.evaluate import as_trained, version_scores
from training.frame import at
from training.gate import load_evaluation
from training.metrics import Labels, Scored


@dataclass(frozen=True)
class Reference:
    """What a version is compared with: the snapshots it was evaluated on, `snapshot` the newest.

    rows: the version's features and `score`; evaluated: metrics on them; y: what came true of each;
    population: `rows`, then those of members without a label, which windows are compared with.
    features: the types of the version's features; the spec's may be others by now. said: of `rows`;
    its threshold is the one that the version serves with.
    """

    rows: pd.DataFrame
    features: dict[str, FeatureType]
    snapshot: datetime
    evaluated: dict[str, float]
    said: Scored
    y: Labels
    population: pd.DataFrame


@dataclass(frozen=True)
class MonitoringRun:
    """The version in production as of a moment (UTC).

    window: last predictions of 24 hours. outcomes: what came true. judged: performance on them, and
    on a newer snapshot; unmeasured: why one of these is not known. counters: by "role version" what
    serving counted; None where it does not answer. folder: where Evidently's reports go.
    """

    settings: Settings
    spec: ModelSpec
    version: str
    as_of: datetime
    past: Past
    window: Window
    outcomes: KnownOutcomes
    counters: Counters | None
    folder: Path
    judged: tuple[Judged, ...] = ()
    unmeasured: tuple[str, ...] = ()

    @property
    def backfilled(self) -> Judged | None:
        return next(
            (j for j in self.judged if j.performance.kind == "backfilled"), None
        )


def prepare(
    settings: Settings, spec: ModelSpec, version: str, as_of: datetime, folder: Path
) -> tuple[MonitoringRun, Reference | str]:
    """Read what the checks need; and the reference, or why there is none.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    registry = Registry(settings)
    versions = registry.versions(spec.name)
    reference: Reference | str
    try:
        reference = load_reference(settings, spec, registry.version(spec.name, version))
        features = reference.features  # whatever the spec says by now
    except GyreError as exc:
        reference, features = str(exc), spec.features
    names = {each.version for each in versions}
    of_version = spec.name, version, names, features, as_of, spec.classes
    asked = window(predictions(settings), *of_version)
    outcomes = join_outcomes(settings, spec, as_of)
    past = load_past(settings, spec, version, versions, as_of)
    counters = counts(settings, spec.name)
    run = MonitoringRun(
        settings, spec, version, as_of, past, asked, outcomes, counters, folder
    )
    if isinstance(reference, Reference):
        run = _with_performance(run, reference)
    return run, reference


def load_reference(settings: Settings, spec: ModelSpec, version: Version) -> Reference:
    """Read what the version's own training run stored; RegistryError if it is not there."""
    tracking = Tracking(settings)
    frame, plan = load_frame(tracking, version.run_id)
    rows, newest = at(frame, plan.test), plan.test[-1].start
    unlabelled = load_unlabelled(tracking, version.run_id)
    own = as_trained(spec, Registry(settings).served(version)[0])
    members = pa.concat_tables([rows.select(unlabelled.column_names), unlabelled])
    scored = version_scores(settings, own, version.version, members)
    evaluated = load_evaluation(tracking, version.run_id).challenger
    population = with_scores(compared_features(own, members), scored, spec.classes)
    y = rows["label"].to_numpy()
    said = scored.rounded().of(slice(len(y)))
    return Reference(
        population[: len(y)], own.features, newest, evaluated, said, y, population
    )


def _with_performance(run: MonitoringRun, reference: Reference) -> MonitoringRun:
    """Measure it, or note why it cannot be: that must not keep a harmful version."""
    settings, spec, as_of, known = run.settings, run.spec, run.as_of, run.outcomes.known

    def backfilled() -> Judged | None:
        return measure_backfilled(
            settings, spec, run.version, reference.snapshot, as_of
        )

    def online() -> Judged | None:
        where = judgeable(spec, run.version, known, as_of)
        answered = predictions(settings).read(columns=ANSWERS, where=where)
        return measure_online(
            settings, spec, answered, known, reference.said.threshold, as_of
        )

    judged, unmeasured = [], []
    for measure in (backfilled, online):
        try:
            judged.append(measure())
        except GyreError as exc:
            unmeasured.append(str(exc))
    found = tuple(each for each in judged if each is not None)
    return replace(run, judged=found, unmeasured=tuple(unmeasured))
