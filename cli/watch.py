"""`gyre monitor`, `decide`, `rollout`, `compare`: what is seen of a model, and what follows."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from cli.verbs import AsJson, AsOf, log_to_stderr, moment, say
from stack.airflow_api import AirflowApi
from stack.errors import MonitoringError, StackError
from stack.settings import load_settings
from stack.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from monitoring.report import MonitorReport
    from stack.settings import Settings


def monitor(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """Look at the version in production; alert, go back or start a retraining as decided."""
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from monitoring.monitor import monitor as look  # noqa: PLC0415  (heavy)
    from monitoring.report import REPORTS  # noqa: PLC0415

    report = look(settings, spec, time)
    lines = list(_lines(report))
    if report.decision.action == "retrain":
        lines.append(_retrain(settings, report))
    say("\n".join(lines), REPORTS.dump_python(report, mode="json"), as_json=as_json)


def rollout(model: str, as_of: AsOf = None, *, as_json: AsJson = False) -> None:
    """One look at the version on its way into production: go on, stop it, or wait for more.

    The same as a run of rollout_MODEL in Airflow; steps and limits are the spec's [rollout].
    """
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from monitoring.canary import REPORTS, look  # noqa: PLC0415  (heavy)

    report = look(settings, spec, time)
    say(report.summary, REPORTS.dump_python(report, mode="json"), as_json=as_json)


def compare(
    model: str,
    challenger: Annotated[
        str | None,
        typer.Option("--challenger", help="Its version; the newest with outcomes if absent."),
    ] = None,
    as_of: AsOf = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Production against challenger by what came true: better, worse, or not yet known.

    Outcomes are those of raw data once its labels have matured, before that of feedback. Each
    entity counts once, for the version that answered it first while both were answering.
    """
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from monitoring.readout import READ_OUTS, read_out  # noqa: PLC0415  (heavy)

    found = read_out(settings, spec, time, challenger)
    document = READ_OUTS.dump_python(found, mode="json") | {"sentence": found.sentence}
    say("\n".join(found.lines()), document, as_json=as_json)


def decide(
    model: str,
    *,
    explain: Annotated[bool, typer.Option("--explain", help="Inputs, and the rule again.")] = False,
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
        raise MonitoringError(f"{name}: nothing was decided yet; run: gyre monitor {name}")
    row, inputs = rows[0], INPUTS.validate_json(rows[0].inputs)
    now = again(inputs)
    agrees = (now.action, now.rule, now.reason) == (row.action, row.rule, row.reason)
    found = INPUTS.dump_python(inputs, mode="json")
    head = f"{row.as_of:%Y-%m-%d %H:%M:%S}Z  {name} version {row.version}: {row.action}"
    lines = [head, f"rule: {row.rule}", f"reason: {row.reason}"]
    if explain:
        lines += ["inputs:", *(f"  {key}: {value}" for key, value in found.items())]
        lines.append(
            "decided again from these inputs: the same"
            if agrees
            else f"decided again by today's rules: {now.action} by {now.rule}: {now.reason}"
        )
    document = {
        "model": name, "version": row.version, "as_of": row.as_of.isoformat(),
        "verdict": row.verdict, "action": row.action, "rule": row.rule, "reason": row.reason,
        "cause": row.cause, "inputs": found, "figures": row.figures, "agrees": agrees,
    }  # fmt: skip
    say("\n".join(lines), document, as_json=as_json)


def backtest(
    model: str,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", help="When the first model is trained; as early as can be if absent."
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Walk retraining policies through the real history: what each would have cost and gained.

    Nothing of the stack needs to run and nothing of it is changed; table, plot and JSON lie in
    GYRE_HOME/backtest/MODEL/ then. Of the shipped orders those that lie ahead are used too.
    """
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(None)
    start = None if since is None else moment(since, "--since")
    from monitoring.backtest import backtest as walk  # noqa: PLC0415  (heavy)
    from monitoring.backtest_report import BACKTESTS, summary, write  # noqa: PLC0415

    report = walk(settings, spec, time, start)
    folder = write(settings, report)
    document = json.loads(BACKTESTS.dump_json(report))
    say(f"{summary(report)}\n{folder}/backtest.png", document, as_json=as_json)


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
    """Tell Airflow, as its own monitor does: the decision stands, and is not taken twice."""
    extra = {"as_of": report.as_of.isoformat(), "reason": report.retraining_reason()}
    try:
        with AirflowApi(settings) as airflow:
            airflow.emit(f"drift/{report.model}", report.cause, extra | {"cause": report.cause})
    except StackError as exc:
        command = f"gyre train {report.model} --reason {report.retraining_reason()!r}"
        return f"  no retraining was started: {exc}; run: {command}"
    return f"  train_{report.model} starts in Airflow: {report.cause}"
