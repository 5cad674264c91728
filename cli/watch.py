"""`gyre monitor`, `compare`, `decide`: how well a model does."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic_core import to_json

from cli.terminal import progress
from cli.verbs import AsJson, AsOf, begin, say, signal
from core.errors import MonitoringError
from core.settings import load_settings
from core.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitoring.conclude import MonitorReport
    from monitoring.trials.experiment import ExperimentReport


def monitor(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Monitor the version in production; alert, go back or start a retraining as decided."""
    settings, spec, time = begin(model, as_of)
    with progress(f"monitor {model}"):
        from monitoring.monitor import monitor as run  # noqa: PLC0415  (heavy)

        report = run(settings, spec, time)
    say("\n".join(report_lines(report)), report, as_json=as_json)
    if report.decision.action == "retrain":
        signal(settings, f"drift/{model}")


def compare(
    model: str,
    versions: Annotated[tuple[str, str] | None, typer.Argument()] = None,
    as_of: AsOf = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare challenger and production on known outcomes: better, worse, or not yet known.

    Outcomes come from feedback, and from raw data once its labels have matured. The command
    reads the newest period in which the challenger's percent was below 100 and did not change.
    Each entity counts once, for the version that answered it first in that period.

    With two VERSIONS it shows both side by side: metrics on the test rows of each version,
    parameters, mean absolute contributions of features, and gates.
    """
    settings, spec, time = begin(model, as_of)
    if versions:
        from mlflow_server.api.comparison import compare_versions  # noqa: PLC0415

        rows = compare_versions(settings, spec.name, *versions)
        say(rows, rows, as_json=as_json)
        return
    with progress(f"compare {model}"):
        from monitoring.trials.experiment import read_report  # noqa: PLC0415  (heavy)

        report = read_report(settings, spec, time)
    document = asdict(report) | {"sentence": report.sentence}
    say("\n".join(experiment_lines(report)), document, as_json=as_json)


def decide(
    model: str,
    *,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain", help="Show its inputs, and decide again by today's rules."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the last decision; with --explain its inputs, and the decision by today's rules."""
    settings = load_settings()
    name = load_spec(model).name
    from monitoring.decisions import decision, store  # noqa: PLC0415

    if not settings.home.exists():
        raise MonitoringError(f"{settings.home} holds no stack yet: gyre up")
    rows = store.newest_decisions(settings, name, 1)
    if not rows:
        raise MonitoringError(
            f"{name}: nothing was decided yet; run: gyre monitor {name}"
        )
    row = rows[0]
    inputs = decision.INPUTS.validate_json(row.inputs)
    again = decision.decide(inputs)
    agrees = astuple(again) == (row.action, row.rule, row.reason)
    lines = [
        f"{row.as_of:%Y-%m-%d %H:%M:%S}Z  {name} version {row.version}: {row.action}",
        f"verdict: {row.words}",
        f"rule: {row.rule}",
        f"reason: {row.reason}",
    ]
    if explain:
        comparison = f"by today's rules: {again.action} by {again.rule}: {again.reason}"
        if agrees:
            comparison = "from these inputs: the same"
        lines += [
            f"decided on: {to_json(inputs, indent=2).decode()}",
            f"decided again {comparison}",
        ]
    document = asdict(row) | {"inputs": json.loads(row.inputs), "agrees": agrees}
    del document["serving"]  # for the next monitoring run
    say("\n".join(lines), document, as_json=as_json)


def experiment_lines(report: ExperimentReport) -> Iterator[str]:
    yield report.sentence
    experiment = report.experiment
    end = f"to {experiment.end:%Y-%m-%d %H:%M} UTC" if experiment.end else "until now"
    yield (
        f"  {experiment.start:%Y-%m-%d %H:%M} UTC {end}, {experiment.percent} % to the challenger; "
        "entities of the population with a known outcome, each by its first answer"
    )
    versions = {
        "production": experiment.production,
        "challenger": experiment.challenger,
    }
    for role, version in versions.items():
        means = "".join(
            f", {name} {value:.4f}" for name, value in report.means[role].items()
        )
        yield (
            f"  {role:<10}  version {version}, {report.outcomes[role]:,} outcomes{means}"
        )
    for name, effect in report.effects.items():
        yield (
            f"  difference  {name} {effect.difference:+.4f} "
            f"(95 %: {effect.low:+.4f} to {effect.high:+.4f})"
        )
    if report.harm:
        yield f"  harm        {report.harm}"


def report_lines(report: MonitorReport) -> Iterator[str]:
    """Yield the results of a monitoring run and its decision, a line each."""
    yield report.summary()
    for result in report.results:
        if result.status == "ok":
            continue
        passive = "" if result.acts else f" (monitor only: {result.reason})"
        yield f"  {result.status}: {result.words}{passive}"
    for why, count in sorted(report.left_out.items()):
        yield f"  left out: {count} {why}"
    for why, count in sorted(report.outcomes_left_out.items()):
        yield f"  left out: {count} outcomes {why}"
    if report.malformed:
        yield f"  left out: {report.malformed} malformed lines"
