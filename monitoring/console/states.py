"""Whether the loop is healthy, why not, and what to do: pure functions of what is known."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from feature_engine.events.broker import MAX_LAG_SECONDS, ConsumerLag
from monitoring.check import CheckResult
from monitoring.console.cached_reader import Reading
from monitoring.console.status import ServingStatuses

EVENTS_WAIT = "events wait"
"""The cause of an alert about events."""
STATES = ("attention", "unknown", "ok")
"""What pages and `gyre status` say of a check, the worst first."""
URGENT = (
    "serving",
    "harm",
    "version",
    "database",
    "events",
    "features",
    "online_store",
    "verdict",
)
"""Kinds of problems that are shown before all others, in this order."""
HEALTH = "serving/health/ready"
KINDS = {"redis": "events", "mlflow": "mlflow"}
"""Of resources of serving; others are of kind serving."""


def state(result: CheckResult) -> str:
    """Return which of STATES a check is in."""
    if result.status in {"ok", "note"}:
        return "ok"
    return "unknown" if result.status == "unknown" else "attention"


def worst_state(results: Iterable[CheckResult]) -> str:
    """Return the worst of the states of some checks."""
    return min(map(state, results), key=STATES.index, default="ok")


def problems(
    groups: Mapping[str, Sequence[CheckResult]],
) -> list[tuple[CheckResult, list[str]]]:
    """Return what is not ok, the most urgent first: checks of one remedy once, with its subjects.

    Args:
        groups: Checks by the model, or whatever else they are about.

    """
    found: dict[str, tuple[CheckResult, list[str]]] = {}
    for subject, results in groups.items():
        for result in results:
            if state(result) != "ok":
                key = result.remedy or result.words
                _, subjects = found.setdefault(key, (result, []))
                if subject not in subjects:
                    subjects.append(subject)
    return sorted(found.values(), key=lambda problem: _urgency(problem[0]))


def _urgency(result: CheckResult) -> tuple[int, int]:
    place = URGENT.index(result.kind) if result.kind in URGENT else len(URGENT)
    return place, STATES.index(state(result))


def of_server(reading: Reading[ServingStatuses]) -> Iterator[CheckResult]:
    """Judge serving and its resources: those of the first replica that is not ready, if any."""
    if reading.value is None:
        yield silent("serving", reading, "serving")
        return
    status = min(reading.value.values(), key=lambda status: bool(status["ready"]))
    resources = {"serving": {"ok": status["ready"], "detail": "predictions"}}
    for name, resource in (resources | status["resources"]).items():
        program = name if name in KINDS else "serving"
        is_ok = resource["ok"]
        yield CheckResult(
            name=name,
            kind=KINDS.get(name, "serving"),
            status="ok" if is_ok else "alert",
            words=f"{name}: {'' if is_ok else 'not ready: '}{resource['detail']}",
            remedy=restart(program),
            link=HEALTH,
        )


def of_events(
    consumer: Reading[str | None],
    lags: Reading[Mapping[str, ConsumerLag]],
    now: datetime,
) -> Iterator[CheckResult]:
    """Judge whether a consumer reads the events, and whether it processes those of each dataset.

    Args:
        consumer: Why none reads; None if one does.
        lags: By dataset.
        now: Aware UTC.

    """
    if lags.value is None or consumer.at is None:
        unknown = lags if lags.value is None else consumer
        yield silent("redis", unknown, "events")
        return
    yield CheckResult(
        name="consumer",
        kind="events",
        status="alert" if consumer.value else "ok",
        words=f"Events are not processed: {consumer.value}"
        if consumer.value
        else "a consumer reads the events",
        remedy=f"{restart('consumer')} No event is lost: they wait in Redis.",
        link="/#checks",
    )
    for dataset, lag in lags.value.items():
        late = late_events(dataset, lag, now)
        yield CheckResult(
            name="events",
            kind="events",
            status="alert" if late else "ok",
            words=late or f"{dataset}: requests that wait: {lag.entries}",
            remedy="`gyre logs consumer` says what fails; it is tried again. If nothing was "
            f"ingested yet: `gyre ingest {dataset}`. No event is lost; where too many wait, new "
            "ones are refused.",
            link="/#checks",
        )


def late_events(dataset: str, lag: ConsumerLag, now: datetime) -> str | None:
    """Say that events wait for too long; None if they do not."""
    seconds = lag.seconds(now)
    if seconds <= MAX_LAG_SECONDS:
        return None
    return (
        f"{dataset}: a request has waited for the consumer for {seconds:.0f} s, "
        f"at most {MAX_LAG_SECONDS:.0f} s are expected; requests that wait: {lag.entries}"
    )


def restart(program: str) -> str:
    return f"`gyre up` starts what has ended; `gyre logs {program}` says why it ended."


def silent(program: str, reading: Reading[Any], kind: str) -> CheckResult:
    """Say that a program does not answer, and why."""
    remedy = restart(program)
    if kind in {"database", "features"}:
        remedy = "`gyre status` says what has ended; is the disk full?"
    return CheckResult(
        name=program,
        kind=kind,
        status="unknown",
        words=f"{program}: {reading.why}",
        remedy=remedy,
        link=HEALTH if kind == "serving" else "/#checks",
    )


def time_text(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at else "never"
