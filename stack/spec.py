"""A model is a file: `models/<name>.toml`, read once into frozen, strict objects.

DAGs, routes, stages and pages all come from it. Only pydantic is imported here, so that Airflow
can parse its DAGs, and serving can start, without the training stack.
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stack.errors import SettingsError
from stack.settings import PROJECT

if TYPE_CHECKING:
    from pathlib import Path

MODELS = PROJECT / "models"
FeatureType = Literal["int64", "double", "string"]
Metric = Literal["log_loss", "auc", "f1", "accuracy", "precision", "recall", "average_precision"]
LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss"})


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Population(Strict):
    """Whom the label is defined for: rows whose `feature` lies in [0, `below`)."""

    feature: str
    below: int = Field(gt=0)


class Snapshots(Strict):
    """Moments at which every member of the population becomes one training row."""

    every: Literal["month"]
    train: int = Field(ge=1)
    """How many of the newest snapshots that the label's gap allows are trained on."""


class Estimator(Strict):
    """A scikit-learn estimator; the first one is what a history too short for folds trains."""

    name: str
    type: Literal["logistic_regression", "random_forest", "hist_gradient_boosting"]
    parameters: dict[str, Any] = Field(default_factory=dict)


class Gate(Strict):
    """One rule a challenger must pass. `metric` is that of the newest matured snapshot.

    better_than_trivial: better than the best constant, the prevalence of those very rows.
    not_worse_than_champion: no worse than the champion on the same rows, and the upper end of the
    paired bootstrap interval (95 %) of the difference at most `margin_percent` of the champion's.
    """

    metric: Metric
    rule: Literal["better_than_trivial", "not_worse_than_champion"]
    margin_percent: float = Field(0.0, ge=0, le=100)


class Serving(Strict):
    """What serving does when the online store gives no features in time.

    defaults: the medians of the training frame answer, marked as such.
    refuse: 503 with Retry-After.
    """

    missing_features: Literal["defaults", "refuse"]


class DriftLimits(Strict):
    """PSI from which drift is worth a word (`moderate`) and an action (`significant`).

    informative: features whose drift is shown and never acted on.
    """

    moderate: float = Field(0.1, gt=0)
    significant: float = Field(0.25, gt=0)
    informative: tuple[str, ...] = ()


class Retraining(Strict):
    """How soon after one retraining that drift started another may follow."""

    cooldown_hours: float = Field(24, ge=0)


class ModelSpec(Strict):
    """One model: what a data scientist edits."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    experiment: str
    served_as: tuple[str, ...] = ()
    dataset: str
    entity_key: str
    feature_service: str
    label: str
    schedule: str
    seed: int = Field(ge=0)
    threshold: float = Field(gt=0, lt=1)
    features: dict[str, FeatureType] = Field(min_length=1)
    population: Population
    snapshots: Snapshots
    serving: Serving
    drift: DriftLimits
    retraining: Retraining
    estimators: tuple[Estimator, ...] = Field(min_length=1)
    gates: tuple[Gate, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.population.feature not in self.features:
            raise ValueError(f"population.feature {self.population.feature!r} is not in [features]")
        if unknown := set(self.drift.informative) - set(self.features):
            raise ValueError(f"drift.informative: {sorted(unknown)} is not in [features]")
        names = [estimator.name for estimator in self.estimators]
        if len(set(names)) != len(names):
            raise ValueError(f"two estimators share a name: {names}")
        return self


def load_spec(name: str, folder: Path = MODELS) -> ModelSpec:
    """Read `models/<name>.toml`.

    Raises:
        SettingsError: one line with file, key and expectation.

    """
    path = folder / f"{name}.toml"
    known = sorted(p.stem for p in folder.glob("*.toml"))
    if name not in known:
        raise SettingsError(f"no model {name!r}: {folder.name}/ has {', '.join(known) or 'none'}")
    try:
        spec = ModelSpec.model_validate(tomllib.loads(path.read_text()))
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{path.name}: not TOML: {exc}") from exc
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(whole file)"
        found = (
            "" if first["type"] in {"missing", "value_error"} else f" (found {first['input']!r})"
        )
        raise SettingsError(f"{path.name}: {key}: {first['msg']}{found}") from exc
    if spec.name != name:
        raise SettingsError(f"{path.name}: name: expected the file's name, found {spec.name!r}")
    return spec


def load_specs(folder: Path = MODELS) -> tuple[ModelSpec, ...]:
    """Every model of the folder, by name."""
    return tuple(load_spec(path.stem, folder) for path in sorted(folder.glob("*.toml")))
