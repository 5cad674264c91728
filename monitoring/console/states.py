"""The states of the loop: what is well, what is not, and what to do. All functions are pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple

from feature_engine.events.broker import MAX_LAG_SECONDS
from feature_engine.events.interface import ConsumerLag
from mlflow_server.alerts import is_muted, silence_text
from monitoring.check import CheckResult
from monitoring.console.cached_reader import Reading
from monitoring.console.status import Alert, ServingStatuses

Health = Literal["attention", "unknown", "ok"]
HEALTHS: tuple[Health, ...] = ("attention", "unknown", "ok")
"""Words of pages and of `gyre status` for a state, the worst first."""
STATE_WORDS = {
    "harm": "harmful",
    "absent": "unserved",
    "serving": "unserved",
    "version": "mismatched",
    "performance_drift": "degraded",
    "concept_drift": "degraded",
    "data_drift": "drifted",
    "prediction_drift": "drifted",
    "verdict": "degraded",
    "events": "stale",
    "features": "stale",
    "freshness": "stale",
    "online_store": "stale",
}
"""Word for a model by the kind of its problem, the most urgent first."""
HEALTH_WORDS: dict[Health, str] = {
    "attention": "alerted",
    "unknown": "unknown",
    "ok": "healthy",
}
"""Word for a model that has no problem of these kinds."""
EVENTS_WAIT = "events wait"
"""The cause of an alert about events."""
URGENT = (
    "serving",
    "harm",
    "absent",
    "version",
    "database",
    "events",
    "features",
    "online_store",
    "verdict",
)
"""Kinds of problems that are shown before all others, in this order."""
SERVING_HEALTH = "serving/health/ready"
ALL_STATES = "/#checks"
"""The table of all states on the start page."""
RESOURCE_KINDS = {"redis": "events", "mlflow": "mlflow"}
"""Kinds of states by resource of serving; other resources are of kind serving."""


@dataclass(frozen=True, kw_only=True)
class LoopState(CheckResult):
    """How well one part of the loop is, as a check: of a monitoring run, or of this moment.

    The name is that of the part, such as `last training`; URGENT has some of the kinds.

    Attributes:
        repeats: Subject and cause of the incident that the state repeats, if it does.
        number: The number of that incident while it is open.
        silence: Who acknowledged or muted that incident; empty: nobody.

    """

    repeats: tuple[str, str] | None = None
    number: int | None = None
    silence: str = ""

    @property
    def health(self) -> Health:
        if self.status in {"ok", "note"}:
            return "ok"
        return "unknown" if self.status == "unknown" else "attention"


def with_silence(
    state: LoopState, alerts: Mapping[tuple[str, str], Alert], now: datetime
) -> LoopState:
    """Add to a state the number of its incident, and who silenced it; a muted state is ok.

    alerts: Open alerts by subject and cause.
    """
    alert = alerts.get(state.repeats) if state.repeats else None
    if alert is None or state.health == "ok":
        return state
    silence = silence_text(alert, now)
    return replace(
        state,
        number=alert["sequence"],
        silence=silence,
        words=f"{state.words} ({silence})" if silence else state.words,
        status="note" if is_muted(alert, now) else state.status,
    )


def worst_health(states: Iterable[LoopState]) -> Health:
    """Return the health of the worst state; `ok` of none."""
    healths = [state.health for state in states]
    return min(healths, key=HEALTHS.index, default="ok")


def state_word(states: Sequence[LoopState]) -> str:
    """Return the state of a model as one word of STATE_WORDS or HEALTH_WORDS."""
    kinds = {state.kind for state in states if state.health == "attention"}
    for kind, word in STATE_WORDS.items():
        if kind in kinds:
            return word
    return HEALTH_WORDS[worst_health(states)]


class Problem(NamedTuple):
    """A state that is not ok, and the subjects that share it, such as models."""

    state: LoopState
    subjects: list[str]


def problems(states: Mapping[str, Sequence[LoopState]]) -> list[Problem]:
    """Return the states that are not ok, the most urgent first, what is acknowledged last.

    States with the same remedy are one problem, with the words of the first.

    Args:
        states: States by their subject: a model, or serving and events.

    """
    problem_of_remedy: dict[tuple[str, str], Problem] = {}
    for subject, states_of_subject in states.items():
        for state in states_of_subject:
            if state.health != "ok":
                key = (state.remedy or state.words, state.silence)
                problem = problem_of_remedy.setdefault(key, Problem(state, []))
                if subject not in problem.subjects:
                    problem.subjects.append(subject)
    return sorted(problem_of_remedy.values(), key=_urgency)


def _urgency(problem: Problem) -> tuple[bool, int, int]:
    is_acknowledged = problem.state.silence != ""
    kind = problem.state.kind
    place = URGENT.index(kind) if kind in URGENT else len(URGENT)
    return is_acknowledged, place, HEALTHS.index(problem.state.health)


def states_of_serving(reading: Reading[ServingStatuses]) -> Iterator[LoopState]:
    """Judge serving and its resources, by the first replica that is not ready if there is one."""
    if reading.value is None:
        yield silent_program("serving", reading, "serving")
        return
    status = min(reading.value.values(), key=lambda status: bool(status["ready"]))
    resources = {"serving": {"ok": status["ready"], "detail": "predictions"}}
    for name, resource in (resources | status["resources"]).items():
        program = name if name in RESOURCE_KINDS else "serving"
        is_ok = resource["ok"]
        yield LoopState(
            name=name,
            kind=RESOURCE_KINDS.get(name, "serving"),
            status="ok" if is_ok else "alert",
            words=f"{name}: {'' if is_ok else 'not ready: '}{resource['detail']}",
            remedy=_restart(program),
            link=SERVING_HEALTH,
        )


def states_of_events(
    consumer: Reading[str | None],
    lags: Reading[Mapping[str, ConsumerLag]],
    now: datetime,
    broker: str = "redis",
) -> Iterator[LoopState]:
    """Judge whether a consumer reads the events, and whether it processes those of each dataset.

    Args:
        consumer: The reason why no consumer reads; None if one does.
        lags: Lags by dataset.
        now: Aware UTC.
        broker: `redis` or `kafka`.

    """
    if lags.value is None or consumer.at is None:
        unknown = lags if lags.value is None else consumer
        yield silent_program(broker, unknown, "events")
        return
    words = "a consumer reads the events"
    if consumer.value:
        words = f"Events are not processed: {consumer.value}"
    yield LoopState(
        name="consumer",
        kind="events",
        status="alert" if consumer.value else "ok",
        words=words,
        remedy=f"{_restart('consumer')} Events wait until then.",
        link=ALL_STATES,
    )
    for dataset, lag in lags.value.items():
        late = late_events(dataset, lag, now)
        yield LoopState(
            name="events",
            kind="events",
            status="alert" if late else "ok",
            words=late or f"{dataset}: waiting requests: {lag.entries}",
            remedy="`gyre logs consumer` shows the error; the consumer tries again by itself. If "
            f"nothing was ingested yet: `gyre ingest {dataset}`. Events wait until then: in Redis "
            "at most 10,000 requests, in Kafka as long as it keeps them.",
            link=ALL_STATES,
            repeats=(dataset, EVENTS_WAIT),
        )


def late_events(dataset: str, lag: ConsumerLag, now: datetime) -> str | None:
    """Return the sentence that events of a dataset wait for too long; None if they do not."""
    seconds = lag.seconds(now)
    if seconds <= MAX_LAG_SECONDS:
        return None
    return (
        f"{dataset}: a request has waited for the consumer for {seconds:.0f} s, "
        f"at most {MAX_LAG_SECONDS:.0f} s are expected; waiting requests: {lag.entries}"
    )


def silent_program(program: str, reading: Reading[Any], kind: str) -> LoopState:
    """Return the state of a program that does not answer, with the reason."""
    remedy = _restart(program)
    if kind in {"database", "features"}:
        remedy = "`gyre status` shows programs that have ended. Is the disk full?"
    if program == "kafka":
        remedy = "`gyre check` shows whether GYRE_EVENTS_URL answers. No event is lost."
    return LoopState(
        name=program,
        kind=kind,
        status="unknown",
        words=f"{program}: {reading.why}",
        remedy=remedy,
        link=SERVING_HEALTH if kind == "serving" else ALL_STATES,
    )


def _restart(program: str) -> str:
    return f"`gyre up` starts programs that have ended; `gyre logs {program}` shows the error."
