"""One monitoring run: everything that its checks look at, read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from core.errors import GyreError
from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import in_one_line
from mlflow_server.registry import Registry
from monitoring.checks.performance import Judged, measure
from monitoring.collect import KnownOutcomes, join_outcomes
from monitoring.outcomes import backfilled_outcomes, online_outcomes
from monitoring.past import Past, load_past
from monitoring.serving_status import ServingCounts, serving_counts
from monitoring.window import Window, window
from training.reference import Reference, load_reference


@dataclass(frozen=True)
class MonitoringRun:
    """What is known of the version in production as of a moment.

    Attributes:
        settings: Of the installation.
        spec: Of the model.
        version: The version in production.
        as_of: The moment, aware UTC.
        past: Ledger and decisions before it.
        window: The last prediction of each entity in 24 hours.
        outcomes: What feedback says.
        serving: What each replica of serving has counted; None where one does not answer.
        folder: Where Evidently's reports go.
        judged: Predictions whose outcome is known, backfilled and online, and metrics on them.
        unmeasured: Why one of these could not be read.

    """

    settings: Settings
    spec: ModelSpec
    version: str
    as_of: datetime
    past: Past
    window: Window
    outcomes: KnownOutcomes
    serving: dict[str, ServingCounts] | None
    folder: Path
    judged: Sequence[Judged]
    unmeasured: Sequence[str]


def prepare(
    settings: Settings, spec: ModelSpec, version: str, as_of: datetime, folder: Path
) -> tuple[MonitoringRun, Reference | str]:
    """Read what the checks need.

    Returns:
        The run, and the version's reference or why there is none.

    Raises:
        RegistryError, DataError: A store that it needs does not answer.

    """
    registry = Registry(settings)
    reference: Reference | str
    try:
        reference = load_reference(settings, registry.version(spec.name, version))
        features = reference.features  # whatever the spec says by now
    except GyreError as exc:
        reference = str(exc)
        features = spec.features
    outcomes = join_outcomes(settings, spec, as_of)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    if isinstance(reference, Reference):
        known = outcomes.known
        readers = [
            partial(backfilled_outcomes, evaluated_on=reference.snapshot),
            partial(online_outcomes, feedback=known, threshold=reference.threshold),
        ]
        for read in readers:
            # What cannot be read must not keep a harmful version.
            try:
                rows = read(settings, spec, version, as_of=as_of)
                if rows:
                    metrics = [*measure(spec, rows, reference.evaluated)]
                    judged.append(Judged(rows, metrics))
            except Exception as exc:  # noqa: BLE001
                unmeasured.append(in_one_line(exc))
    run = MonitoringRun(
        settings=settings,
        spec=spec,
        version=version,
        as_of=as_of,
        past=load_past(settings, spec, version, as_of),
        window=window(
            settings=settings,
            model=spec.name,
            version=version,
            features=features,
            until=as_of,
            classes=spec.classes,
        ),
        outcomes=outcomes,
        serving=serving_counts(settings),
        folder=folder,
        judged=judged,
        unmeasured=unmeasured,
    )
    return run, reference
