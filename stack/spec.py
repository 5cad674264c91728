"""A model is a file: `models/<name>.toml`, read once into frozen, strict objects.

DAGs, routes, stages and pages all come from it. Only pydantic is imported here, so that Airflow
can parse its DAGs, and serving can start, without the training stack.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from stack.errors import SettingsError
from stack.settings import PROJECT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pydantic_core import ErrorDetails

    from stack.settings import Settings

MODELS, PSI = PROJECT / "models", "psi_"
NAME = r"^[a-z][a-z0-9_]{0,62}$"
FeatureType = Literal["int64", "double", "string"]
FLOAT32 = 3.4028234663852886e38
"""Models compute in float32: a larger number would be infinite inside."""
YEAR = 365 * 24
"""Hours."""
KeyType = Literal["int64", "string"]
EntityKey = Annotated[
    dict[str, KeyType],
    Field(min_length=1),
    BeforeValidator(
        lambda found: {found: "int64"} if isinstance(found, str) else found,
        json_schema_input_type=str | dict[str, KeyType],
    ),
]
"""The columns that name an entity, and their types; a name alone is an int64."""
Entity = Mapping[str, int | str]
"""One entity: the value of each of these columns."""
Task = Literal["classification", "regression"]
OfClasses = Literal[
    "log_loss", "brier", "auc", "average_precision", "accuracy", "precision", "recall", "f1", "cost"
]
OfNumbers = Literal["rmse", "mae", "r2"]
Metric = Literal[OfClasses, OfNumbers]
"""What challenger, trivial baseline and champion are compared by (training/metrics.py)."""
LOWER_IS_BETTER: frozenset[str] = frozenset({"log_loss", "brier", "cost", "rmse", "mae"})
Figure = Literal[
    "ece", "demographic_parity_difference", "equal_opportunity_difference", "largest_gap",
    "model_mb", "latency_p99_ms", "onnx_difference",
]  # fmt: skip
"""What is measured of the challenger alone (training/calibration.py, segments.py, evaluate.py)."""
MISSING = "__missing__"
"""What a text that is null is to a model, in frames, serving and logs: ONNX would read "None"."""
OURS = frozenset({"score", "entity", "as_of", "label", "event_timestamp"})
"""Columns beside the features, in windows and frames."""
OF_SEGMENTS = {"demographic_parity_difference", "equal_opportunity_difference", "largest_gap"}
OTHERS: dict[Task, frozenset[str]] = {
    "classification": frozenset(get_args(OfNumbers)),
    "regression": frozenset(get_args(OfClasses)) | OF_SEGMENTS,
}
"""What a task has no such thing as: no gate may ask for it."""
LOSSES: dict[Task, OfClasses | OfNumbers] = {"classification": "log_loss", "regression": "rmse"}
"""What estimators and their parameters are chosen by, on the forward folds."""
ESTIMATORS: dict[Task, tuple[str, ...]] = {
    "classification": ("logistic_regression", "random_forest", "hist_gradient_boosting"),
    "regression": ("ridge", "random_forest", "hist_gradient_boosting"),
}


class Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class Population(Strict):
    """Whom the label is defined for: rows whose `feature` lies in [0, `below`)."""

    feature: str
    below: int = Field(gt=0)


class Snapshots(Strict):
    """Moments at which every member of the population becomes one training row."""

    every: Literal["month"]
    train: int = Field(ge=1)
    """How many of the newest snapshots that the label's gap allows are trained on."""


class Range(Strict):
    """Where to search a parameter: `{ low = 3, high = 12 }`, both included.

    Whole numbers if both are whole. log: 0.01 to 0.1 is as far as 0.1 to 1.
    """

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected low < high, and with log 0 < low")
        return self


class Estimator(Strict):
    """A scikit-learn estimator; the first one is what a history too short for folds trains.

    space: what a search may change of `parameters`. A parameter has its own value there as well:
    the search begins with it.
    """

    name: str
    type: Literal["logistic_regression", "ridge", "random_forest", "hist_gradient_boosting"]
    """Of the model's task (ESTIMATORS)."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Range] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _begins_within(self) -> Estimator:
        for key, bounds in self.space.items():
            own = self.parameters.get(key)
            if not isinstance(own, int | float) or not bounds.low <= own <= bounds.high:
                within = f"{bounds.low} to {bounds.high}"
                raise ValueError(
                    f"space.{key}: expected a value of its own in parameters, {within}, "
                    f"found {own!r}"
                )
        return self


class Search(Strict):
    """`[search]`: try parameters out of the spaces on the forward folds; without it, none.

    It ends after `trials`, or with the trial during which `minutes` have passed; each estimator's
    own parameters are tried first and in any case.
    """

    trials: int = Field(ge=1)
    minutes: float = Field(10, gt=0, le=24 * 60)


class Costs(Strict):
    """What acting on a prediction of 1 is worth, in one currency.

    action: of acting on one row. loss: of one row that turns out 1. averted: the share of those
    losses that acting prevents, an assumption until an experiment measures it.
    """

    action: float = Field(ge=0)
    loss: float = Field(gt=0)
    averted: float = Field(1.0, gt=0, le=1)


class Limit(Strict):
    """at_least, at_most: the challenger's `metric` on the newest matured snapshot, and `value`."""

    metric: Metric | Figure
    rule: Literal["at_least", "at_most"]
    value: float = Field(allow_inf_nan=False)


class BetterThanTrivial(Strict):
    """Better than the best constant of those very rows.

    Their prevalence; their mean for `rmse` and `r2`, their median for `mae`. For `cost`: the
    cheaper of acting on nobody and on everybody.
    """

    metric: Metric
    rule: Literal["better_than_trivial"]


class AgainstChampion(Strict):
    """Both models on the same rows; passed where there is no champion.

    better_than_champion: by at least `margin_percent` of the champion's.
    not_worse_than_champion: no worse than the champion on the same rows, and the upper end of the
    paired bootstrap interval (95 %) of the difference at most `margin_percent` of the champion's.
    """

    metric: Metric
    rule: Literal["better_than_champion", "not_worse_than_champion"]
    margin_percent: float = Field(0.0, ge=0, le=100)


# One rule a challenger must pass. That ONNX scores as scikit-learn does is asked without a gate.
Gate = Annotated[Limit | BetterThanTrivial | AgainstChampion, Field(discriminator="rule")]


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

    def acted_on(self, figures: Mapping[str, float]) -> dict[str, float]:
        """By feature, the PSI among the figures of a look that was measured and may act."""
        psi = {key.removeprefix(PSI): v for key, v in figures.items() if key.startswith(PSI)}
        return {name: v for name, v in psi.items() if isfinite(v) and name not in self.informative}


class Retraining(Strict):
    """How soon after one retraining that drift started another may follow."""

    cooldown_hours: float = Field(24, ge=0, le=YEAR)


class Promotion(Strict):
    """`[promotion]`: approval: a person says yes, in Airflow, before a version is promoted.

    Without an answer within `wait_hours` it is not promoted.
    """

    approval: bool = False
    wait_hours: float = Field(72, gt=0, le=YEAR)


class Rollout(Strict):
    """`[rollout]`: how a version that training made comes into production.

    direct: at once. canary: as a shadow, then as a challenger that answers `steps` percent of the
    entities, then in production; every step judged by the limits below (monitoring/rollout.py).
    requests: at least so many to each version, for the label's population, before a step is judged
    well; fewer say too little.
    minutes: how long a step takes at least.
    """

    policy: Literal["direct", "canary"] = "direct"
    steps: tuple[int, ...] = (5, 25, 50, 100)
    requests: int = Field(100, ge=100)
    minutes: float = Field(10, ge=0, le=YEAR * 60)
    errors: float = Field(0.02, ge=0, lt=1)
    """By how much its share of failed predictions may be above that of production."""
    latency: float = Field(2.0, ge=1)
    """How many times as slow as production it may be, at the 95th percentile."""
    scores: float = Field(0.5, gt=0, le=1)
    """How far its scores may lie from production's: the largest difference between the shares of
    both below any one score (Kolmogorov-Smirnov), 0 to 1. A version of today lies 0.34 from one of
    180 days ago on the shipped history."""

    @model_validator(mode="after")
    def _rising(self) -> Rollout:
        rising = sorted(set(self.steps))
        if not rising or list(self.steps) != rising or not 1 <= rising[0] <= rising[-1] <= 100:  # noqa: PLR2004
            raise ValueError(
                f"steps: expected rising percents like [5, 25, 50, 100], found {list(self.steps)}"
            )
        return self


class ModelSpec(Strict):
    """One model: what a data scientist edits.

    task: a class, 0 or 1 (label int64), or a number (label float64). `threshold` and `costs` are
    what a classification needs and a regression has not.
    """

    task: Task = "classification"
    name: str = Field(pattern=NAME)
    experiment: str
    served_as: tuple[str, ...] = ()
    dataset: str
    entity_key: EntityKey
    feature_service: str
    label: str
    schedule: str
    seed: int = Field(ge=0)
    threshold: float | None = Field(None, gt=0, lt=1)
    """Where a history has no forward fold; else the cheapest on the newest one's validation rows
    is chosen (training/threshold.py) and stored with the version."""
    segment: str | None = None
    """A string feature: metrics are told for each of its values, and fairness between them."""
    costs: Costs | None = None
    features: dict[str, FeatureType] = Field(min_length=1)
    population: Population
    snapshots: Snapshots
    serving: Serving
    drift: DriftLimits
    retraining: Retraining
    estimators: tuple[Estimator, ...] = Field(min_length=1)
    search: Search | None = None
    gates: tuple[Gate, ...] = Field(min_length=1)
    promotion: Promotion = Promotion()
    rollout: Rollout = Rollout()

    @property
    def loss(self) -> OfClasses | OfNumbers:
        return LOSSES[self.task]

    @field_validator("schedule")
    @classmethod
    def _known_to_airflow(cls, schedule: str) -> str:
        from croniter import croniter  # noqa: PLC0415  (0.1 s; Airflow reads schedules with it)

        if schedule != "@quarterly" and not croniter.is_valid(schedule):
            names = "@hourly, @daily, @weekly, @monthly, @quarterly or @yearly"
            raise ValueError(f"expected a cron expression, {names}; found {schedule!r}")
        return schedule

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if problems := [*self._of_another_task(), *self._contradictions()]:
            raise ValueError("\n".join(problems))
        return self

    def _of_another_task(self) -> Iterator[str]:
        for key in ("threshold", "costs"):
            if (getattr(self, key) is None) == (self.task == "classification"):
                what = "has none" if self.task == "regression" else "needs one"
                yield f"{key}: a {self.task} {what}"
        for at, estimator in enumerate(self.estimators):
            if estimator.type not in ESTIMATORS[self.task]:
                yield (
                    f"estimators.{at}.type: {estimator.type!r} is not of a {self.task}, expected "
                    f"one of {', '.join(ESTIMATORS[self.task])}"
                )
        for at, gate in enumerate(self.gates):
            if gate.metric in OTHERS[self.task]:
                yield f"gates.{at}.metric: a {self.task} has no {gate.metric}"

    def _contradictions(self) -> Iterator[str]:
        if both := set(self.entity_key) & set(self.features):
            yield f"entity_key: {sorted(both)} is in [features] too: give it a new name"
        if taken := OURS & set(self.features):
            yield f"features: {sorted(taken)}: frames have such a column: rename it"
        if self.population.feature not in self.features:
            yield f"population.feature: {self.population.feature!r} is not in [features]"
        elif self.features[self.population.feature] == "string":
            yield f"population.feature: {self.population.feature!r} is a string, expected a number"
        if unknown := set(self.drift.informative) - set(self.features):
            yield f"drift.informative: {sorted(unknown)} is not in [features]"
        if self.segment is not None and self.features.get(self.segment) != "string":
            yield f"segment: {self.segment!r} is not a string of [features]"
        if self.segment is None and (asked := OF_SEGMENTS & {gate.metric for gate in self.gates}):
            yield f"gates: {min(asked)} needs a segment, such as customer_segment"
        names = [estimator.name for estimator in self.estimators]
        if len(set(names)) != len(names):
            yield f"two estimators share a name: {names}"
        if self.search and not any(estimator.space for estimator in self.estimators):
            yield "search: expected a space = { … } with at least one of [[estimators]]"


def entity_text(key: Entity) -> str:
    """One text for one entity, for logs, tables and joins: its value, or all as a JSON object."""
    if len(key) == 1:
        return str(*key.values())
    return json.dumps(key, sort_keys=True)


def entity_of(columns: Mapping[str, KeyType], text: str) -> Entity:
    """Return the entity that `entity_text` gave this text, with columns of these types.

    Raises:
        ValueError: it is the text of no such entity.

    """
    found = {next(iter(columns)): text} if len(columns) == 1 else json.loads(text)
    if not isinstance(found, dict) or found.keys() != columns.keys():
        raise ValueError(f"expected an entity of {', '.join(columns)}, found {text}")
    return {
        name: int(found[name]) if kind == "int64" else str(found[name])
        for name, kind in columns.items()
    }


def searching(spec: ModelSpec, trials: int) -> ModelSpec:
    """`spec` with a search of `trials`, in the minutes that it allows already.

    Raises:
        SettingsError: no estimator has a space.

    """
    wanted = {"trials": trials} | ({"minutes": spec.search.minutes} if spec.search else {})
    return _checked(f"{spec.name}.toml", spec.model_dump() | {"search": wanted})


def load_spec(name: str, folder: Path = MODELS) -> ModelSpec:
    """Read `models/<name>.toml`.

    Raises:
        SettingsError: a line with file, key and expectation for each key that is wrong.

    """
    path = folder / f"{name}.toml"
    known = sorted(p.stem for p in folder.glob("*.toml"))
    if name not in known:
        raise SettingsError(f"no model {name!r}: {folder.name}/ has {', '.join(known) or 'none'}")
    try:
        content = tomllib.loads(path.read_text())
    except ValueError as exc:  # also of what is not UTF-8
        raise SettingsError(f"{path.name}: not TOML: {exc}") from exc
    spec = _checked(path.name, content)
    if spec.name != name:
        raise SettingsError(f"{path.name}: name: expected the file's name, found {spec.name!r}")
    return spec


def load_specs() -> tuple[ModelSpec, ...]:
    """Every model of MODELS that can be read, by name."""
    return tuple(found for found in _read_all() if isinstance(found, ModelSpec))


def broken_specs() -> list[str]:
    """Say of each file of MODELS that is no spec which it is, its key and what was expected."""
    return [str(found) for found in _read_all() if isinstance(found, SettingsError)]


def _read_all() -> Iterator[ModelSpec | SettingsError]:
    for path in sorted(MODELS.glob("*.toml")):
        try:
            yield load_spec(path.stem)
        except SettingsError as exc:
            yield exc


def default_spec(settings: Settings, specs: Sequence[ModelSpec]) -> ModelSpec | None:
    """Return the model that answers without a name: GYRE_DEFAULT_MODEL, or the only one."""
    if settings.default_model is None:
        return specs[0] if len(specs) == 1 else None
    return next((spec for spec in specs if spec.name == settings.default_model), None)


def _checked(file: str, content: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate(content)
    except ValidationError as exc:
        lines = [f"{file}: {line}" for error in exc.errors() for line in _said(error)]
        raise SettingsError("\n".join(lines)) from exc


def _said(error: ErrorDetails) -> list[str]:
    key = "".join(f"{part}." for part in error["loc"])[:-1]
    if error["type"] == "value_error":  # of a validator above, which names keys below this one
        return [
            ": ".join(filter(None, (key, line))) for line in str(error["ctx"]["error"]).split("\n")
        ]
    found = "" if error["type"] == "missing" else f" (found {error['input']!r})"
    return [f"{key}: {error['msg']}{found}"]
