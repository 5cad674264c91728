"""The part of a model spec about training: estimators, costs, metrics and gates."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Task = Literal["classification", "regression", "multiclass"]
OfClasses = Literal[
    "log_loss",
    "brier",
    "auc",
    "average_precision",
    "accuracy",
    "precision",
    "recall",
    "f1",
    "cost",
]
OfNumbers = Literal["rmse", "mae", "r2"]
Metric = Literal[OfClasses, OfNumbers]
"""Metrics that compare challenger, baseline and champion (training/evaluation/metrics.py)."""
LOWER_IS_BETTER: frozenset[str] = frozenset(
    {"log_loss", "brier", "cost", "rmse", "mae"}
)
OfSegments = Literal[
    "demographic_parity_difference", "equal_opportunity_difference", "largest_gap"
]
OF_SEGMENTS: frozenset[str] = frozenset(get_args(OfSegments))
Figure = Literal[OfSegments, "ece", "onnx_difference"]
"""Figures of the challenger alone: baseline and champion have no such value."""
METRICS_OF_OTHER_TASKS: dict[Task, tuple[str, ...]] = {
    "classification": get_args(OfNumbers),
    "regression": (*get_args(OfClasses), *OF_SEGMENTS),
    "multiclass": (
        *get_args(OfNumbers),
        "auc",
        "average_precision",
        "cost",
        *OF_SEGMENTS,
    ),
}
"""Metrics that a task does not have, and its gates must not name."""
CLASSIFIERS = {
    "logistic_regression": "sklearn.linear_model:LogisticRegression",
    "random_forest": "sklearn.ensemble:RandomForestClassifier",
    "hist_gradient_boosting": "sklearn.ensemble:HistGradientBoostingClassifier",
    "xgboost": "xgboost:XGBClassifier",
    "lightgbm": "lightgbm:LGBMClassifier",
}
ESTIMATORS: dict[Task, dict[str, str]] = {
    "classification": CLASSIFIERS,
    "multiclass": CLASSIFIERS,
    "regression": {
        "ridge": "sklearn.linear_model:Ridge",
        "random_forest": "sklearn.ensemble:RandomForestRegressor",
        "hist_gradient_boosting": "sklearn.ensemble:HistGradientBoostingRegressor",
        "xgboost": "xgboost:XGBRegressor",
        "lightgbm": "lightgbm:LGBMRegressor",
    },
}
"""Factories of estimators by the short name of their type."""
ESTIMATOR_TYPES: dict[str, tuple[str, ...]] = {
    "logistic_regression": (),
    "ridge": (),
    "random_forest": ("sklearn.tree._tree.Tree",),
    "hist_gradient_boosting": (
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    ),
    "xgboost": (
        "xgboost.core.Booster",
        "xgboost.sklearn.XGBClassifier",
        "xgboost.sklearn.XGBRegressor",
    ),
    "lightgbm": (
        "collections.OrderedDict",
        "lightgbm.basic.Booster",
        "lightgbm.sklearn.LGBMClassifier",
        "lightgbm.sklearn.LGBMRegressor",
    ),
}
"""Types that skops does not know, and that a fitted estimator of a short name has."""
MOST_CATEGORIES = 255
"""Most values of a text that are told apart, as in HistGradientBoosting; others are unknown."""
FACTORY = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


class Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


Every = Literal["day", "week", "month"]
"""Period of a snapshot: it begins at 00:00 UTC, a week on Monday."""


class Snapshots(Strict):
    """Snapshots of the history, which training rows come from; the newest matured are the test set.

    rows: With `members` a snapshot is the beginning of a day, week or month, and each member of the
    population is a row then. With `label` a snapshot is that whole period, with the rows of the
    label's expression.
    """

    every: Every
    train: int = Field(
        ge=1
    )  # number of training snapshots: the newest that the label's gap allows
    test: int = Field(
        1, ge=1
    )  # number of test snapshots; each forward fold is judged on as many
    rows: Literal["members", "label"] = "members"
    sample: float = Field(
        1, gt=0, le=1
    )  # share of the entities, if all do not fit in memory


class Range(Strict):
    """Range in which a search varies a parameter, both ends included; whole if both ends are whole.

    log: The search takes logarithms: 0.01 to 0.1 is as far as 0.1 to 1.
    """

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("expected low < high, and with log 0 < low")
        return self


class Estimator(Strict):
    """An estimator to train; with a history too short for folds, the first one is trained.

    type: A short name, or `package.module:factory` (docs/how-to/own-model.md).
    space: Ranges of parameters that a search varies; it begins with the values in `parameters`.
    """

    name: str
    type: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Range] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _begins_within(self) -> Self:
        for key, bounds in self.space.items():
            start = self.parameters.get(key, "none")
            if isinstance(start, int | float) and bounds.low <= start <= bounds.high:
                continue
            raise ValueError(
                f"space.{key}: expected {key} in parameters, "
                f"{bounds.low} to {bounds.high}, found {start}"
            )
        return self


class Training(Strict):
    """`[training]`: a function of the project that trains, in place of [[estimators]]."""

    function: str = Field(pattern=FACTORY)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Search(Strict):
    """`[search]`: tries parameters of the spaces on the forward folds. Without it there is no search.

    It ends after `trials`, or with the trial during which `minutes` have passed. It always tries
    the parameters of each estimator first.
    """

    trials: int = Field(ge=1)
    minutes: float = Field(10, gt=0, le=24 * 60)


class Costs(Strict):
    """Costs and benefit of acting on a prediction of 1, in one currency."""

    action: float = Field(ge=0)  # cost of acting on a row
    loss: float = Field(gt=0)  # loss by a row that turns out 1
    averted: float = Field(
        1.0, gt=0, le=1
    )  # share of losses that acting prevents: an assumption


class Limit(Strict):
    """The challenger's `metric` on the newest matured snapshot must reach, or not exceed, `value`."""

    metric: Metric | Figure
    rule: Literal["at_least", "at_most"]
    value: float


class BetterThanBaseline(Strict):
    """The challenger must be better than the best constant answer on the same rows.

    The constant answer is the shares of the classes or always the same class; for numbers the mean
    or the median; for `cost` the cheaper of acting on nobody and on everybody.
    """

    metric: Metric
    rule: Literal["better_than_baseline"]


class AgainstChampion(Strict):
    """The challenger is compared with the champion on the same rows; without champion it passes.

    better_than_champion: It is better by at least `margin_percent` of the champion's metric.
    not_worse_than_champion: It is no worse, and the upper end of the paired bootstrap interval
    (95 %) of the difference is at most `margin_percent` of the champion's metric.
    """

    metric: Metric
    rule: Literal["better_than_champion", "not_worse_than_champion"]
    margin_percent: float = Field(0.0, ge=0, le=100)


# One rule that a challenger must pass. Training checks that ONNX scores as scikit-learn, gate or not.
Gate = Annotated[
    Limit | BetterThanBaseline | AgainstChampion, Field(discriminator="rule")
]
