"""`gyre monitor`, `compare`, `decide`, `backtest`: how well a model does."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, astuple
from typing import Annotated

import typer

from cli.terminal import working
from cli.verbs import AsJson, AsOf, begin, moment, say
from core.errors import MonitoringError, StackError
from core.settings import Settings, load_settings
from core.spec import load_spec
from monitoring.checks.result import MonitorReport
from stack.airflow_api import AirflowApi

SINCE = "When the first model is trained; as early as can be if absent."


def monitor(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Monitor the version in production; alert, go back or start a retraining as decided."""
    settings, spec, time = begin(model, as_of)
    with working(settings, f"monitor {model}"):
        from monitoring.monitor import monitor as run  # noqa: PLC0415  (heavy)

        report = run(settings, spec, time)
    lines = list(_lines(report))
    if report.decision.action == "retrain":
        lines.append(_retrain(settings, report))
    say("\n".join(lines), report, as_json=as_json)


def compare(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Production against challenger by what came true: better, worse, or not yet known.

    Outcomes are those of raw data once its labels have matured, before that of feedback. Each
    entity counts once, for the version that answered it first while the challenger's newest percent
    below 100 stood.
    """
    settings, spec, time = begin(model, as_of)
    with working(settings, f"compare {model}"):
        from monitoring.experiment import read_report  # noqa: PLC0415  (heavy)

        report = read_report(settings, spec, time)
    document = asdict(report) | {"sentence": report.sentence}
    say("\n".join(report.lines()), document, as_json=as_json)


def decide(
    model: str,
    *,
    explain: Annotated[
        bool, typer.Option("--explain", help="Inputs, and the rule again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the last decision; with --explain what it depended on, decided once more."""
    settings, name = load_settings(), load_spec(model).name
    from mlflow_server.records import Records  # noqa: PLC0415
    from monitoring.decision import INPUTS  # noqa: PLC0415
    from monitoring.decision import decide as again  # noqa: PLC0415

    if not settings.home.exists():
        raise MonitoringError(f"{settings.home} holds no stack yet: make up")
    with closing(Records(settings)) as records:
        rows = records.decisions(name, 1)
    if not rows:
        raise MonitoringError(
            f"{name}: nothing was decided yet; run: gyre monitor {name}"
        )
    row = rows[0]
    now = again(INPUTS.validate_json(row.inputs))
    agrees = astuple(now) == (row.action, row.rule, row.reason)
    inputs = json.loads(row.inputs)
    head = f"{row.as_of:%Y-%m-%d %H:%M:%S}Z  {name} version {row.version}: {row.action}"
    lines = [head, f"rule: {row.rule}", f"reason: {row.reason}"]
    if explain:
        same = "decided again from these inputs: the same"
        other = (
            f"decided again by today's rules: {now.action} by {now.rule}: {now.reason}"
        )
        lines += ["inputs:", *(f"  {key}: {value}" for key, value in inputs.items())]
        lines.append(same if agrees else other)
    document = asdict(row) | {"inputs": inputs, "agrees": agrees}
    del document["counted"]  # as serving has it, for the next monitoring run
    say("\n".join(lines), document, as_json=as_json)


def backtest(
    model: str,
    since: Annotated[str | None, typer.Option(help=SINCE)] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Walk retraining policies through the real history: what each would have cost and gained.

    Nothing of the stack needs to run and nothing of it is changed; table, plot and JSON lie in
    GYRE_HOME/backtest/MODEL/ then. Of the shipped orders those that lie ahead are used too.
    """
    settings, spec, now = begin(model, None)
    start = None if since is None else moment(since, "--since")
    with working(settings, f"backtest {model}"):
        from monitoring.backtest import evaluation  # noqa: PLC0415  (heavy)

        report = evaluation.backtest(settings, spec, now, start)
        folder = evaluation.write(settings, report)
    say(f"{evaluation.summary(report)}\n{folder}/backtest.png", report, as_json=as_json)


def _lines(report: MonitorReport) -> Iterator[str]:
    yield report.summary()
    for why, count in sorted(report.left_out.items()):
        yield f"  left out: {count} {why}"
    for why, count in sorted(report.outcomes_left_out.items()):
        yield f"  left out: {count} outcomes {why}"
    if report.malformed:
        yield f"  left out: {report.malformed} malformed lines"
    for note in report.notes:
        yield f"  note: {note}"


def _retrain(settings: Settings, report: MonitorReport) -> str:
    """Start it in Airflow, as its own monitor does: the decision stands, and is not taken twice."""
    reason = report.retraining_reason()
    extra = {"as_of": report.as_of.isoformat(), "reason": reason, "cause": report.cause}
    try:
        with AirflowApi(settings) as airflow:
            airflow.emit(f"drift/{report.model}", report.cause, extra)
    except StackError as exc:
        command = f"gyre train {report.model} --reason {reason!r}"
        return f"  no retraining was started: {exc}; run: {command}"
    return f"  train_{report.model} starts in Airflow: {report.cause}"
