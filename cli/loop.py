"""`gyre ingest` and `gyre train`: one stage chain, in this process, without Airflow."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from cli.verbs import AsJson, AsOf, log_to_stderr, moment, say, who
from stack.settings import load_settings
from stack.spec import load_spec


def ingest(dataset: str = "orders", as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Bring a dataset up to date: pull, validate, merge, features, online values."""
    log_to_stderr()
    time = moment(as_of)
    from feature_repo.ingest import ingest as run  # noqa: PLC0415  (Feast takes 3 s to import)

    report = run(load_settings(), dataset, time)
    say(report.summary(), report.as_json(), as_json=as_json)


def train(
    model: str,
    as_of: AsOf = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; in run and ledger.")] = "by hand",
    *,
    force: Annotated[bool, typer.Option("--force", help="Also with nothing new to learn.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, gate, register and promote; or say why not.

    A refused challenger and nothing new to learn are expected outcomes: exit code 0.
    """
    log_to_stderr()
    spec, time = load_spec(model), moment(as_of)
    from training.chain import train as run  # noqa: PLC0415

    key = f"shell-{uuid.uuid4().hex[:12]}"
    report = run(load_settings(), spec, time, key=key, reason=reason, who=who(), force=force)
    say(f"{model}: {report.outcome}", report.as_json(), as_json=as_json)
