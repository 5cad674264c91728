"""`rollout_<MODEL>`: judge the version on its way into production, and take one step of it.

The ledger is the only state: its rows say since when a version is in which role, and what the step
before had measured. So a run that was killed is repeated, and a second one changes nothing.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from math import sqrt
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter
from scipy.stats import ks_2samp

from core.errors import PromotionRefusedError
from core.locks import one_writer
from core.monitoring_spec import Rollout
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.alerts import alert
from mlflow_server.ledger import Ledger, LedgerRow
from mlflow_server.promotion import promote, reconcile, release
from mlflow_server.records import Records
from mlflow_server.registry import CHALLENGER, PRODUCTION, SHADOW, Registry
from mlflow_server.roles import last_applied
from monitoring.collect import collect, predictions
from monitoring.serving_status import Counters, counts, did

Action = Literal["hold", "advance", "abort", "done"]
WHO = "rollout"
"""Who, in the ledger: a challenger that anybody else put there is theirs to move."""
DOES = {"hold": "holds", "advance": "goes on to {} %", "abort": "is stopped"}
DOES |= {"done": "goes into production"}
WHOLE, SLOW = 100, 0.95
JITTER = 0.005
"""Seconds that do not count as slower, whatever the ratio."""
SURELY = 1.63
"""Of the two-sample Kolmogorov-Smirnov distance at 1 % (Smirnov 1948, Ann. Math. Statist. 19)."""


@dataclass(frozen=True)
class Variant:
    """What one version did since the step began, for the label's population.

    seconds: 95th percentile, None if unknown. scores: their percentiles 0 to 100, or empty.
    """

    answered: int
    failed: int
    seconds: float | None
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict depends on, beside the spec's [rollout]; stored with the step it led to.

    percent: the challenger's; 0: it is a shadow. before: production in the step before, which
    stands for it where the challenger answers everybody. counted: serving's counters by
    "role version", from which the next step counts.
    """

    percent: int
    minutes: float
    production: Variant
    challenger: Variant
    before: Variant | None = None
    counted: Counters = field(default_factory=dict)


EVIDENCE = TypeAdapter(Evidence)


@dataclass(frozen=True)
class Verdict:
    """What to do, and why in words; percent: what the challenger answers from then on."""

    action: Action
    percent: int
    reason: str


@dataclass(frozen=True)
class RolloutReport:
    """One run. action: that of the verdict, or nothing; version None: none is on its way."""

    model: str
    as_of: datetime
    version: str | None
    action: str
    summary: str
    evidence: Evidence | None = None


def decide(policy: Rollout, evidence: Evidence) -> Verdict:
    """Abort what does harm; hold while too little is known; else advance to the next step."""
    ours, theirs = evidence.challenger, evidence.production
    if evidence.percent == WHOLE and evidence.before:
        theirs = evidence.before
    if why := _wrong(policy, ours, theirs):
        return Verdict("abort", 0, why)
    hold = partial(Verdict, "hold", evidence.percent)
    for name, variant in (("it", ours), ("production", theirs)):
        if variant.answered < policy.requests:
            return hold(
                f"{name} has answered {variant.answered} of {policy.requests} requests"
            )
        if variant.seconds is None:
            return hold(f"nothing is known of how long {name} takes")
    if evidence.minutes < policy.minutes:
        return hold(f"{evidence.minutes:.0f} of {policy.minutes:g} minutes have passed")
    if (apart := distance(ours, theirs)) > policy.scores:
        why = f"scores {apart:.2f} from production's, {policy.scores:g} is allowed"
        return hold(f"{why}: too few to say")
    reason = (
        f"{ours.answered} answered beside {theirs.answered}, {ours.failed} failed beside "
        f"{theirs.failed}, 95 % within {_ms(ours.seconds)} beside {_ms(theirs.seconds)}, "
        f"scores {apart:.2f} apart"
    )
    following = next((step for step in policy.steps if step > evidence.percent), None)
    return (
        Verdict("advance", following, reason)
        if following
        else Verdict("done", WHOLE, reason)
    )


def _wrong(policy: Rollout, ours: Variant, theirs: Variant) -> str | None:
    """Say what rules the version out. Failures do as soon as no further request can mend them."""
    asked, beside = (
        max(each.answered + each.failed, policy.requests) for each in (ours, theirs)
    )
    allowed = theirs.failed / beside + policy.errors
    if ours.failed > allowed * asked:
        failed = f"{ours.failed} of {ours.answered + ours.failed} predictions failed"
        return f"{failed}, at most {allowed:.1%} is allowed"
    if min(ours.answered, theirs.answered) < policy.requests:
        return None
    if ours.seconds and theirs.seconds:
        most = max(policy.latency * theirs.seconds, theirs.seconds + JITTER)
        if ours.seconds > most:
            return f"95 % of predictions within {_ms(ours.seconds)}, at most {_ms(most)} is allowed"
    if ours.scores[0] == ours.scores[-1] != theirs.scores[-1]:
        return f"every one of {ours.answered} scores is {ours.scores[0]:.6g}"
    apart, noise = (
        distance(ours, theirs),
        SURELY * sqrt(1 / ours.answered + 1 / theirs.answered),
    )
    if apart - noise > policy.scores:
        return f"its scores are {apart:.2f} from production's, {policy.scores:g} is allowed"
    return None


def distance(one: Variant, other: Variant) -> float:
    """Largest difference between the shares of both below any one score, to a hundredth."""
    return float(ks_2samp(one.scores, other.scores, method="asymp").statistic)


def _ms(seconds: float | None) -> str:
    return f"{(seconds or 0) * 1000:.1f} ms"


@dataclass(frozen=True)
class Step:
    """A version on its way. row: of the ledger, that put it there; production: the version."""

    row: LedgerRow
    version: str
    percent: int
    place: str
    production: str
    began: datetime


def under_way(rows: Sequence[LedgerRow]) -> Step | None:
    """Return the challenger, else the shadow; None without one. `rows` agree with MLflow."""
    production = last_applied(rows, PRODUCTION)
    for role in (CHALLENGER, SHADOW):
        row = last_applied(rows, role)
        if production and row and row.to_version is not None:
            percent = row.percent if role == CHALLENGER else 0
            place = f"at {percent} %" if percent else "as shadow"
            began, beside = max(row.time, production.time), str(production.to_version)
            return Step(row, row.to_version, percent, place, beside, began)
    return None


def roll_out(settings: Settings, spec: ModelSpec, as_of: datetime) -> RolloutReport:
    """Judge the step at hand by what was logged up to `as_of`; go on, stop, or wait for more.

    Raises:
        RegistryError, DataError: a store that it needs does not answer.

    """
    if spec.rollout.policy == "direct":
        why = f"{spec.name}: versions go into production at once: [rollout] is direct"
        return RolloutReport(spec.name, as_of, None, "nothing", why)
    registry = Registry(settings)
    with (
        one_writer(settings, f"rollout_{spec.name}"),
        closing(Ledger(settings)) as ledger,
        closing(Records(settings)) as records,
    ):
        rows = reconcile(registry, ledger, spec.name)
        step = under_way(rows)
        if step:
            verdict, evidence = _judge(settings, spec, step, rows, as_of)
            try:
                if evidence:
                    _take(registry, ledger, step, verdict, evidence)
            except PromotionRefusedError as exc:  # a person was quicker
                verdict = Verdict("hold", step.percent, str(exc))
            does = DOES[verdict.action].format(verdict.percent)
            why = f"{spec.name} version {step.version} {step.place} {does}: {verdict.reason}"
            report = RolloutReport(
                spec.name, as_of, step.version, verdict.action, why, evidence
            )
        else:
            why = f"{spec.name}: no version is on its way into production"
            report = RolloutReport(spec.name, as_of, None, "nothing", why)
        _alert(settings, records, ledger.rows(spec.name), as_of)
    return report


def _judge(
    settings: Settings,
    spec: ModelSpec,
    step: Step,
    rows: Sequence[LedgerRow],
    as_of: datetime,
) -> tuple[Verdict, Evidence | None]:
    row, model = step.row, spec.name
    if row.role == CHALLENGER and row.who != WHO:
        why = f"{row.who} put it there and moves it on, or ends it by gyre release"
        return Verdict("hold", step.percent, why), None
    now = counts(settings, model)
    if now is None:
        why = f"serving at {' and '.join(settings.serving_addresses)} does not answer"
        return Verdict("hold", step.percent, why), None
    collect(settings)
    since = (pc.field("received") > step.began) & (pc.field("received") <= as_of)
    counts_in = (pc.field("model") == model) & pc.field("in_population")
    answered = predictions(settings).read(where=since & counts_in)
    stored = [each.evidence for each in rows if each.who == WHO and each.evidence]
    earlier = EVIDENCE.validate_json(stored[-1]).counted if stored else {}
    before = row.evidence if row.role == CHALLENGER else None
    evidence = Evidence(
        percent=step.percent,
        minutes=(as_of - step.began) / timedelta(minutes=1),
        production=_measure(answered, PRODUCTION, step.production, now, earlier),
        challenger=_measure(answered, row.role, step.version, now, earlier),
        before=EVIDENCE.validate_json(before).production if before else None,
        counted=now,
    )
    return decide(spec.rollout, evidence), evidence


def _measure(
    answered: pa.Table,
    role: str,
    version: str,
    now: Counters,
    earlier: Counters,
) -> Variant:
    """earlier: serving's counters when a row of the ledger last took them down."""
    own = answered.filter((pc.field("role") == role) & (pc.field("version") == version))
    scores = pc.coalesce(own["probability"], own["prediction"]).to_numpy()
    shape = (
        np.percentile(scores, range(101), method="inverted_cdf") if len(scores) else []
    )
    key = f"{role} {version}"
    counted = did(key, now, earlier)
    failed = counted.failed
    if key not in earlier and role == PRODUCTION and counted.timed:
        # It has counted since long before this step: its share, of as many as the step has.
        failed = round(failed * own.num_rows / counted.timed)
    return Variant(
        own.num_rows, failed, counted.quantile(SLOW), tuple(map(float, shape))
    )


def _take(
    registry: Registry, ledger: Ledger, step: Step, verdict: Verdict, evidence: Evidence
) -> None:
    """Carry the verdict out: one ledger row, or none."""
    model, version = step.row.model, step.version
    change: dict[str, Any] = {
        "who": WHO,
        "why": f"{step.place}: {verdict.reason}",
        "evidence": EVIDENCE.dump_json(evidence).decode(),
    }
    if verdict.action == "advance":
        replaces = version if step.row.role == CHALLENGER else None
        change |= {"role": CHALLENGER, "percent": verdict.percent, "replaces": replaces}
        promote(registry, ledger, model, version, **change)
    elif verdict.action == "done":
        promote(registry, ledger, model, version, **change, replaces=step.production)
    elif verdict.action == "abort":
        release(registry, ledger, model, step.row.role, **change, replaces=version)


def _alert(
    settings: Settings, records: Records, rows: Sequence[LedgerRow], as_of: datetime
) -> None:
    """Alert once of the newest rollout that was stopped; also after a kill before the alert."""
    for row in [row for row in rows if row.who == WHO and row.to_version is None][-1:]:
        incident = (
            f"rollout of version {row.from_version} stopped (ledger row {row.sequence})"
        )
        known = [
            each for each in records.alerts(row.model) if each["cause"] == incident
        ]
        if not any(each["delivered"] for each in known):
            alert(
                settings, records, row.model, incident, f"{incident}: {row.why}", as_of
            )
