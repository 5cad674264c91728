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
from mlflow_server.api.registry import Registry
from mlflow_server.roles import RoleAssignment
from monitoring.decisions.past import Past, load_past
from monitoring.log.outcomes import Outcomes, backfilled_outcomes, online_outcomes
from monitoring.log.tables import KnownOutcomes, join_outcomes
from monitoring.log.window import Window, window
from monitoring.measurements.labels import label_change
from monitoring.measurements.performance import Judged, measure
from monitoring.measurements.segments import segments_of_outcomes
from monitoring.serving_status import ServingCounts, serving_counts
from training.evaluation.reference import Reference, load_reference, spec_of_version

WHO = "monitor"
"""Who, in the ledger."""


@dataclass(frozen=True)
class MonitoringRun:
    """What is known of the version in production as of a moment.

    Attributes:
        settings: Of the installation.
        spec: Of the model, as the version was trained.
        newest_spec: As it is now, for the next training.
        model: The model as it is registered now.
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
    newest_spec: ModelSpec
    model: RoleAssignment
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
    settings: Settings,
    newest_spec: ModelSpec,
    version: str,
    as_of: datetime,
    folder: Path,
) -> tuple[MonitoringRun, Reference | str]:
    """Read what the checks need.

    Returns:
        The run, and the version's reference or why there is none.

    Raises:
        RegistryError, DataError: A store that it needs does not answer.

    """
    spec = spec_of_version(settings, newest_spec, version)
    registry = Registry(settings)
    model = registry.assignment(spec.name)
    reference: Reference | str
    try:
        reference = load_reference(settings, registry.version(spec.name, version))
        features = reference.features
    except GyreError as exc:
        reference = str(exc)
        features = spec.features
    outcomes = join_outcomes(settings, spec, as_of)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    if isinstance(reference, Reference):
        readers = [
            partial(backfilled_outcomes, evaluated_on=reference.snapshot),
            partial(
                online_outcomes,
                created=model.created,
                feedback=outcomes.known,
                threshold=reference.threshold,
            ),
        ]
        for read in readers:
            # What cannot be read must not keep a harmful version.
            try:
                rows = read(settings, spec, version, as_of=as_of)
                if rows:
                    judged.append(_judge(spec, rows, reference))
            except Exception as exc:  # noqa: BLE001
                unmeasured.append(in_one_line(exc))
    run = MonitoringRun(
        settings=settings,
        spec=spec,
        newest_spec=newest_spec,
        model=model,
        version=version,
        as_of=as_of,
        past=load_past(settings, newest_spec, model, version, as_of),
        window=window(settings, model, version, features, as_of, spec.classes),
        outcomes=outcomes,
        serving=serving_counts(settings),
        folder=folder,
        judged=judged,
        unmeasured=unmeasured,
    )
    return run, reference


def _judge(spec: ModelSpec, outcomes: Outcomes, reference: Reference) -> Judged:
    metrics = [*measure(spec, outcomes, reference.evaluated)]
    metrics += label_change(spec, outcomes, reference)
    metrics += segments_of_outcomes(spec, outcomes)
    return Judged(outcomes, metrics)
