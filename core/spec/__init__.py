"""A model is a file: `models/<name>.toml`, read once into frozen, strict objects.

Only pydantic is imported, so that DAGs are parsed and serving starts without the training stack.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from core.errors import SettingsError
from core.project import PROJECT
from core.schedule import Schedule
from core.settings import Settings
from core.spec.monitoring import CHECK_KINDS, Monitoring, Promotion, Rollout
from core.spec.tables import Destination, LabelTable, PredictionTable, Scores
from core.spec.training import (
    ESTIMATOR_TYPES,
    ESTIMATORS,
    FACTORY,
    METRICS_OF_OTHER_TASKS,
    OF_SEGMENTS,
    Costs,
    Estimator,
    Gate,
    Metric,
    Search,
    Snapshots,
    Strict,
    Task,
    Training,
)

MODELS = PROJECT / "models"
MODEL_NAME = r"^[a-z][a-z0-9_]{0,62}$"
FeatureType = Literal[
    "int32", "int64", "float32", "double", "bool", "timestamp", "string"
]
"""Type of a feature, of request data or of an audit column; a timestamp has whole seconds, as in
Feast."""
InputType = Literal["int64", "double", "string"]
INPUTS: dict[FeatureType, InputType] = {
    **dict.fromkeys(("int32", "int64", "bool", "timestamp"), "int64"),
    **dict.fromkeys(("float32", "double"), "double"),
    "string": "string",
}
"""Type in which a model takes a feature: a bool is 0 or 1, a timestamp microseconds since 1970
UTC."""
NUMBERS = frozenset({"int32", "int64", "float32", "double"})
FLOAT32 = 3.4028234663852886e38
"""Largest number: models compute in float32, where a larger one is infinite."""
KeyType = Literal["int64", "string"]
EntityKey = Annotated[
    dict[str, KeyType],
    Field(min_length=1),
    BeforeValidator(
        lambda key: {key: "int64"} if isinstance(key, str) else key,
        json_schema_input_type=str | dict[str, KeyType],
    ),
]
"""The columns that name an entity, and their types; a name alone is an int64."""


def _names(given: object) -> object:
    if given is None:  # as specs of earlier versions have it
        return ()
    return (given,) if isinstance(given, str) else given


Columns = Annotated[
    tuple[str, ...],
    BeforeValidator(
        _names,
        json_schema_input_type=str | tuple[str, ...],
    ),
]
"""Names of columns; a name alone is a tuple of one."""
Entity = Mapping[str, int | str]
"""One entity: its value in each column of the entity key."""
MISSING = "__missing__"
"""Stands for a text that is null, in frames, serving and logs: ONNX would read "None"."""
FRAME_COLUMNS = frozenset(
    {"score", "predicted_class", "entity", "as_of", "label", "event_timestamp"}
)
"""Columns that windows and frames have beside the features."""


EXPORT_COLUMNS = frozenset(
    {
        "model",
        "day",
        "version",
        "role",
        "request_id",
        "received",
        "event_timestamp",
        "as_of",
        "probability",
        "prediction",
        "probabilities",
        "in_population",
        "actual",
    }
)
"""Columns of a team's tables of scores and predictions beside the keys."""


class Population(Strict):
    """The rows that the label is defined for: their `feature` lies in [0, `below`)."""

    feature: str
    below: int = Field(gt=0)


class Serving(Strict):
    """How serving answers when the online store gives no features in time, and how it scores.

    defaults: the medians of the training frame stand in, and the answer says so.
    refuse: the answer is 503 with Retry-After.
    """

    missing_features: Literal["defaults", "refuse"]
    format: Literal["onnx", "native"] | None = None
    """native: the data format of the model's library, which a process of its own loads
    (docs/how-to/own-model.md). None: onnx where it scores as the fitted model, else native."""
    trusted_types: tuple[str, ...] = ()
    """Types that skops may make of a native model beside those it knows; `gyre check` names them."""
    external: bool = False
    """Predictions are made elsewhere and arrive as rows: by `POST /models/NAME/predictions`, or in the
    table `predictions`."""
    predictions: PredictionTable | None = None
    """`[serving.predictions]`: a table with predictions that were made elsewhere."""


class ModelSpec(Strict):
    """One model, as a data scientist describes it.

    task: classification predicts 0 or 1 (label int64), regression a number (label float64), and
    multiclass one of `classes` (label int64: the position there). `threshold` and `costs` belong to
    a classification, which needs both.
    """

    task: Task = "classification"
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the model's probabilities; at least three."""
    name: str = Field(pattern=MODEL_NAME)  # the name of the file
    # A text for people is no part of a version: no run and no hash has it.
    description: str = Field("", exclude=True)
    """One sentence for people: what is predicted, and for whom."""
    experiment: str  # the experiment of MLflow that holds the runs
    dataset: str | None = None
    """The module of feature_repo/datasets that has the label; with `[label]` the module whose views
    the feature service reads, if it reads any of Gyre's."""
    entity_key: EntityKey  # the columns that name an entity; a name alone is an int64
    feature_service: str = ""
    """The service of Feast that lists the features' views. Without one the label's table has a column
    for each feature, and a request brings all of them."""
    label: str | LabelTable  # the name of a label of `dataset`, or a table
    schedule: Schedule  # when to train: a cron expression, or a name such as @weekly
    seed: int = Field(ge=0)  # the seed of every random choice in a training
    threshold: float | None = Field(None, gt=0, lt=1)
    """The threshold of a history that is too short for a forward fold. Otherwise training chooses
    the cheapest threshold on the newest fold (training/stages/train.py), and the version has it."""
    least_class_rows: int = Field(20, ge=0)
    """Fewest rows of each class in the test set: with fewer no version passes."""
    segment: Columns = ()
    """String features, or audit columns. Evaluation and monitoring compute the metrics of each value
    of each column, and the fairness between values."""
    audit: dict[str, FeatureType] = Field(default_factory=dict)
    """Columns of the service or of the label's rows that `segment` may name. They are no inputs of
    the model."""
    costs: Costs | None = None
    features: dict[str, FeatureType] = Field(
        min_length=1
    )  # the inputs of the model, in order
    population: Population | None = None
    """Absent if the label gives the rows: serving then answers for every entity."""
    outcome_key: EntityKey | None = None
    """If the label gives the rows: the columns that, beside the entity, name one of them, and their
    types; a name alone is an int64. A request sends their values, so that its outcome is known once
    the row has arrived. Without such columns the moment of the request names the row."""
    snapshots: Snapshots
    serving: Serving
    monitoring: Monitoring = Monitoring()
    estimators: tuple[Estimator, ...] = ()
    """Without them and without `[training]`, versions come from `gyre adopt` alone."""
    training: Training | None = None
    search: Search | None = None
    gates: tuple[Gate, ...] = ()
    promotion: Promotion = Promotion()
    rollout: Rollout = Rollout()
    # Where rows go is no part of a version: no run and no hash has an address.
    scores: Scores = Field(Scores(), exclude=True)
    predictions: Destination = Field(Destination(), exclude=True)
    decisions: Destination = Field(Destination(), exclude=True)

    @property
    def loss(self) -> Metric:
        """The metric by which estimators, their parameters and versions are compared.

        For a regression it is the error of the first gate that has one.
        """
        if self.task != "regression":
            return "log_loss"
        for gate in self.gates:
            match gate.metric:
                case "rmse" | "mae" as error:
                    return error
        return "rmse"

    @property
    def label_name(self) -> str:
        """The name of the label, for people."""
        return self.label if isinstance(self.label, str) else self.label.name

    @property
    def has_labels(self) -> bool:
        """Whether rows have labels; without them a model is adopted, and not measured."""
        return bool(self.label_name)

    @property
    def is_trained_here(self) -> bool:
        """Whether Gyre trains versions; else they are adopted."""
        return bool(self.estimators or self.training)

    @property
    def command(self) -> str:
        """The command that makes a version, for people."""
        if self.is_trained_here:
            return f"gyre train {self.name}"
        return f"gyre adopt {self.name} MODEL"

    @property
    def datasets(self) -> tuple[str, ...]:
        """The dataset, if the model has one."""
        return (self.dataset,) if self.dataset else ()

    @property
    def trusted_types(self) -> tuple[str, ...]:
        """Types that skops may make of a model's file: those of `[serving]`, and of short names."""
        types = {*self.serving.trusted_types}
        if self.estimators:  # also of one that the spec no longer has, but a version
            types.update(*ESTIMATOR_TYPES.values())
        return tuple(sorted(types))

    @property
    def inputs(self) -> dict[str, InputType]:
        """The types of the model's inputs, which are its features in order."""
        return {name: INPUTS[kind] for name, kind in self.features.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [
            *self._problems_of_task(),
            *self._problems_of_names(),
            *self._problems_of_label(),
            *self._problems_of_outcome_key(),
            *self._problems_of_exports(),
            *self._problems_of_segments(),
            *self._problems_of_estimators(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_task(self) -> Iterator[str]:
        """Yield keys that another task has, and metrics of gates that this task does not have."""
        is_classification = self.task == "classification"
        verb = "needs one" if is_classification else "has none"
        if (self.threshold is None) == is_classification:
            yield f"threshold: a {self.task} {verb}"
        if (self.costs is None) == is_classification:
            yield f"costs: a {self.task} {verb}"
        class_names = ", ".join(self.classes) or "none"
        is_named = all(self.classes) and len(set(self.classes)) == len(self.classes)
        if self.task != "multiclass" and self.classes:
            yield f"classes: a {self.task} has none, found {class_names}"
        if self.task == "multiclass" and not (is_named and len(self.classes) > 2):  # noqa: PLR2004
            expected = "expected three or more different names"
            yield f"classes: {expected}, found {class_names}"
        for number, gate in enumerate(self.gates):
            if gate.metric in METRICS_OF_OTHER_TASKS[self.task]:
                yield f"gates.{number}.metric: a {self.task} has no {gate.metric}"

    def _problems_of_names(self) -> Iterator[str]:
        """Yield columns that share a name, and names that are no features."""
        keys = set(self.entity_key)
        features = set(self.features)
        key_features = keys & features
        if key_features:
            names = _listed(key_features)
            yield f"entity_key: {names} is in [features] too: give it a new name"
        frame_features = FRAME_COLUMNS & features
        if frame_features:
            names = _listed(frame_features)
            yield f"features: {names}: a frame has a column of this name: rename it"
        taken_names = set(self.audit) & (FRAME_COLUMNS | keys | features)
        if taken_names:
            names = _listed(taken_names)
            yield f"audit: {names}: a key, a feature or a frame has this name: rename it"
        if self.population is None and self.snapshots.rows == "members":
            yield 'population: expected one, or rows = "label" in [snapshots]'
        if self.population:
            feature = self.population.feature
            if self.features.get(feature) not in NUMBERS:
                yield f"population.feature: {feature!r} is not in [features] as a number"
        for name in self.monitoring.monitor_only:
            if name not in {*features, *CHECK_KINDS, "score"} and "/" not in name:
                yield (
                    f"monitoring.monitor_only: {name!r} is not in [features], "
                    f"nor of {_listed(CHECK_KINDS)}, nor a figure such as missing/{name}"
                )

    def _problems_of_label(self) -> Iterator[str]:
        if self.has_labels and not self.gates:
            yield "gates: expected one at least"
        if not self.has_labels and (self.gates or self.is_trained_here or self.segment):
            yield (
                "label.name: expected a column with labels, as there are [[gates]], [[estimators]], "
                "[training] or segment"
            )
        if isinstance(self.label, str):
            if self.dataset is None:
                yield "dataset: expected the dataset of the label, or a table [label]"
            if not self.feature_service:
                yield "feature_service: expected one, or a table [label] with the features"
            return
        if self.snapshots.rows != "label":
            yield 'snapshots.rows: expected "label", as a table [label] lists the rows'
        unknown_names = set(self.label.entity) - set(self.entity_key)
        if unknown_names:
            yield f"label.entity: {_listed(unknown_names)} is not in entity_key"

    def _problems_of_outcome_key(self) -> Iterator[str]:
        names = set(self.outcome_key or ())
        if names and self.snapshots.rows != "label":
            yield 'outcome_key: only for rows = "label" in [snapshots]'
        taken_names = names & {*self.entity_key, *self.features, *FRAME_COLUMNS}
        if taken_names:
            problem = "a key, a feature or a frame has this name: rename it"
            yield f"outcome_key: {_listed(taken_names)}: {problem}"

    def _problems_of_exports(self) -> Iterator[str]:
        """Yield keys that a team's table could not tell from columns of its own."""
        taken_names = EXPORT_COLUMNS & {*self.entity_key, *(self.outcome_key or ())}
        if taken_names and (self.scores.to or self.predictions.to):
            problem = "a column of [scores] or [predictions] has this name"
            yield f"entity_key: {_listed(taken_names)}: {problem}: rename the key"

    def _problems_of_segments(self) -> Iterator[str]:
        texts = [name for name, kind in self.features.items() if kind == "string"]
        for name in self.segment:
            if name not in {*texts, *self.audit}:
                yield f"segment: {name!r} is not a string of [features], nor of audit"
        if self.monitoring.bias:
            if not self.segment:
                yield "monitoring.bias: needs a segment, such as customer_segment"
            if self.task != "classification":
                yield "monitoring.bias: only of a classification, with 0 and 1"
        of_segments = OF_SEGMENTS & {gate.metric for gate in self.gates}
        if of_segments and not self.segment:
            yield f"gates: {min(of_segments)} needs a segment, such as customer_segment"

    def _problems_of_estimators(self) -> Iterator[str]:
        if self.estimators and self.training:
            yield "estimators: expected [[estimators]] or [training], found both"
        types = ESTIMATORS[self.task]
        for number, estimator in enumerate(self.estimators):
            if estimator.type not in types and not re.match(FACTORY, estimator.type):
                expected = f"one of {', '.join(types)}, or package.module:factory"
                yield (
                    f"estimators.{number}.type: {estimator.type!r} is not of a "
                    f"{self.task}, expected {expected}"
                )
        names = [estimator.name for estimator in self.estimators]
        if len(set(names)) != len(names):
            yield f"estimators: two share a name: {', '.join(names)}"
        if self.search and not any(estimator.space for estimator in self.estimators):
            yield "search: expected a space = { … } with at least one of [[estimators]]"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def entity_text(key: Entity) -> str:
    """Return an entity as a text, for logs, tables and joins.

    With one column it is the value, else a JSON object.
    """
    if len(key) == 1:
        return str(*key.values())
    return json.dumps(key, sort_keys=True)


def entity_of(columns: Mapping[str, KeyType], text: str) -> Entity:
    """Return the entity whose `entity_text` this is.

    Args:
        columns: Columns of the entity key, and their types.
        text: The text.

    Raises:
        ValueError: No entity with these columns has the text.

    """
    values = {next(iter(columns)): text} if len(columns) == 1 else json.loads(text)
    if not isinstance(values, dict) or values.keys() != columns.keys():
        raise ValueError(f"expected an entity of {', '.join(columns)}, found {text}")
    types = {"int64": int, "string": str}
    return {name: types[kind](values[name]) for name, kind in columns.items()}


def load_spec(name: str, folder: Path = MODELS) -> ModelSpec:
    """Read `models/<name>.toml`.

    Raises:
        SettingsError: The message has a line with file, key and expectation for each wrong key.

    """
    path = folder / f"{name}.toml"
    names = [file.stem for file in folder.glob("*.toml")]
    if name not in names:
        raise SettingsError(
            f"no model {name!r}: {folder.name}/ has {_listed(names) or 'none'}"
        )
    try:
        spec = ModelSpec.model_validate(tomllib.loads(path.read_text("utf-8")))
    except ValidationError as exc:
        lines = [line for error in exc.errors() for line in _problem_lines(error)]
        text = "\n".join(f"{path.name}: {line}" for line in lines)
        raise SettingsError(text) from exc
    except ValueError as exc:  # also text that is not UTF-8
        raise SettingsError(f"{path.name}: not TOML: {exc}") from exc
    if spec.name != name:
        raise SettingsError(
            f"{path.name}: name: expected the file's name, found {spec.name!r}"
        )
    return spec


def load_specs() -> tuple[ModelSpec, ...]:
    """Return the spec of every file of MODELS that can be read, by name."""
    return tuple(spec for spec in _read_all() if isinstance(spec, ModelSpec))


def broken_specs() -> list[str]:
    """Return the problem of each file of MODELS that is no spec: file, key and expectation."""
    return [str(error) for error in _read_all() if isinstance(error, SettingsError)]


def _read_all() -> Iterator[ModelSpec | SettingsError]:
    for path in sorted(MODELS.glob("*.toml")):
        try:
            yield load_spec(path.stem)
        except SettingsError as exc:
            yield exc


def default_spec(settings: Settings, specs: Sequence[ModelSpec]) -> ModelSpec | None:
    """Return the model of routes that name none: GYRE_DEFAULT_MODEL, or the only one."""
    if settings.default_model is None:
        return specs[0] if len(specs) == 1 else None
    return next((spec for spec in specs if spec.name == settings.default_model), None)


def _problem_lines(error: ErrorDetails) -> list[str]:
    """Return lines about an error in a spec: key, expectation and value."""
    key = ".".join(str(part) for part in error["loc"])
    value = error["input"]
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    match error["type"]:
        case "value_error":  # of a validator above, which may name keys below this one
            lines = str(error["ctx"]["error"]).split("\n")
            return [f"{key}: {line}" if key else line for line in lines]
        case "missing":
            return [f"{key}: {error['msg']}"]
        case "extra_forbidden":
            return [f"{key}: unknown key{_similar_key(str(error['loc'][-1]))}"]
    return [f"{key}: {error['msg']} (found {text})"]


def _similar_key(name: str) -> str:
    """Return a question that names a similar key of a spec; empty: there is none."""
    schema = ModelSpec.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    keys = [key for model in models for key in model.get("properties", ())]
    matches = get_close_matches(name, keys, n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
