"""`gyre compare`: what came true of a trial's answers, gathered for ab.py to judge."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime  # noqa: TC003  (pydantic reads the annotations)
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter

from mlflow_server.ledger import Ledger
from mlflow_server.registry import CHALLENGER, PRODUCTION
from monitoring.ab import Comparison, Outcomes, Trial, comparable, compare, trials
from monitoring.collect import ANSWERS, collect, predictions
from monitoring.feedback import settle
from monitoring.performance import actuals
from stack.errors import MonitoringError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from monitoring.ab import ArmResult, Lift
    from stack.settings import Settings
    from stack.spec import ModelSpec

YET = "whose outcome is not known yet"
ALONE = "answered first at a percent at which only one version has outcomes"


@dataclass(frozen=True)
class ReadOut:
    """A trial as of `as_of`; its text is `sentence`, or `lines()` with the figures.

    left_out: answers that do not count, entities for the outcomes they lack, and entities that
    count for their first answer though the other version answered them later; by why.
    """

    model: str
    as_of: datetime
    trial: Trial
    comparison: Comparison
    left_out: dict[str, int]

    @property
    def matured(self) -> bool:
        return min(self.comparison.production.outcomes, self.comparison.challenger.outcomes) > 0

    @property
    def sentence(self) -> str:
        return f"{self.model}: {self.comparison.sentence}"

    def lines(self) -> Iterator[str]:
        yield self.sentence
        trial, found = self.trial, self.comparison
        until = f"to {trial.ended:%Y-%m-%d %H:%M} UTC" if trial.ended else "and goes on"
        yield (
            f"  {trial.began:%Y-%m-%d %H:%M} UTC {until}; each entity by its first answer, if that "
            "was to the population and its outcome is known"
        )
        for role, arm in ((PRODUCTION, found.production), (CHALLENGER, found.challenger)):
            yield f"  {role:<10}  {_arm(arm)}"
        for name, lift in found.lifts.items():
            yield f"  {'difference':<10}  {name} {_lift(lift)}"
        for why, count in sorted(self.left_out.items()):
            yield f"  {count:,} {why}"


READ_OUTS = TypeAdapter(ReadOut)


def read_out(
    settings: Settings, spec: ModelSpec, as_of: datetime, challenger: str | None = None
) -> ReadOut:
    """Compare the newest trial of `challenger`; without one, the newest that has outcomes.

    Raises:
        MonitoringError: there was no such trial.
        RegistryError, DataError: a store that it needs does not answer.

    """
    with closing(Ledger(settings)) as ledger:
        rows = [row for row in ledger.rows(spec.name) if row.time <= as_of]
    found = [each for each in trials(rows) if challenger in {None, each.challenger}]
    if not found:
        which = f"version {challenger} was never" if challenger else "no version was ever"
        raise MonitoringError(
            f"{spec.name}: {which} a challenger, so there is nothing to compare; run: gyre promote "
            f"{spec.name} VERSION --role challenger --percent 10 --reason …"
        )
    taken = collect(settings)
    classes = spec.task == "classification"
    known = settle(settings, taken.told, spec.name, as_of, classes=classes).known
    told = [of_trial(settings, spec, each, known, as_of) for each in reversed(found)]
    return next((each for each in told if each.matured), told[0])


def note_of_trial(
    settings: Settings,
    spec: ModelSpec,
    version: str,
    known: Mapping[str, float],
    as_of: datetime,
) -> list[str]:
    """The sentence on the trial that `version`, in production, won or stands; none if immature."""
    with closing(Ledger(settings)) as ledger:
        rows = [row for row in ledger.rows(spec.name) if row.time <= as_of]
    found = [each for each in trials(rows) if each.challenger == version or each.ended is None]
    if not found:
        return []
    told = of_trial(settings, spec, found[-1], known, as_of)
    return [f"A/B: {told.comparison.sentence}"] if told.matured else []


def of_trial(
    settings: Settings,
    spec: ModelSpec,
    trial: Trial,
    known: Mapping[str, float],
    as_of: datetime,
) -> ReadOut:
    """known: actuals by request; raw data outranks them."""
    within = _within(trial, spec.name, as_of)
    answered = predictions(settings).read(columns=ANSWERS, where=within)
    first, left_out = first_answers(answered.to_pandas())
    table = pa.Table.from_pandas(first, answered.schema, preserve_index=False)
    true = actuals(settings, spec, table, known, as_of)
    first, y = first[~np.isnan(true)], true[~np.isnan(true)]
    if len(y) < len(true):
        left_out[YET] = len(true) - len(y)
    classes = spec.task == "classification"
    seen = Outcomes(
        challenger=(first["role"] == CHALLENGER).to_numpy(),
        step=pd.DatetimeIndex(trial.steps).searchsorted(first["received"], side="right"),
        y=y.astype(np.int64) if classes else y,
        p=first["probability" if classes else "prediction"].to_numpy(float),
        said=first["prediction"].to_numpy(float),
    )
    fair = comparable(seen)
    if len(fair.y) < len(seen.y):
        left_out[ALONE] = len(seen.y) - len(fair.y)
    return ReadOut(spec.name, as_of, trial, compare(spec, trial, fair), left_out)


def _within(trial: Trial, model: str, as_of: datetime) -> pc.Expression:
    """Rows of `predictions` that either version answered in its role."""
    until = min(as_of, trial.ended) if trial.ended else as_of
    received, role, version = (pc.field(name) for name in ("received", "role", "version"))
    ours = (role == CHALLENGER) & (version == trial.challenger)
    theirs = (role == PRODUCTION) & (version == trial.production)
    times = (received >= trial.began) & (received <= until)
    return (pc.field("model") == model) & times & (ours | theirs)


def first_answers(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """The first answer of each entity within a trial, and what is left out by why."""
    nobody, outside = rows["entity"].isna(), ~rows["in_population"].astype(bool)
    rows = rows[~nobody & ~outside].sort_values("received", kind="stable")
    first, every = rows.drop_duplicates("entity"), rows.drop_duplicates(["entity", "role"])
    counts = {
        "answers without an entity": int(nobody.sum()),
        "answers outside the population": int((outside & ~nobody).sum()),
        "answered by the other version later": len(every) - len(first),
    }
    return first, {why: n for why, n in counts.items() if n}


def _arm(arm: ArmResult) -> str:
    told = [f"version {arm.version}", f"{arm.outcomes:,} outcomes"]
    told += [] if arm.rate is None else [f"rate {arm.rate:.4f}"]
    return ", ".join(told + [f"{name} {value:.4f}" for name, value in arm.metrics.items()])


def _lift(lift: Lift) -> str:
    return f"{lift.difference:+.4f} (95 %: {lift.low:+.4f} to {lift.high:+.4f})"
