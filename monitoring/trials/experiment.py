"""Comparison of production and challenger by outcomes, with the certainty of the difference.

An experiment is a span in which one challenger answered one percent and one production version the
rest. An entity counts once, by its first answer in the span. A hash of the entity decides which
version answers, so the two groups differ by nothing else. An interval holds for one reading.
"""

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import ttest_ind

from core.errors import MonitoringError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.training import Metric
from feature_repo.labels import label_source
from mlflow_server.promotion.ledger import Ledger, LedgerRow
from mlflow_server.promotion.rules import of_newest_model
from mlflow_server.roles import CHALLENGER, PRODUCTION, WHOLE, RoleAssignment
from monitoring.harm import find_harm, measure_variants
from monitoring.log.actuals import read_actuals, units
from monitoring.log.collect import collect
from monitoring.log.tables import (
    ANSWERS,
    answered_rows,
    is_of_model,
    join_outcomes,
    logged_scores,
)
from training.evaluation.metrics import Scored, losses
from training.evaluation.reference import spec_of_version

Conclusion = Literal["better", "worse", "not yet known"]
FEWEST_OUTCOMES = 100
"""Number of outcomes of each version below which nothing is concluded: means are not normal yet."""
LEVEL = 0.05
FIGURES: dict[Metric, str] = {
    "log_loss": "log_loss",
    "rmse": "squared_error",
    "mae": "absolute_error",
}
"""Name of a row's part of each loss."""
UNITS = {
    "cost": "cost per entity",
    "log_loss": "log loss",
    "squared_error": "squared error",
    "absolute_error": "absolute error",
}


@dataclass(frozen=True)
class Experiment:
    """A span of the ledger with one production version and one challenger.

    Attributes:
        production: The version in production.
        challenger: The challenger.
        percent: Percent of the entities that the challenger answers.
        start: Start of the span.
        end: End of the span; None while it goes on.

    """

    production: str
    challenger: str
    percent: int
    start: datetime
    end: datetime | None


@dataclass(frozen=True)
class Effect:
    """Difference challenger minus production, and its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ExperimentReport:
    """An experiment and its conclusion.

    Attributes:
        model: Name of the model.
        as_of: The moment up to which log and outcomes are read.
        experiment: The experiment.
        figure: The figure that decides. Less is better in all figures but `rate`.
        outcomes: Number of entities whose outcome is known, by role.
        means: Mean of each figure by role; `rate` is the mean of actual values.
        effects: Effect by figure; none if a version has fewer than two outcomes.
        conclusion: Conclusion on the challenger.
        harm: Harm of the challenger by failures, latency or scores; None: no harm is known.

    """

    model: str
    as_of: datetime
    experiment: Experiment
    figure: str
    outcomes: dict[str, int]
    means: Mapping[str, Mapping[Hashable, float]]
    effects: dict[str, Effect]
    conclusion: Conclusion
    harm: str | None = None

    @property
    def sentence(self) -> str:
        """The conclusion in one sentence."""
        experiment = self.experiment
        outcomes = (
            f"{self.outcomes[CHALLENGER]:,} and {self.outcomes[PRODUCTION]:,} outcomes"
        )
        if min(self.outcomes.values()) < FEWEST_OUTCOMES:
            outcomes = f"{outcomes}; at least {FEWEST_OUTCOMES} of each are needed"
        text = (
            f"{self.model}: {self.conclusion}: version {experiment.challenger} "
            f"against version {experiment.production}: "
        )
        if self.figure in self.effects:
            effect = self.effects[self.figure]
            direction = "lower" if effect.difference < 0 else "higher"
            text += f"{UNITS[self.figure]} {abs(effect.difference):.3g} {direction} "
            text += f"(95 %: {effect.low:+.3g} to {effect.high:+.3g}), "
        return text + outcomes


def read_report(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> ExperimentReport:
    """Compare the versions of the newest experiment.

    Raises:
        MonitoringError: There was no experiment.
        RegistryError, DataError: A store does not answer.

    """
    with Ledger(settings) as ledger:
        rows = of_newest_model(ledger.rows(spec.name))
    experiment = newest_experiment([row for row in rows if row.time <= as_of])
    if experiment is None:
        raise MonitoringError(
            f"{spec.name}: no version was ever a challenger, so nothing can be compared; run: "
            f"gyre promote {spec.name} VERSION --role challenger --percent 10 --reason …"
        )
    spec = spec_of_version(settings, spec, experiment.production)
    model = RoleAssignment(spec.name, rows[-1].created)
    until = min(as_of, experiment.end or as_of)
    collect(settings)
    feedback = join_outcomes(settings, spec, as_of).known
    answers = _first_answers(settings, spec, model, experiment, until)
    source = label_source(settings, spec)
    labels, _ = read_actuals(spec, source, answers, feedback, as_of)
    scores = logged_scores(spec, answers).tolist()
    entities = answers.select(["role", "prediction"]).to_pandas()
    entities = entities.assign(label=labels, score=scores).dropna(subset="label")
    variants = measure_variants(settings, model, experiment.start, until)
    return replace(
        compare_groups(spec, experiment, entities, as_of),
        harm=find_harm(
            variants[CHALLENGER, experiment.challenger],
            variants[PRODUCTION, experiment.production],
            spec.rollout,
        ),
    )


def newest_experiment(rows: Sequence[LedgerRow]) -> Experiment | None:
    """Return the newest experiment of a ledger; None if there was none."""
    experiment: Experiment | None = None
    production: str | None = None
    for row in rows:
        if not row.applied_at or row.role not in {PRODUCTION, CHALLENGER}:
            continue
        if experiment and experiment.end is None:
            experiment = replace(experiment, end=row.time)
        if row.role == PRODUCTION:
            production = row.to_version
        elif production and row.to_version and row.percent < WHOLE:
            experiment = Experiment(
                production=production,
                challenger=row.to_version,
                percent=row.percent,
                start=row.time,
                end=None,
            )
    return experiment


def _first_answers(
    settings: Settings,
    spec: ModelSpec,
    model: RoleAssignment,
    experiment: Experiment,
    until: datetime,
) -> pa.Table:
    """Return the first answer to each entity in an experiment, or for each row of the label."""
    received = pc.field("received")
    role = pc.field("role")
    version = pc.field("version")
    is_challengers = (role == CHALLENGER) & (version == experiment.challenger)
    is_productions = (role == PRODUCTION) & (version == experiment.production)
    is_within = (received >= experiment.start) & (received <= until)
    is_own = is_of_model(model) & (is_challengers | is_productions)
    is_counted = pc.field("in_population") & pc.field("entity").is_valid()
    columns = [*ANSWERS, "request_data"]
    answers = answered_rows(settings, is_own & is_within & is_counted, columns)
    answers = answers.sort_by("received")
    keys = units(spec, answers)
    if spec.snapshots.rows != "label":
        keys = keys[["entity"]]
    is_first = keys["entity"].isna() | ~keys.duplicated()
    return answers.filter(pa.array(is_first, pa.bool_()))


def compare_groups(
    spec: ModelSpec, experiment: Experiment, entities: pd.DataFrame, as_of: datetime
) -> ExperimentReport:
    """Judge by the cost if the spec has costs, else by the loss.

    Each prediction of 1 costs the action, and each actual 1 costs the loss. The cost is observed and
    uses no assumption (`averted`), provided that each prediction of 1 led to the action.

    Args:
        spec: Spec of the model.
        experiment: The experiment.
        entities: A row for each entity. role: role of the version that answered. label: actual
            value. score: probability or number, or the list of probabilities of many classes.
            prediction: 0 or 1, or the number.
        as_of: The moment up to which outcomes are known.

    """
    figures = _figures(spec, entities)
    decisive = str(figures.columns[0])
    is_challengers = entities["role"] == CHALLENGER
    groups = {CHALLENGER: figures[is_challengers], PRODUCTION: figures[~is_challengers]}
    fewest = min(len(group) for group in groups.values())
    effects: dict[str, Effect] = {}
    if fewest > 1:
        for name in map(str, figures):
            effects[name] = estimate_effect(
                groups[CHALLENGER][name], groups[PRODUCTION][name]
            )
    conclusion: Conclusion = "not yet known"
    if fewest >= FEWEST_OUTCOMES:
        effect = effects[decisive]
        if effect.high < 0:
            conclusion = "better"
        elif effect.low > 0:
            conclusion = "worse"
    return ExperimentReport(
        model=spec.name,
        as_of=as_of,
        experiment=experiment,
        figure=decisive,
        outcomes={role: len(group) for role, group in groups.items()},
        means={role: group.mean().dropna().to_dict() for role, group in groups.items()},
        effects=effects,
        conclusion=conclusion,
    )


def estimate_effect(
    challenger: "pd.Series[float]", production: "pd.Series[float]"
) -> Effect:
    """Return the difference of two means with Welch's interval. Each group has at least two values."""
    difference = float(challenger.mean() - production.mean())
    if challenger.var() == production.var() == 0:
        return Effect(difference, difference, difference)
    with warnings.catch_warnings():
        # SciPy warns if all values of a group are equal.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = ttest_ind(challenger, production, equal_var=False)
        interval = test.confidence_interval(1 - LEVEL)
    return Effect(difference, float(interval.low), float(interval.high))


def _figures(spec: ModelSpec, entities: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of each entity, the deciding one first. Positions of classes have no rate."""
    labels = entities["label"]
    scored = Scored(np.array(entities["score"].tolist()), spec.threshold)
    values = losses(labels.to_numpy(), scored, spec.loss)
    figures = pd.DataFrame({FIGURES[spec.loss]: values}, entities.index)
    if spec.classes:
        return figures
    figures["rate"] = labels
    if spec.costs:
        cost = spec.costs.action * entities["prediction"] + spec.costs.loss * labels
        figures.insert(0, "cost", cost)
    return figures
