"""`rollout_<MODEL>`: one look at the version on its way into production, and one step of it.

Nothing is remembered but in the ledger: its rows say which version is in which role since when,
and the row of a step holds as evidence what the step before had seen, and serving's counters as
the new step begins. So whatever is killed is looked at again, and looking twice changes nothing.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from mlflow_server.alerts import alert
from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote, reconcile, release
from mlflow_server.records import Records
from mlflow_server.registry import CHALLENGER, PRODUCTION, SHADOW, Registry
from mlflow_server.roles import last_applied
from monitoring.collect import collect, predictions
from monitoring.failures import Counted, counts
from monitoring.rollout import Arm, Seen, Verdict, decide
from stack.errors import PromotionRefusedError
from stack.storage import one_writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from mlflow_server.ledger import LedgerRow
    from stack.settings import Settings
    from stack.spec import ModelSpec

WHO = "rollout"
"""Who, in the ledger: a challenger that anybody else put there is theirs to move."""
LONG = timedelta(days=1)
PERCENTILES = range(101)
SLOW = 0.95


@dataclass(frozen=True)
class Evidence:
    """What the step before had seen; by "role version" serving's counters as this one begins."""

    seen: Seen
    counted: dict[str, Counted]


EVIDENCE = TypeAdapter(Evidence)


@dataclass(frozen=True)
class Step:
    """A version on its way: its role, and the ledger rows that put it and production there."""

    role: str
    row: LedgerRow
    production: LedgerRow

    @property
    def version(self) -> str:
        return str(self.row.to_version)

    @property
    def began(self) -> datetime:
        return max(self.row.time, self.production.time)

    @property
    def percent(self) -> int:
        return self.row.percent if self.role == CHALLENGER else 0

    @property
    def place(self) -> str:
        return "as shadow" if self.role == SHADOW else f"at {self.percent} %"


@dataclass(frozen=True)
class RolloutReport:
    """One look. action: nothing, hold, advance, abort or done; version None: none on its way.

    done: also of a version that is in production and that no monitor has looked at.
    """

    model: str
    as_of: datetime
    version: str | None
    action: str
    summary: str
    seen: Seen | None = None


REPORTS = TypeAdapter(RolloutReport)


def look(settings: Settings, spec: ModelSpec, as_of: datetime) -> RolloutReport:
    """Judge the step at hand by what was seen up to `as_of`; go on, stop, or wait for more.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    if spec.rollout.policy == "direct":
        return _nothing(spec, as_of, "versions go into production at once: [rollout] is direct")
    registry = Registry(settings)
    with one_writer(settings.data / f"rollout_{spec.name}"), closing(Ledger(settings)) as ledger:
        rows = reconcile(registry, ledger, spec.name)
        step = under_way(rows)
        if step is None:
            report = _ended(settings, spec, rows, as_of)
        elif step.role == CHALLENGER and step.row.who != WHO:
            why = f"{step.row.who} put it there and moves it on, or ends it by gyre release"
            report = _report(spec, as_of, step, Verdict("hold", step.percent, why), None)
        else:
            report = _go_on(settings, spec, registry, ledger, step, rows, as_of)
            _tell_of_waiting(settings, spec, step, report)
        _tell(settings, ledger.rows(spec.name), as_of)
    return report


def under_way(rows: Sequence[LedgerRow]) -> Step | None:
    """Return the challenger, else the shadow; None without one. `rows` agree with MLflow."""
    production = last_applied(rows, PRODUCTION)
    for role in (CHALLENGER, SHADOW):
        row = last_applied(rows, role)
        if production and row and row.to_version is not None:
            return Step(role, row, production)
    return None


def _ended(
    settings: Settings, spec: ModelSpec, rows: Sequence[LedgerRow], as_of: datetime
) -> RolloutReport:
    """Nothing; or done again, until a monitor has looked: whoever was to tell it may be dead."""
    last, nothing = last_applied(rows, PRODUCTION), "no version is on its way into production"
    if last is None or last.who != WHO:
        return _nothing(spec, as_of, nothing)
    with closing(Records(settings)) as records:
        if any(row.version == last.to_version for row in records.decisions(spec.name)):
            return _nothing(spec, as_of, nothing)
    what = f"{spec.name} version {last.to_version} went into production"
    summary = f"{what} at {last.time:%Y-%m-%d %H:%M} UTC, and no monitor has looked at it yet"
    return RolloutReport(spec.name, as_of, last.to_version, "done", summary)


def _go_on(
    settings: Settings,
    spec: ModelSpec,
    registry: Registry,
    ledger: Ledger,
    step: Step,
    rows: Sequence[LedgerRow],
    as_of: datetime,
) -> RolloutReport:
    now = counts(settings, spec.name)
    if now is None:
        why = f"serving at {settings.serving_address} does not answer"
        return _report(spec, as_of, step, Verdict("hold", step.percent, why), None)
    collect(settings)
    since = pc.field("received") > step.began
    seen = measure(predictions(settings).read(where=since), rows, step, now, as_of)
    verdict = decide(spec.rollout, seen)
    report = _report(spec, as_of, step, verdict, seen)
    evidence = EVIDENCE.dump_json(Evidence(seen, now)).decode()
    try:
        _act(registry, ledger, spec.name, step, verdict, evidence)
    except PromotionRefusedError as exc:  # a person was quicker
        return _report(spec, as_of, step, Verdict("hold", step.percent, str(exc)), seen)
    return report


def measure(
    answered: pa.Table,
    rows: Sequence[LedgerRow],
    step: Step,
    now: Mapping[str, Counted],
    as_of: datetime,
) -> Seen:
    """What both versions did since the step began. answered: rows of `predictions`."""
    ours = (pc.field("model") == step.row.model) & pc.field("in_population")
    received = pc.field("received")
    since = answered.filter(ours & (received > step.began) & (received <= as_of))
    minutes = (as_of - step.began).total_seconds() / 60
    production, evidence = str(step.production.to_version), _evidence(step.row)
    return Seen(
        percent=step.percent,
        minutes=minutes,
        production=_arm(since, rows, now, PRODUCTION, production),
        challenger=_arm(since, rows, now, step.role, step.version),
        before=evidence.seen.production if evidence else None,
    )


def _arm(
    since: pa.Table,
    rows: Sequence[LedgerRow],
    now: Mapping[str, Counted],
    role: str,
    version: str,
) -> Arm:
    own = since.filter((pc.field("role") == role) & (pc.field("version") == version))
    scores = pc.coalesce(own["probability"], own["prediction"]).to_numpy()
    shape = np.percentile(scores, PERCENTILES, method="inverted_cdf") if len(scores) else []
    key = f"{role} {version}"
    before = _counted_before(rows, key)
    counted = now.get(key, Counted()).since(before or Counted())
    seconds, failed = counted.quantile(SLOW), counted.failed
    if before is None and role == PRODUCTION and counted.timed:
        # It has counted since long before this step: its share, of as many as the step has.
        failed = round(failed * own.num_rows / counted.timed)
    return Arm(own.num_rows, failed, seconds, tuple(float(each) for each in shape))


def _counted_before(rows: Sequence[LedgerRow], key: str) -> Counted | None:
    """Serving's counters when a row last took them down; None: no row did."""
    for row in reversed(rows):
        evidence = _evidence(row)
        if evidence and key in evidence.counted:
            return evidence.counted[key]
    return None


def _evidence(row: LedgerRow) -> Evidence | None:
    if row.who != WHO or row.evidence is None:
        return None
    try:
        return EVIDENCE.validate_json(row.evidence)
    except ValidationError:
        return None  # of another release's form


def _act(
    registry: Registry, ledger: Ledger, model: str, step: Step, verdict: Verdict, evidence: str
) -> None:
    """Carry the verdict out: one ledger row, or none."""
    why = f"{step.place}: {verdict.reason}"
    if verdict.action == "advance":
        promote(
            registry, ledger, model, step.version, who=WHO, why=why, evidence=evidence,
            replaces=step.version if step.role == CHALLENGER else None,
            role=CHALLENGER, percent=verdict.percent,
        )  # fmt: skip
    elif verdict.action == "done":
        promote(registry, ledger, model, step.version, who=WHO, why=why, evidence=evidence,
                replaces=step.production.to_version)  # fmt: skip
    elif verdict.action == "abort":
        release(registry, ledger, model, step.role, who=WHO, why=why, evidence=evidence,
                replaces=step.version)  # fmt: skip


def _tell(settings: Settings, rows: Sequence[LedgerRow], as_of: datetime) -> None:
    """Alert of the newest rollout that was stopped, unless it was told: once, also after a kill."""
    stopped = [row for row in rows if row.who == WHO and row.to_version is None]
    if not stopped:
        return
    row = stopped[-1]
    cause = f"rollout of version {row.from_version} stopped (ledger row {row.sequence})"
    _alert_once(settings, row.model, cause, f"{cause}: {row.why}", as_of)


def _tell_of_waiting(
    settings: Settings, spec: ModelSpec, step: Step, report: RolloutReport
) -> None:
    """Alert of a step that holds a day longer than it must: once a step."""
    longest = timedelta(minutes=spec.rollout.minutes) + LONG
    if report.action != "hold" or report.as_of - step.began < longest:
        return
    cause = f"rollout of version {step.version} holds (ledger row {step.row.sequence})"
    message = f"{report.summary}; since {step.began:%Y-%m-%d %H:%M} UTC"
    _alert_once(settings, spec.name, cause, message, report.as_of)


def _alert_once(settings: Settings, model: str, cause: str, message: str, as_of: datetime) -> None:
    with closing(Records(settings)) as records:
        told = {each["cause"] for each in records.alerts(model) if each["delivered"]}
        if cause not in told:
            alert(settings, records, model, cause, message, as_of)


def _nothing(spec: ModelSpec, as_of: datetime, why: str) -> RolloutReport:
    return RolloutReport(spec.name, as_of, None, "nothing", f"{spec.name}: {why}")


def _report(
    spec: ModelSpec, as_of: datetime, step: Step, verdict: Verdict, seen: Seen | None
) -> RolloutReport:
    does = {
        "hold": "holds",
        "advance": f"goes on to {verdict.percent} %",
        "abort": "is stopped",
        "done": "goes into production",
    }
    what = f"{spec.name} version {step.version} {step.place}"
    summary = f"{what} {does[verdict.action]}: {verdict.reason}"
    return RolloutReport(spec.name, as_of, step.version, verdict.action, summary, seen)
