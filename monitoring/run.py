"""A monitoring run: everything that its checks look at, read once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
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
from monitoring.log.window import Window, read_window
from monitoring.measurements.labels import label_change
from monitoring.measurements.performance import Judged, measure
from monitoring.measurements.segments import segments_of_outcomes
from monitoring.serving_status import ServingCounts, serving_counts
from training.evaluation.reference import Reference, load_reference, spec_of_version


@dataclass(frozen=True)
class MonitoringRun:
    """Everything that the checks of a run look at, as of a moment.

    Attributes:
        settings: Settings of the installation.
        spec: Spec of the model by which the version was trained.
        newest_spec: Spec of the model as it is now, for the next training.
        model: The model as it is registered now.
        version: The version in production.
        as_of: Moment of the run, aware UTC.
        past: Ledger and decisions before the run.
        window: The last prediction of each entity in 24 hours.
        outcomes: Outcomes that feedback told.
        serving: Counts of each replica of serving; None where one does not answer.
        folder: Folder for Evidently's reports.
        judged: Rows whose outcome is known, backfilled and online, with the metrics on them.
        unmeasured: Why backfilled or online outcomes could not be read or measured.

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

    Args:
        settings: Settings of the installation.
        newest_spec: Spec of the model as it is now.
        version: The version in production.
        as_of: Moment of the run.
        folder: Folder for Evidently's reports.

    Returns:
        The run, and the version's reference or why there is none.

    Raises:
        RegistryError, DataError: A store does not answer.

    """
    spec = spec_of_version(settings, newest_spec, version)
    model = Registry(settings).assignment(spec.name)
    features = spec.features
    reference = _read_reference(settings, spec.name, version)
    outcomes = join_outcomes(settings, spec, as_of)
    judged: list[Judged] = []
    unmeasured: list[str] = []
    if isinstance(reference, Reference):
        features = reference.features
        evaluated_on = reference.snapshot
        with _collecting(unmeasured):
            backfilled = backfilled_outcomes(
                settings, spec, version, evaluated_on, as_of
            )
            judged += _judge(spec, backfilled, reference)
        with _collecting(unmeasured):
            threshold = reference.threshold
            online = online_outcomes(
                settings, spec, model, version, outcomes.known, threshold, as_of
            )
            judged += _judge(spec, online, reference)
    run = MonitoringRun(
        settings=settings,
        spec=spec,
        newest_spec=newest_spec,
        model=model,
        version=version,
        as_of=as_of,
        past=load_past(settings, model, version, as_of),
        window=read_window(settings, model, version, features, as_of, spec.classes),
        outcomes=outcomes,
        serving=serving_counts(settings),
        folder=folder,
        judged=judged,
        unmeasured=unmeasured,
    )
    return run, reference


def _read_reference(settings: Settings, name: str, version: str) -> Reference | str:
    """Return the reference of a version, or why there is none."""
    try:
        return load_reference(settings, Registry(settings).version(name, version))
    except GyreError as exc:
        return str(exc)


@contextmanager
def _collecting(errors: list[str]) -> Iterator[None]:
    """Collect an error of the block: the other checks may still find that a version does harm."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  (whatever a team's model raises)
        errors.append(in_one_line(exc))


def _judge(
    spec: ModelSpec, outcomes: Outcomes | None, reference: Reference
) -> Iterator[Judged]:
    """Measure outcomes, if there are any."""
    if outcomes:
        metrics = [*measure(spec, outcomes, reference.evaluated)]
        metrics += label_change(spec, outcomes, reference)
        metrics += segments_of_outcomes(spec, outcomes)
        yield Judged(outcomes, metrics)
