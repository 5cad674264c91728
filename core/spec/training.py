"""What a model spec says of training: estimators, costs, metrics and the gates to pass."""

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
"""What challenger, baseline and champion are compared by (training/evaluation/metrics.py)."""
LOWER_IS_BETTER: frozenset[str] = frozenset(
    {"log_loss", "brier", "cost", "rmse", "mae"}
)
OfSegments = Literal[
    "demographic_parity_difference", "equal_opportunity_difference", "largest_gap"
]
OF_SEGMENTS: frozenset[str] = frozenset(get_args(OfSegments))
Figure = Literal[OfSegments, "ece", "onnx_difference"]
"""Measured for the challenger only: baseline and champion have no such value."""
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
"""Metrics that a task does not have; its gates must not name them."""
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
"""Short names of an estimator's type, and the factory that each one stands for."""
MOST_CATEGORIES = 255
"""Columns that a text becomes, as HistGradientBoosting has it. Other values count as unknown."""
FACTORY = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


class Strict(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


Every = Literal["day", "week", "month"]
"""Each begins at 00:00 UTC, a week on Monday."""


class Snapshots(Strict):
    """How the calendar cuts training rows; the newest matured snapshots are the test set.

    rows: members: a snapshot is the beginning of a day, week or month, when each member of the
    population is a row. label: a snapshot is that whole period, with the rows of the label's
    expression.
    """

    every: Every
    train: int = Field(ge=1)  # how many of the newest that the label's gap allows
    test: int = Field(1, ge=1)  # how many; each forward fold is judged by as many
    rows: Literal["members", "label"] = "members"
    sample: float = Field(
        1, gt=0, le=1
    )  # share of entities, where all do not fit in memory


class Range(Strict):
    """Where to search a parameter, both ends included; whole numbers if both are whole.

    log: 0.01 to 0.1 is as far as 0.1 to 1.
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
    """What is trained; the first one is what a history too short for folds trains.

    type: a short name, or `package.module:factory` (docs/how-to/own-model.md).
    space: what a search may change; it begins with the parameter's own value.
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
                f"space.{key}: expected a value of its own in parameters, "
                f"{bounds.low} to {bounds.high}, found {start}"
            )
        return self


class Training(Strict):
    """`[training]`: training code of one's own in place of [[estimators]]."""

    function: str = Field(pattern=FACTORY)
    parameters: dict[str, Any] = Field(default_factory=dict)


class Search(Strict):
    """`[search]`: try parameters out of the spaces on the forward folds; without it, none.

    It ends after `trials`, or with the trial during which `minutes` have passed; each estimator's
    own parameters are tried first and in any case.
    """

    trials: int = Field(ge=1)
    minutes: float = Field(10, gt=0, le=24 * 60)


class Costs(Strict):
    """What acting on a prediction of 1 is worth, in one currency."""

    action: float = Field(ge=0)  # of acting on one row
    loss: float = Field(gt=0)  # of one row that turns out 1
    averted: float = Field(
        1.0, gt=0, le=1
    )  # the share of losses that acting prevents: assumed


class Limit(Strict):
    """Compares the challenger's `metric` on the newest matured snapshot with `value`."""

    metric: Metric | Figure
    rule: Literal["at_least", "at_most"]
    value: float


class BetterThanBaseline(Strict):
    """The challenger must be better than the best constant answer on the same rows.

    For classes this is their shares, or always the same class. For numbers it is the mean or the
    median. For `cost`: the cheaper of acting on nobody and on everybody.
    """

    metric: Metric
    rule: Literal["better_than_baseline"]


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
Gate = Annotated[
    Limit | BetterThanBaseline | AgainstChampion, Field(discriminator="rule")
]
