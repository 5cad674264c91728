"""`gyre train`, `reproduce`, `score`: make a version, make it again, have it say of everybody."""

from __future__ import annotations

import uuid
from pathlib import Path  # noqa: TC003  (typer reads the annotations)
from typing import Annotated

import typer

from cli.verbs import AsJson, AsOf, log_to_stderr, moment, say, who
from stack.settings import load_settings
from stack.spec import load_spec, searching


def train(
    model: str,
    as_of: AsOf = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; in run and ledger.")] = "by hand",
    *,
    search: Annotated[
        int | None,
        typer.Option(
            "--search",
            min=1,
            metavar="N",
            help="Try N sets of parameters out of the spec's spaces.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also with nothing new to learn.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, gate, register and promote; or say why not.

    A refused challenger and nothing new to learn are expected outcomes: exit code 0.
    """
    log_to_stderr()
    spec, time = load_spec(model), moment(as_of)
    from training.chain import train as run  # noqa: PLC0415  (heavy)

    if search is not None:
        spec = searching(spec, search)
    key = f"shell-{uuid.uuid4().hex[:12]}"
    report = run(load_settings(), spec, time, key=key, reason=reason, who=who(), force=force)
    say(f"{model}: {report.outcome}", report.as_json(), as_json=as_json)


def reproduce(
    model: str,
    version: str,
    folder: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Empty; the rebuilt files stay there. A temporary one if absent."
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Build a version again elsewhere from its lineage; exit code 1 unless all is the same.

    The spec is the version's own; a raw table, lock file, code or spec that changed is named.
    """
    log_to_stderr()
    from training.reproduce import reproduce as build_again  # noqa: PLC0415  (heavy)

    report = build_again(load_settings(), model, version, folder)
    say(report.summary(), report.as_json(), as_json=as_json)
    raise typer.Exit(0 if report.reproduced else 1)


def score(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Score the label's whole population with the version in production; again is the same.

    A partition of GYRE_HOME/data/scores, a Delta table; score_MODEL does it nightly in Airflow.
    """
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from training.batch import score_population  # noqa: PLC0415  (heavy)

    report = score_population(settings, spec, time)
    say(report.summary(), report.as_json(), as_json=as_json)
