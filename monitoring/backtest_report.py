"""A backtest as lines, a table and a plot; JSON is the thing itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from monitoring.backtest import Backtest

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from matplotlib.axes import Axes

    from monitoring.backtest import Result
    from stack.settings import Settings

BACKTESTS = TypeAdapter(Backtest)
WIDTHS = (9, 7, 5, 3, 1)
"""Of the policies' lines in order: several often serve the same model, and lie on each other."""
MONTH = "%b %y"


def write(settings: Settings, report: Backtest) -> Path:
    """Write `backtest.json`, `.md` and `.png`, each in one step; return their folder."""
    folder = settings.home / "backtest" / report.model
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{os.getpid()}.part"
    part.write_bytes(BACKTESTS.dump_json(report, indent=1))
    part.replace(folder / "backtest.json")
    part.write_text(f"{table(report)}\n")
    part.replace(folder / "backtest.md")
    figure(report).savefig(part, format="png", dpi=100)
    part.replace(folder / "backtest.png")
    return folder


def summary(report: Backtest) -> str:
    """Say what was walked, then the table."""
    first = f"the first model, of {report.start:%Y-%m-%d}, "
    if report.decay is None:
        aged = f"{first}is in no month surely worse than one trained that month"
    else:
        gap = report.behind[report.decay]
        aged = (
            f"{first}is surely worse than one trained that month from {report.decay:%Y-%m-%d} on: "
            f"{_name(report.loss)} {gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        )
    return (
        f"{report.model}: {report.start:%Y-%m-%d} to {report.end:%Y-%m-%d}, "
        f"{sum(report.rows.values()):,} outcomes of {len(report.rows)} months, "
        f"{len(report.models)} different models, {report.seconds:.0f} s\n{aged}\n\n{table(report)}"
    )


def table(report: Backtest) -> str:
    """One line per policy, in Markdown; in the head what the best constant reaches."""
    names = report.results[0].metrics
    constant = {n: np.mean([report.constant[m][n] for m in report.rows]) for n in names}
    head = ["policy", "trainings", "seconds", *(f"{_name(n)} ({constant[n]:.3f})" for n in names),
            "minus frozen (95 %)", "saved", "first trigger", "false alarms"]  # fmt: skip
    lines = [head, ["---"] * len(head), *(_row(result) for result in report.results)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(result: Result) -> list[str]:
    gap, days, told = result.minus_frozen, result.trigger_days, result.alarms
    unknown = f", {told.unknown} unknown" if told.unknown else ""
    return [
        result.policy, f"{result.trainings}", f"{result.seconds:.0f}",
        *(f"{value:.4f}" for value in result.metrics.values()),
        f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})",
        "" if result.saved is None else f"{result.saved:.0f}",
        "never" if days is None else f"{days:+.0f} days", f"{told.false} of {told.raised}{unknown}",
    ]  # fmt: skip


def figure(report: Backtest) -> Figure:
    """Loss by month and against the cost of training; below, every model on every month."""
    made = Figure(figsize=(12, 8.5), layout="constrained")
    axes: dict[str, Axes] = made.subplot_mosaic([["month", "cost"], ["every", "every"]])
    made.suptitle(
        f"{report.model}: retraining from {report.start:%Y-%m-%d} to {report.end:%Y-%m-%d}, "
        f"{sum(report.rows.values()):,} outcomes of {len(report.rows)} months"
    )
    _by_month(axes["month"], report)
    _by_cost(axes["cost"], report)
    _every(axes["every"], report)
    return made


def _by_month(axes: Axes, report: Backtest) -> None:
    months = list(report.rows)
    for result, width in zip(report.results, WIDTHS, strict=True):
        values = [_above_constant(report, result.serves[month], month) for month in months]
        axes.plot(range(len(months)), values, linewidth=width, label=result.policy)
    axes.set_xticks(range(len(months)), [f"{month:{MONTH}}" for month in months])
    axes.set(title="by month", ylabel=f"{_name(report.loss)} minus best constant")
    axes.axhline(0, color="grey", linewidth=1)
    axes.legend(fontsize=9)


def _by_cost(axes: Axes, report: Backtest) -> None:
    for number, result in enumerate(report.results):
        gap = result.minus_frozen
        ends = [[gap.value - gap.low], [gap.high - gap.value]]
        axes.errorbar(result.seconds, gap.value, yerr=ends, fmt="o", capsize=3)
        end, side = (gap.high, 4) if number % 2 else (gap.low, -12)
        axes.annotate(f"{result.policy} ({result.trainings})", (result.seconds, end), fontsize=9,
                      xytext=(0, side), textcoords="offset points", ha="center")  # fmt: skip
    axes.axhline(0, color="grey", linewidth=1)
    axes.margins(0.15, 0.15)
    axes.set(title="against training cost", xlabel="seconds of training (trainings in brackets)",
             ylabel=f"mean {_name(report.loss)} minus frozen, 95 %")  # fmt: skip


def _every(axes: Axes, report: Backtest) -> None:
    names, months = list(report.matrix), list(report.constant)
    values = np.array([[_above_constant(report, n, m) for m in months] for n in names])
    known = np.array([[month <= name for month in months] for name in names])
    limit = np.abs(values[~known]).max()
    shown = np.where(known, 0.2, 0.8)
    axes.imshow(values, "RdYlGn_r", vmin=-limit, vmax=limit, aspect="auto", alpha=shown)
    for (row, column), value in np.ndenumerate(values):
        color = "grey" if known[row, column] else "black"
        axes.text(column, row, f"{value:+.3f}", color=color, fontsize=8, ha="center", va="center")
    axes.set_xticks(range(len(months)), [f"{month:{MONTH}}" for month in months])
    axes.set_yticks(range(len(names)), [f"{name:{MONTH}}" for name in names])
    what = f"{_name(report.loss)} minus best constant (pale: labels known when it was made)"
    axes.set(title=f"every model on every month: {what}", ylabel="model, by its newest labels")


def _above_constant(report: Backtest, name: datetime, month: datetime) -> float:
    return report.matrix[name][month][report.loss] - report.constant[month][report.loss]


def _name(metric: str) -> str:
    return metric.replace("_", " ")
