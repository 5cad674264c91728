"""The history as training and monitor would have seen it at each moment, by their own functions."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np

from feature_repo.features import open_raw, raw_table
from mlflow_server.served_model import at_most_1, rounded
from mlflow_server.tracking import Tracking
from monitoring.concept import Outcomes, decayed, miscalibrated, rises
from monitoring.drift import SCORE, compared
from monitoring.past import surely_better
from monitoring.performance import measured
from monitoring.verdict import FEWEST, judge, worse
from stack.errors import TrainingError
from training.dataset import unlearnable
from training.evaluate import compare, named
from training.frame import at, build_frame, features
from training.gate import decide as gates_say
from training.metrics import Scored, all_metrics
from training.onnx_export import export
from training.scoring import score
from training.snapshots import month_starts
from training.train import choose, choose_threshold, fit_pipeline, with_usable_folds
from training.validate import plan_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    import pandas as pd
    import pyarrow as pa

    from feature_repo.definition import Dataset
    from monitoring.backtest_policies import Trigger
    from monitoring.decision import Verdict
    from monitoring.drift import Drift
    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.gate import Evaluation
    from training.metrics import Labels
    from training.snapshots import Plan

log = logging.getLogger(__name__)
WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Model:
    """What a training made. seconds: of CPU, for choosing, fitting and converting."""

    plan: Plan
    estimator: str
    threshold: float | None
    seconds: float
    onnx: bytes


class History:
    """What a policy can ask of the history (World, backtest_policies.py).

    A training sees what its plan at that moment allows. Those that see the same are fitted once,
    and a model is named by the snapshot that it is evaluated on, the newest matured one. Of the
    spec's gates those are asked that compare scores; its search is not made.
    """

    def __init__(
        self,
        settings: Settings,
        spec: ModelSpec,
        dataset: Dataset,
        end: datetime,
        since: datetime | None = None,
    ) -> None:
        label = dataset.labels[spec.label]
        self.settings, self.dataset, self.end, self.since = settings, dataset, end, since
        self.spec, self.wait = (
            spec.model_copy(update={"search": None}),
            label.horizon + label.lateness,
        )
        self._version = raw_table(settings, dataset).version
        # Here and not on the methods: what was worked out once goes with this object.
        self.plan: Callable[[datetime], Plan] = cache(self._plan)
        self.model: Callable[[datetime], Model] = cache(self._train)
        self.scored: Callable[[datetime, datetime], Scored] = cache(self._scored_month)
        self._compared: Callable[[datetime, datetime], Evaluation] = cache(self._compare)
        self._outcomes_say: Callable[[datetime, datetime], Sequence[str]] = cache(self._judge)

    @cached_property
    def first_event(self) -> datetime:
        raw = open_raw(raw_table(self.settings, self.dataset))
        first: datetime = raw[self.dataset.event_time].min().to_pyarrow().as_py()
        return first

    @cached_property
    def start(self) -> datetime:
        """The first moment, not before `since`, at which a training succeeds.

        Raises:
            TrainingError: none does.

        """
        since = self.since or self.first_event
        for moment in (max(since, month + self.wait) for month in self.months):
            with suppress(TrainingError):
                self.model(self.newest(moment))
                return moment
        self.model(self.newest(self.end))  # says why
        return self.end

    @cached_property
    def months(self) -> tuple[datetime, ...]:
        """Snapshots whose labels are known in the end."""
        return month_starts(self.first_event, self.end - self.wait)

    @cached_property
    def weeks(self) -> tuple[datetime, ...]:
        return tuple(self.start + n * WEEK for n in range((self.end - self.start) // WEEK + 1))

    @cached_property
    def frame(self) -> pa.Table:
        """Rows of every snapshot: those that separate trainings would build, built at once."""
        log.info("frame of %d snapshots", len(self.months))
        return self._frame(self.months)

    @cached_property
    def windows(self) -> pa.Table:
        """Features of the whole population each week; labels nobody knows then."""
        log.info("features of %d weeks", len(self.weeks))
        return self._frame(self.weeks).drop_columns("label")

    def newest(self, as_of: datetime) -> datetime:
        """Name what a training at `as_of` makes."""
        return self.plan(as_of).test

    def labels(self, month: datetime) -> Labels:
        found: Labels = at(self.frame, [month])["label"].to_numpy()
        return found

    def metrics(self, name: datetime, month: datetime) -> dict[str, float]:
        return all_metrics(self.labels(month), self.scored(name, month), self.spec.costs)

    def passes(self, challenger: datetime, champion: datetime) -> bool:
        """Ask the gates, on the snapshot that the challenger is evaluated on."""
        found = self._compared(challenger, champion)
        known = found.figures | found.challenger
        gates = [gate for gate in self.spec.gates if gate.metric in known]
        return all(outcome.passed for outcome in gates_say(gates, found))

    def helps(self, challenger: datetime, champion: datetime) -> bool:
        """Ask what the monitor asks of a run, on the same snapshot."""
        return surely_better(self.spec, named(self._compared(challenger, champion)))

    def look(
        self, model: datetime, trigger: Trigger, as_of: datetime
    ) -> tuple[Verdict, Sequence[str]]:
        """Judge as the monitor does, by drift alone or by outcomes alone."""
        if trigger == "drift":
            rows = at(self.windows, [as_of])
            drift = self._drift(model, rows) if rows.num_rows >= FEWEST else None
            return judge(self.spec.drift, rows.num_rows, drift, [])[:2]
        matured = month_starts(model, as_of - self.wait)
        if not matured or len(y := self.labels(matured[-1])) < FEWEST or len(np.unique(y)) == 1:
            return "insufficient_data", []
        bad = self._outcomes_say(model, matured[-1])
        return ("bad" if bad else "ok"), bad

    def _compare(self, challenger: datetime, champion: datetime) -> Evaluation:
        ours, theirs = (self.scored(name, challenger) for name in (challenger, champion))
        y, against = self.labels(challenger), f"{champion:%Y-%m-%d}"
        return compare(self.spec, y, ours, theirs, against)

    def _frame(self, moments: Sequence[datetime]) -> pa.Table:
        return build_frame(self.settings, self.spec, self.dataset, moments, self.end, self._version)

    def _plan(self, as_of: datetime) -> Plan:
        return plan_run(self.settings, self.spec, self.dataset, as_of, self._version)

    def _train(self, name: datetime) -> Model:
        spec, plan = self.spec, self.plan(name + self.wait)
        frame = at(self.frame, plan.moments)
        train = at(frame, plan.train)
        if useless := unlearnable(spec, train, at(frame, [plan.test])):
            when = f"{plan.test + self.wait:%Y-%m-%d}"
            raise TrainingError(f"{spec.name} as of {when}: {'; '.join(useless)}")
        began, plan = time.process_time(), with_usable_folds(frame, plan)
        chosen, _, how = choose(Tracking(self.settings), spec, "", frame, plan)
        threshold = choose_threshold(spec, chosen, frame, plan)
        model = export(fit_pipeline(spec, chosen, train), spec.features)
        onnx, took = model.SerializeToString(deterministic=True), time.process_time() - began
        log.info(
            "labels up to %s: %s by %s, %.1f s", f"{plan.test:%Y-%m-%d}", chosen.name, how, took
        )
        return Model(plan, chosen.name, threshold, took, onnx)

    def _scored_month(self, name: datetime, month: datetime) -> Scored:
        """Score a snapshot with the model that would be served."""
        return self._scored(name, at(self.frame, [month]))

    def _scored(self, name: datetime, rows: pa.Table) -> Scored:
        model = self.model(name)
        scores = score(model.onnx, self.spec.features, features(self.spec, rows))
        return Scored(at_most_1(scores, model.threshold), model.threshold)

    def _drift(self, model: datetime, rows: pa.Table) -> Drift:
        return compared(*(self._window(model, each) for each in (at(self.frame, [model]), rows)))

    def _window(self, model: datetime, rows: pa.Table) -> pd.DataFrame:
        found = self._scored(model, rows)
        scores = rounded(found.scores, found.threshold)
        return features(self.spec, rows).assign(**{SCORE: scores})

    def _judge(self, model: datetime, month: datetime) -> Sequence[str]:
        spec, scored = self.spec, self.scored(model, month)
        seen = measured("replay", f"{month:%Y-%m-%d}", self.labels(month), scored, spec)
        then, now = (self._came_true(model, each) for each in (model, month))
        return [
            *worse(seen, self.metrics(model, model)),
            *decayed(rises(then, now), classes=scored.threshold is not None)[0],
            *miscalibrated(then, now, spec.seed)[1],
        ]

    def _came_true(self, model: datetime, month: datetime) -> Outcomes:
        by, rows = self.spec.segment, at(self.frame, [month])
        segment = rows[by].to_pandas().to_numpy() if by else None
        return Outcomes(self.labels(month), self.scored(model, month), segment)
