"""Does retraining pay? Policies walk week by week through the real history.

    python -m benchmarks.backtest MODEL

All policies start with the same model and go by the functions of the loop: plan, frame, choice of
estimator, export, gates, PSI, performance, decision. *frozen* never trains; *monthly* and *weekly*
train then if a label has matured; *drift* trains when features or scores drift, *outcomes* when
performance falls, as the spec's [monitoring] has it. Of its drift checks PSI alone is made, on the
whole population once a week, where the loop looks every hour. Of the gates those that compare
scores are asked, and the spec's search is not made. Of the shipped orders those that lie ahead are
used too. A model is named by the newest snapshot that it is evaluated on.
"""

import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import pairwise

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import TrainingError
from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_spec
from feature_engine.ingest.pipeline import whole_history
from feature_engine.offline.labels import dataset_labels
from feature_engine.offline.raw import open_raw, raw_table
from feature_repo.datasets import load_dataset
from mlflow_server.api.tracking import Tracking
from mlflow_server.model.pyfunc import ModelFile
from monitoring.decisions.decision import Inputs, Verdict, decide
from monitoring.log.outcomes import Outcomes
from monitoring.measurements.performance import measure
from training.data.frame import build_frame, feature_columns, snapshot_rows
from training.data.snapshots import Snapshot, dates, matured, plan_snapshots
from training.evaluation.metrics import (
    Scored,
    Scores,
    all_metrics,
    best_constant,
    interval,
    resampled,
)
from training.evaluation.psi import SCORE, psi, with_nulls
from training.evaluation.reference import PREDICTED_CLASS, measure_spread, with_scores
from training.model.onnx_export import exported
from training.model.scoring import score
from training.stages.dataset import unlearnable
from training.stages.evaluate import measure_models
from training.stages.gate import apply_gates
from training.stages.train import choose, train_model, with_usable_folds

WEEK = timedelta(weeks=1)
FROZEN = "frozen"
POLICIES = (FROZEN, "monthly", "weekly", "drift", "outcomes")
CONSTANT = "constant"
SHOWN_METRICS = ["log_loss", "auc", "cost", "rmse", "mae", "r2"]
"""Metrics of the table, those that the task has."""
Finding = tuple[Verdict, list[str]]


@dataclass(frozen=True)
class TrainedModel:
    """What a training made, and the seconds of CPU that it took."""

    served: ModelFile
    threshold: float | None
    seconds: float


@dataclass
class Walk:
    """What a policy did.

    Attributes:
        policy: Its name.
        served: The model that served from each week on.
        trainings: Week, model in production then, and model that was trained.
        triggers: Weeks in which it asked for a training.

    """

    policy: str
    served: dict[datetime, datetime]
    trainings: list[tuple[datetime, datetime, datetime]] = field(default_factory=list)
    triggers: list[datetime] = field(default_factory=list)

    def serving(self, moment: datetime) -> datetime:
        """Return the model that serves at a moment, which is not before the first week."""
        return self.served[max(week for week in self.served if week <= moment)]


class History:
    """The history as training and monitoring would have seen it at each moment."""

    def __init__(self, settings: Settings, spec: ModelSpec, end: datetime) -> None:
        dataset = load_dataset(str(spec.dataset))
        source = dataset_labels(settings, dataset, spec.label_name)
        label = source.label
        table = raw_table(settings, dataset)
        rows = open_raw(ibis.duckdb.connect(), table)
        first_event = rows[dataset.event_time].min().to_pyarrow().as_py()
        wait = label.horizon + label.lateness
        self.settings = settings
        self.spec = spec.model_copy(update={"search": None})
        self.plan = partial(
            plan_snapshots, first_event, label=label, snapshots=spec.snapshots
        )
        self.snapshots = matured(spec.snapshots, first_event, end - wait)
        self.known_at = {
            snapshot.start: snapshot.last + wait for snapshot in self.snapshots
        }
        build = partial(
            build_frame, settings, self.spec, source, as_of=end, version=table.version
        )
        self.frame = build(self.snapshots)
        # Not as decorators: the models go with this object.
        self.model = cache(self._train)
        self.performance = cache(self._performance)
        start = self._first_training()
        weeks = range((end - start) // WEEK + 1)
        self.weeks = [start + number * WEEK for number in weeks]
        # A window is everybody at one moment, or the label's own rows of a week.
        span = WEEK if spec.snapshots.rows == "label" else timedelta()
        self.window = {week: Snapshot(week - span, week) for week in self.weeks}
        self.windows = build([*self.window.values()])

    def newest(self, moment: datetime) -> datetime:
        """Name the model that a training at a moment makes."""
        return self.plan(moment).test[-1].start

    def rows(self, *names: datetime) -> pa.Table:
        """Return the rows of snapshots with their labels."""
        return snapshot_rows(
            self.frame, [each for each in self.snapshots if each.start in names]
        )

    def tested(self, name: datetime) -> pa.Table:
        """Return the rows that a model is evaluated on."""
        return snapshot_rows(self.frame, self.plan(self.known_at[name]).test)

    def score(self, name: datetime, rows: pa.Table) -> Scored:
        model = self.model(name)
        inputs = feature_columns(self.spec, rows)
        return Scored(score(model.served, self.spec.inputs, inputs), model.threshold)

    def loss(self, name: datetime, snapshot: datetime) -> float:
        rows = self.rows(snapshot)
        labels = rows["label"].to_numpy()
        return all_metrics(labels, self.score(name, rows), None)[self.spec.loss]

    def passes_gates(self, challenger: datetime, champion: datetime) -> bool:
        rows = self.tested(challenger)
        evaluation = measure_models(
            spec=self.spec,
            y=rows["label"].to_numpy(),
            challenger=self.score(challenger, rows),
            champion=self.score(champion, rows),
            version=f"{champion:%Y-%m-%d}",
        )
        metrics = evaluation.figures | evaluation.challenger
        gates = [gate for gate in self.spec.gates if gate.metric in metrics]
        return all(outcome.passed for outcome in apply_gates(gates, evaluation))

    def drift(self, name: datetime, week: datetime) -> Finding:
        """Compare the week's window with what the model was evaluated on."""
        limits = self.spec.monitoring
        rows = snapshot_rows(self.windows, [self.window[week]])
        if rows.num_rows < limits.fewest:
            return "insufficient_data", []
        reference, spread = self._reference(name)
        window = self._compared(with_scores(self.spec, rows, self.score(name, rows)))
        findings = []
        for column in reference.columns.map(str):
            kind = "prediction_drift" if column == SCORE else "data_drift"
            distance = psi(reference[column], window[column])
            limit = max(limits.psi_significant, spread.get(column, 0.0))
            if distance >= limit and self._acts(column, kind, f"psi/{column}"):
                findings.append(f"{column}: PSI {distance:.2f}")
        return ("bad" if findings else "ok"), findings

    def outcomes(self, name: datetime, week: datetime) -> Finding:
        """Judge the newest snapshots that have matured since the model was trained."""
        newer = [
            snapshot
            for snapshot in self.snapshots
            if snapshot.start > name and self.known_at[snapshot.start] <= week
        ]
        return self.performance(name, tuple(newer[-self.spec.snapshots.test :]))

    def _performance(self, name: datetime, snapshots: tuple[Snapshot, ...]) -> Finding:
        rows = (
            snapshot_rows(self.frame, snapshots)
            if snapshots
            else self.frame.slice(0, 0)
        )
        y = rows["label"].to_numpy()
        if len(y) < self.spec.monitoring.fewest:
            return "insufficient_data", []
        scored = self.score(name, rows)
        outcomes = Outcomes("backfilled", dates(snapshots), rows, scored)
        tested = self.tested(name)
        evaluated = all_metrics(
            tested["label"].to_numpy(), self.score(name, tested), self.spec.costs
        )
        findings = []
        for metric in measure(self.spec, outcomes, evaluated):
            sign = 1 if metric.lower_is_better else -1
            if metric.limit is None or sign * metric.value <= sign * metric.limit:
                continue
            kinds = ("performance_drift", "concept_drift")
            if self._acts(metric.name, metric.metric, *kinds):
                findings.append(metric.words)
        return ("bad" if findings else "ok"), findings

    def _acts(self, *names: str) -> bool:
        return self.spec.monitoring.monitor_only.keys().isdisjoint(names)

    def _reference(self, name: datetime) -> tuple[pd.DataFrame, dict[str, float]]:
        rows = self.tested(name)
        scored = with_scores(self.spec, rows, self.score(name, rows))
        planned = self.plan(self.known_at[name]).snapshots
        spread = measure_spread(self.spec, scored, snapshot_rows(self.frame, planned))
        return self._compared(scored), spread.psi

    def _compared(self, rows: pa.Table) -> pd.DataFrame:
        """Return features but timestamps, which always move on, and scores."""
        kinds = self.spec.features.items()
        names = [name for name, kind in kinds if kind != "timestamp"]
        names += {SCORE, PREDICTED_CLASS}.intersection(rows.column_names)
        return with_nulls(rows.select(names).to_pandas())

    def _first_training(self) -> datetime:
        """Return the first moment at which a training succeeds."""
        for known_at in self.known_at.values():
            with suppress(TrainingError):
                self.model(self.newest(known_at))
                return known_at
        raise SystemExit(f"{self.spec.name}: the history is too short to train on")

    def _train(self, name: datetime) -> TrainedModel:
        spec = self.spec
        planned = self.plan(self.known_at[name])
        frame = snapshot_rows(self.frame, planned.snapshots)
        problems = unlearnable(
            spec,
            snapshot_rows(frame, planned.train),
            snapshot_rows(frame, planned.test),
        )
        if problems:
            raise TrainingError(f"{spec.name}: {'; '.join(problems)}")
        began = time.process_time()
        planned = with_usable_folds(frame, planned)
        chosen, _, _ = choose(Tracking(self.settings), spec, "", frame, planned)
        model, threshold, _ = train_model(spec, chosen, frame, planned)
        served = exported(model, spec)
        return TrainedModel(served, threshold, time.process_time() - began)


def walk(policy: str, history: History) -> Walk:
    """Follow a policy: all act at the same moments, a week apart."""
    limits = history.spec.monitoring
    first_week = history.weeks[0]
    model = history.newest(first_week)
    steps = Walk(policy, {first_week: model}, [(first_week, model, model)])
    verdicts: list[Verdict] = []
    for last_week, week in pairwise(history.weeks):
        wants_training = policy == "weekly"
        if policy == "monthly":
            wants_training = week.month != last_week.month
        if policy in ("drift", "outcomes"):
            look = history.drift if policy == "drift" else history.outcomes
            verdict, findings = look(model, week)
            verdicts.append(verdict)
            inputs = Inputs(
                as_of=week,
                version=f"{model:%Y-%m-%d}",
                verdicts=tuple(verdicts),
                findings=tuple(findings),
                harm=None,
                previous=None,
                last_retraining=steps.triggers[-1] if steps.triggers else None,
                last_promotion=None,
                cooldown=timedelta(hours=limits.cooldown_hours),
                windows=limits.windows,
                bad_windows=limits.bad_windows,
            )
            wants_training = decide(inputs).action == "retrain"
        newest = history.newest(week)
        is_new = newest not in {trained for _, _, trained in steps.trainings}
        if wants_training and (is_new or verdicts):
            steps.triggers.append(week)
        if wants_training and is_new:
            steps.trainings.append((week, model, newest))
            if history.passes_gates(newest, model):
                model = newest
                verdicts = []
                steps.served[week] = model
    return steps


def false_alarms(history: History, steps: Walk) -> str:
    """Count trainings that were no better on the next snapshot to mature, of those it judges."""
    better = []
    for week, champion, trained in steps.trainings[1:]:
        later = [name for name, known_at in history.known_at.items() if known_at > week]
        if later:
            loss = history.loss(trained, later[0])
            better.append(loss < history.loss(champion, later[0]))
    return f"{better.count(False)} of {len(better)}"


def backtest(history: History) -> pd.DataFrame:
    """Walk every policy; return a row of each, and one of the best constants."""
    spec = history.spec
    walks = [walk(policy, history) for policy in POLICIES]
    metrics: dict[str, list[dict[str, float]]] = defaultdict(list)
    losses: dict[str, list[Scores]] = defaultdict(list)
    for date in history.known_at:
        if date < history.weeks[0]:
            continue
        rows = history.rows(date)
        y = rows["label"].to_numpy()
        scored = {
            steps.policy: history.score(steps.serving(date), rows) for steps in walks
        }
        draws = resampled(y, scored, spec.costs, spec.seed)
        metrics[CONSTANT].append(best_constant(y, scored[FROZEN], spec.costs))
        for policy, model in scored.items():
            metrics[policy].append(all_metrics(y, model, spec.costs))
            losses[policy].append(draws[policy][spec.loss])
    table = pd.DataFrame(
        {name: pd.DataFrame(rows).mean() for name, rows in metrics.items()}
    ).T
    gaps = table[spec.loss] - table[spec.loss][FROZEN]
    table = table[table.columns.intersection(SHOWN_METRICS)]
    for steps in walks:
        policy = steps.policy
        models = [history.model(trained) for _, _, trained in steps.trainings]
        samples = np.mean(losses[policy], axis=0) - np.mean(losses[FROZEN], axis=0)
        gap = interval(gaps[policy], samples)
        table.loc[policy, "minus frozen (95 %)"] = (
            f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        )
        table.loc[policy, "trainings"] = len(models)
        table.loc[policy, "CPU s"] = sum(model.seconds for model in models)
        table.loc[policy, "first trigger"] = f"{min(steps.triggers, default=None)}"[:10]
        table.loc[policy, "false alarms"] = false_alarms(history, steps)
    return table


def main(model: str) -> None:
    """Print the table of a model."""
    spec = load_spec(model)
    with whole_history(load_settings(), spec, datetime.now(UTC)) as (settings, end):
        history = History(settings, spec, end)
        print(f"{model}, {history.weeks[0]:%Y-%m-%d} to {history.weeks[-1]:%Y-%m-%d}")
        print(backtest(history).round(4).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
