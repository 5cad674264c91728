"""Between registering and promoting, where the spec asks for it: a person decides.

Until then the version stays in stage Staging, and its run has ended: what is waited for is no
learning, so nothing new is learnt meanwhile and no retraining is missed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_server.tracking import Tracking
from training.card import CARD
from training.gate import load_evaluation

if TYPE_CHECKING:
    from stack.settings import Settings
    from stack.spec import ModelSpec
    from training.gate import Evaluation


@dataclass(frozen=True)
class Question:
    """What a person is asked; `body` is Markdown."""

    subject: str
    body: str


def ask(settings: Settings, spec: ModelSpec, run_id: str, version: str) -> Question:
    """Leave word in the run that the version waits; return what to ask in Airflow."""
    tracking = Tracking(settings)
    evaluation, tags = load_evaluation(tracking, run_id), tracking.run(run_id).tags
    _end(tracking, run_id, f"version {version} is registered and waits for approval")
    champion = evaluation.champion_version
    place = f"in place of version {champion}" if champion else "as the first one"
    lines = [
        f"Trained as of {tags['as_of']}; it passed every gate. The reason given:",
        f"    {' '.join(tags['reason'].split())}",  # as code: it is anybody's, and no Markdown
        f"[Model card]({tracking.page(run_id, CARD)})",
        _table(evaluation, version),
    ]
    subject = f"Put version {version} of {spec.name} into production, {place}?"
    if champion and spec.rollout.policy == "canary":
        subject = f"Begin the rollout of version {version} of {spec.name} beside {champion}?"
    return Question(subject, "\n\n".join(lines))


def wait_in_shell(settings: Settings, spec: ModelSpec, run_id: str, version: str) -> str:
    """Leave word as `ask` does; return one line on how to approve where there is no Airflow."""
    tracking = Tracking(settings)
    champion = load_evaluation(tracking, run_id).champion_version
    canary = champion and spec.rollout.policy == "canary"
    where = "--role shadow" if canary else f"--replaces {champion or 'none'}"
    outcome = (
        f"version {version} is registered and waits for approval: gyre promote {spec.name} "
        f"{version} {where} --reason … (what train_{spec.name} trains is approved in Airflow)"
    )
    _end(tracking, run_id, outcome)
    return outcome


def not_approved(settings: Settings, run_id: str, version: str, why: str) -> str:
    """Leave word in the run that the version stays as it is; return the outcome."""
    outcome = f"not approved: version {version}: {why}"
    _end(Tracking(settings), run_id, outcome)
    return outcome


def _end(tracking: Tracking, run_id: str, outcome: str) -> None:
    tracking.log(run_id, tags={"outcome": outcome})
    tracking.finish(run_id, "FINISHED")


def _table(evaluation: Evaluation, version: str) -> str:
    """Metrics beside those of the best constant and, if there is one, of the champion."""
    champion = evaluation.champion_version
    heads = ["metric", f"version {version}", "trivial"]
    columns = [evaluation.challenger, evaluation.trivial]
    if evaluation.champion:
        heads, columns = [*heads, f"champion, version {champion}"], [*columns, evaluation.champion]
    rows = [heads, ["---"] * len(heads)]
    for name in evaluation.intervals:
        cells = [f"{column[name]:.4f}" if name in column else "" for column in columns]
        rows.append([name, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
