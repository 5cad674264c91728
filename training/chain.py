"""The stages in order: each a function of settings, spec and references, each safe to repeat.

Airflow's tasks call these names one by one; `train` runs them in this process. The stages are
imported when called, because each one's libraries cost seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from stack.settings import Settings
    from stack.spec import ModelSpec


@dataclass(frozen=True)
class TrainReport:
    """How a training run ended. run_id is None when there was nothing new to learn."""

    model: str
    as_of: datetime
    run_id: str | None
    version: str | None
    outcome: str

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"as_of": self.as_of.isoformat()}


NOTHING_NEW = "nothing new to learn: no snapshot has matured, and spec, code and definitions stand"


def open_run(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
    cause: str | None = None,
    force: bool = False,
) -> str | None:
    from training import validate  # noqa: PLC0415

    return validate.open_run(
        settings, spec, as_of, key=key, reason=reason, who=who, cause=cause, force=force
    )


def dataset(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    from training import dataset as stage  # noqa: PLC0415

    stage.dataset(settings, spec, run_id)


def fit(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    from training import train as stage  # noqa: PLC0415

    stage.fit(settings, spec, run_id)


def evaluate(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    from training import evaluate as stage  # noqa: PLC0415

    stage.evaluate(settings, spec, run_id)


def gate(settings: Settings, spec: ModelSpec, run_id: str) -> str | None:
    from training import gate as stage  # noqa: PLC0415

    return stage.gate(settings, spec, run_id)


def register(settings: Settings, spec: ModelSpec, run_id: str) -> str:
    from training import register as stage  # noqa: PLC0415

    return stage.register(settings, spec, run_id)


def promote(
    settings: Settings, spec: ModelSpec, run_id: str, version: str, *, who: str, reason: str
) -> str:
    from training import register as stage  # noqa: PLC0415

    return stage.promote(settings, spec, run_id, version, who=who, reason=reason)


def train(
    settings: Settings,
    spec: ModelSpec,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
    force: bool = False,
) -> TrainReport:
    """Run the whole chain in this process."""
    run_id = open_run(settings, spec, as_of, key=key, reason=reason, who=who, force=force)
    if run_id is None:
        return TrainReport(spec.name, as_of, None, None, NOTHING_NEW)
    dataset(settings, spec, run_id)
    fit(settings, spec, run_id)
    evaluate(settings, spec, run_id)
    if refused := gate(settings, spec, run_id):
        return TrainReport(spec.name, as_of, run_id, None, f"refused: {refused}")
    version = register(settings, spec, run_id)
    outcome = promote(settings, spec, run_id, version, who=who, reason=reason)
    return TrainReport(spec.name, as_of, run_id, version, outcome)
