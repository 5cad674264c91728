"""Verdict on a window and decision: pure functions, whose inputs are stored with a decision.

The first rule that fits decides, from top to bottom:

    stale                as_of lies before the newest promotion          nothing
    harm                 failing, slow, collapsed, previous is better    roll back
    insufficient_data    the newest window has too few entities          nothing
    unknown              something could not be measured                 nothing
    ok                   no actionable drift, performance holds          nothing
    first_bad_window     fewer than 2 bad of the last 5 windows *        nothing
    cooldown             a retraining was decided too short a time ago   nothing
    nothing_new          no rows matured since the newest training       nothing
    drift                no other rule fits                              retrain

(* numbers of the spec's [monitoring])

An alert goes out with every action but nothing, and for each unknown result, once per incident. A
stale run is not stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import TypeAdapter

from monitoring.check import CheckResult

STALE = "stale"
ENTITIES = "volume/entities"
"""Name of the figure that counts the entities of a window; its limit is the number needed."""
REFERENCE = "reference"
"""Name of the result that says why there is no reference."""
ALERT_ONLY = frozenset(
    {
        "bias",
        "freshness",
        "label_drift",
        "online_store",
        "serving",
        "skew",
        "volume",
    }
)
"""Kinds of checks that raise alerts and are never part of a verdict."""
Verdict = Literal["ok", "bad", "unknown", "insufficient_data"]
Action = Literal["nothing", "alert", "retrain", "rollback"]


@dataclass(frozen=True)
class Inputs:
    """Everything that a decision depends on. Times are UTC.

    Attributes:
        as_of: Moment of the run.
        version: The version in production.
        verdicts: Verdicts on the version's windows from its promotion to `as_of`, oldest first.
        findings: Reasons why the newest window is bad or unknown, such as `total_spend_30d: PSI
            0.31`.
        harm: Why the version does harm; None if it does none.
        previous: The version to go back to.
        last_retraining: Moment of the last decision to retrain that made a version, or still may;
            None with harm, too.
        last_promotion: Moment at which the version came into production.
        cooldown: The least time between two retrainings.
        windows: Number of newest windows that count.
        bad_windows: Number of these that must be bad.
        nothing_new: Why a training would learn nothing new, and when it would; None: it would now.

    """

    as_of: datetime
    version: str
    verdicts: tuple[Verdict, ...]
    findings: tuple[str, ...]
    harm: str | None
    previous: str | None
    last_retraining: datetime | None
    last_promotion: datetime | None
    cooldown: timedelta
    windows: int
    bad_windows: int
    nothing_new: str | None = None


INPUTS = TypeAdapter(Inputs)


@dataclass(frozen=True)
class Decision:
    """An action, the rule that it follows from, and the reason in words."""

    action: Action
    rule: str
    reason: str


def _judged(results: Sequence[CheckResult]) -> list[CheckResult]:
    return [
        result for result in results if result.acts and result.kind not in ALERT_ONLY
    ]


def judge(results: Sequence[CheckResult]) -> Verdict:
    """Return the verdict on a window from the results of its checks."""
    judged = _judged(results)
    unknown = [result.name for result in judged if result.status == "unknown"]
    has_too_few_entities = any(
        result.name == ENTITIES and (result.value or 0) < (result.limit or 0)
        for result in results
    )
    if REFERENCE in unknown or has_too_few_entities:
        return "insufficient_data"
    if any(result.status == "bad" for result in judged):
        return "bad"
    return "unknown" if unknown else "ok"


def find_reasons(verdict: Verdict, results: Sequence[CheckResult]) -> list[str]:
    """Return the words of the results from which a verdict follows, the worst first."""
    if verdict == "ok":
        return []
    status = "bad" if verdict == "bad" else "unknown"
    judged = sorted(_judged(results), key=lambda result: -(result.distance() or 0))
    return [result.words for result in judged if result.status == status]


def describe(verdict: Verdict, results: Sequence[CheckResult]) -> str:
    """Return a verdict in one sentence, for console, command, note and alert alike."""
    reasons = find_reasons(verdict, results)
    if verdict == "insufficient_data" and not reasons:
        reasons = [result.words for result in results if result.name == ENTITIES]
    if verdict == "ok":
        reasons = _good_news(results)
    passive_count = sum(
        result.status in {"bad", "harmful"} and not result.acts for result in results
    )
    if passive_count:
        reasons.append(f"monitor-only findings: {passive_count}")
    return f"{verdict.replace('_', ' ')}: {'; '.join(reasons)}"


def _good_news(results: Sequence[CheckResult]) -> list[str]:
    news: list[str] = []
    drifts = {
        result.feature: result.value
        for result in results
        if result.name.startswith("psi/") and result.acts and result.value is not None
    }
    if drifts:
        feature = max(drifts, key=drifts.__getitem__)
        news.append(f"no feature drifts (largest PSI {drifts[feature]:.2f}, {feature})")
    judged = [
        result.words
        for result in results
        if result.name.startswith(("online/", "backfilled/"))
        and result.limit
        and result.kind not in ALERT_ONLY
    ]
    if judged:
        return [*news, f"performance holds: {judged[0]}"]
    return [*news, "performance is not known yet"]


def decide(seen: Inputs) -> Decision:
    """Apply the rules above; the first that fits decides."""
    if seen.last_promotion and seen.as_of < seen.last_promotion:
        promoted = f"{seen.last_promotion:%Y-%m-%d %H:%M:%S} UTC"
        reason = f"older than the newest promotion, of {promoted}"
        return Decision("nothing", STALE, reason)
    if seen.harm is not None and seen.previous is None:
        reason = f"{seen.harm}; there is no version to go back to"
        return Decision("alert", "harm", reason)
    if seen.harm is not None:
        return Decision("rollback", "harm", seen.harm)
    verdict = seen.verdicts[-1]
    findings = "; ".join(seen.findings)
    reasons = {
        "insufficient_data": findings or "too few entities for a verdict",
        "unknown": findings,
        "ok": "no actionable drift, performance holds",
    }
    if verdict in reasons:
        return Decision("nothing", verdict, reasons[verdict])
    return _decide_on_bad_window(seen, findings)


def _decide_on_bad_window(seen: Inputs, findings: str) -> Decision:
    bad_count = seen.verdicts[-seen.windows :].count("bad")
    if bad_count < seen.bad_windows:
        reason = (
            f"{findings}; {bad_count} of the last {seen.windows} windows bad, "
            f"a retraining needs {seen.bad_windows}"
        )
        return Decision("nothing", "first_bad_window", reason)
    if seen.last_retraining and seen.as_of < seen.last_retraining + seen.cooldown:
        until = seen.last_retraining + seen.cooldown
        reason = f"{findings}; the cooldown ends at {until:%Y-%m-%d %H:%M} UTC"
        return Decision("nothing", "cooldown", reason)
    if seen.nothing_new:
        return Decision("nothing", "nothing_new", f"{findings}; {seen.nothing_new}")
    return Decision("retrain", "drift", findings)
