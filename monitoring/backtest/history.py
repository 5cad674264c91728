"""The history as training and monitor would have seen it at each moment, by their own functions."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, cached_property, partial

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.definition import Dataset
from feature_repo.features import open_raw, raw_table
from mlflow_server.pyfunc import ModelFile
from mlflow_server.tracking import Tracking
from monitoring.backtest.policies import Outcome, Policy
from monitoring.checks.concept import Outcomes, judge_calibration, judge_rises, rises
from monitoring.checks.drift import compared
from monitoring.checks.performance import judge_performance, measured
from monitoring.checks.result import CheckResult
from monitoring.decision import Verdict, judge
from monitoring.window import compared_features, with_scores
from training.dataset import unlearnable
from training.evaluate import compare
from training.frame import at, build_frame, features
from training.gate import decide as decide_gates
from training.metrics import LOSSES, Scored, all_metrics
from training.onnx_export import exported, score
from training.snapshots import Snapshot, matured, plan
from training.train import choose, train_model, with_usable_folds

log = logging.getLogger(__name__)
WEEK = timedelta(weeks=1)


@dataclass(frozen=True)
class Model:
    """What a training made. seconds: of CPU."""

    threshold: float | None
    seconds: float
    served: ModelFile


class History:
    """What a policy can ask of the history.

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
        label, table = dataset.labels[spec.label], raw_table(settings, dataset)
        first_event = open_raw(table)[dataset.event_time].min().to_pyarrow().as_py()
        self.settings = settings
        self.spec = spec.model_copy(update={"search": None})
        self.end = end
        self.since = since or first_event
        wait = label.horizon + label.lateness
        self.snapshots = matured(spec.snapshots, first_event, end - wait)
        """Those whose labels are known in the end."""
        self.known = {each.start: each.last + wait for each in self.snapshots}
        """When the labels of each are known."""
        self.asked = WEEK if spec.snapshots.rows == "label" else timedelta()
        """A week's window goes back so far: the label's own rows, or everybody at one moment."""
        self.plan = partial(plan, first_event, label=label, snapshots=spec.snapshots)
        self._frame = partial(
            build_frame, settings, self.spec, dataset, as_of=end, version=table.version
        )
        # Not as decorators: what was worked out once goes with this object.
        self.model = cache(self._train)
        self.outcomes = cache(self._outcomes)
        self._by_outcomes = cache(self._monitor_outcomes)

    @cached_property
    def start(self) -> datetime:
        """The first moment, not before `since`, at which a training succeeds, or TrainingError."""
        for known in self.known.values():
            moment = max(self.since, known)
            with suppress(TrainingError):
                self.model(self.newest(moment))
                return moment
        self.model(self.newest(self.end))  # says why
        return self.end

    @cached_property
    def weeks(self) -> tuple[datetime, ...]:
        return tuple(
            self.start + n * WEEK for n in range((self.end - self.start) // WEEK + 1)
        )

    @cached_property
    def frame(self) -> pa.Table:
        """Rows of every snapshot, as separate trainings would build them."""
        log.info("frame of %d snapshots", len(self.snapshots))
        return self._frame(self.snapshots)

    @cached_property
    def windows(self) -> pa.Table:
        """Features of the whole population each week; labels nobody knows then."""
        log.info("features of %d weeks", len(self.weeks))
        asked = [Snapshot(week - self.asked, week) for week in self.weeks]
        return self._frame(asked).drop_columns("label")

    def newest(self, as_of: datetime) -> datetime:
        """Name what a training at `as_of` makes."""
        return self.plan(as_of).test[-1].start

    def tested(self, model: datetime) -> tuple[datetime, ...]:
        """Name the snapshots that a model is evaluated on."""
        return tuple(each.start for each in self.plan(self.known[model]).test)

    def loss(self, model: datetime, month: datetime) -> float:
        rows = self.outcomes(model, month)
        return LOSSES[self.spec.loss](rows.y, rows.said.scores)

    def compare(self, challenger: datetime, champion: datetime) -> Outcome:
        """Ask gates and monitor, on the snapshots that the challenger is evaluated on."""
        test = self.tested(challenger)
        ours, theirs = (self.outcomes(model, *test) for model in (challenger, champion))
        evaluation = compare(
            self.spec, ours.y, ours.said, theirs.said, f"{champion:%Y-%m-%d}"
        )
        known = evaluation.figures | evaluation.challenger
        gates = [gate for gate in self.spec.gates if gate.metric in known]
        passed = all(gate.passed for gate in decide_gates(gates, evaluation))
        return "passed" if passed else "refused"

    def monitor(
        self, model: datetime, policy: Policy, as_of: datetime
    ) -> tuple[Verdict, Sequence[str]]:
        """Judge as the monitor does, by drift alone or by outcomes alone; say what is bad."""
        if policy == "outcome-triggered":
            since = [
                name
                for name, end in self.known.items()
                if name > model and end <= as_of
            ]
            return (
                self._by_outcomes(model, since[-1])
                if since
                else ("insufficient_data", [])
            )
        rows = at(self.windows, [Snapshot(as_of - self.asked, as_of)])
        if rows.num_rows < self.spec.monitoring.fewest:
            return "insufficient_data", []
        reference = self._window(model, self._rows(*self.tested(model)))
        results = compared(self.spec.monitoring, reference, self._window(model, rows))
        return judge(results), _bad(results)

    def _monitor_outcomes(
        self, model: datetime, month: datetime
    ) -> tuple[Verdict, Sequence[str]]:
        spec, limits = self.spec, self.spec.monitoring
        before, now = (
            self.outcomes(model, *self.tested(model)),
            self.outcomes(model, month),
        )
        if len(now.y) < limits.fewest or len(np.unique(now.y)) == 1:
            return "insufficient_data", []
        performance = measured("backfilled", f"{month:%Y-%m-%d}", now.y, now.said, spec)
        risen = rises(before, now, limits.fewest_of_segment)
        results = [
            *judge_performance(
                limits, performance, all_metrics(before.y, before.said, spec.costs)
            ),
            *judge_rises(limits, risen, classes=now.said.task != "regression"),
            judge_calibration(limits, before, now, spec.seed),
        ]
        return judge(results), _bad(results)

    def _train(self, name: datetime) -> Model:
        spec, as_of = self.spec, self.known[name]
        plan = self.plan(as_of)
        frame = at(self.frame, plan.snapshots)
        train = at(frame, plan.train)
        if problems := unlearnable(spec, train, at(frame, plan.test)):
            raise TrainingError(
                f"{spec.name} as of {as_of:%Y-%m-%d}: {'; '.join(problems)}"
            )
        began = time.process_time()
        plan = with_usable_folds(frame, plan)
        chosen, _, how = choose(Tracking(self.settings), spec, "", frame, plan)
        model, threshold, _ = train_model(spec, chosen, frame, plan)
        served = exported(model, spec)
        seconds = time.process_time() - began
        log.info(
            "labels up to %s: %s by %s, %.1f s", name.date(), chosen.name, how, seconds
        )
        return Model(threshold, seconds, served)

    def _rows(self, *names: datetime) -> pa.Table:
        return at(self.frame, [each for each in self.snapshots if each.start in names])

    def _outcomes(self, name: datetime, *snapshots: datetime) -> Outcomes:
        rows, column = self._rows(*snapshots), self.spec.segment
        segment = rows[column].to_pandas().to_numpy() if column else None
        return Outcomes(rows["label"].to_numpy(), self._score(name, rows), segment)

    def _window(self, name: datetime, rows: pa.Table) -> pd.DataFrame:
        said = self._score(name, rows)
        return with_scores(compared_features(self.spec, rows), said, self.spec.classes)

    def _score(self, name: datetime, rows: pa.Table) -> Scored:
        """Score rows of a frame with the bytes that would be served."""
        model = self.model(name)
        scores = score(model.served, self.spec.inputs, features(self.spec, rows))
        return Scored(scores, model.threshold)


def _bad(results: Sequence[CheckResult]) -> list[str]:
    return [result.remark for result in results if result.status == "bad"]
