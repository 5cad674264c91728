"""`rollout_<MODEL>`: a run judges the version in a rollout and takes one step.

The ledger is the only state: its rows have the roles with their times, and the figures of the
previous step. So a run that was killed can be repeated, and a second run changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import TypeAdapter

from core.errors import PromotionRefusedError
from core.locks import one_writer
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.monitoring import Rollout
from mlflow_server.alerts import ROLLOUT_STOPPED, Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger, LedgerAction, LedgerRow
from mlflow_server.promotion.promote import promote, reconcile, release
from mlflow_server.promotion.rules import last_applied
from mlflow_server.roles import CHALLENGER, PRODUCTION, SHADOW, WHOLE, RoleAssignment
from monitoring.harm import Variant, distance, find_harm, measure_variants, milliseconds
from monitoring.log.collect import collect

RolloutAction = Literal["hold", "advance", "abort", "done"]
AUTHOR = "rollout"
"""Author of the ledger rows that a rollout writes."""
STEP: LedgerAction = "rollout"
"""LedgerAction of the ledger rows that a rollout writes. In a row with another action, a person put the
version into its role; a rollout does not move that version."""
EFFECTS = {
    "hold": "holds",
    "advance": "goes on to {} %",
    "abort": "is stopped",
    "done": "goes into production",
}


@dataclass(frozen=True)
class Evidence:
    """Everything that a step depends on but the spec's [rollout]. The ledger stores it.

    Attributes:
        percent: Percent of the entities that the challenger answers; 0: it is a shadow.
        minutes: Length of the step so far.
        production: Figures of production in the step.
        challenger: Figures of the challenger or the shadow in the step.
        previous_production: Figures of production in the previous step, for a challenger that
            answers all entities.

    """

    percent: int
    minutes: float
    production: Variant
    challenger: Variant
    previous_production: Variant | None = None


EVIDENCE = TypeAdapter(Evidence)


@dataclass(frozen=True)
class RolloutStep:
    """An action, the percent that the challenger answers from then on, and the reason in words."""

    action: RolloutAction
    percent: int
    reason: str


@dataclass(frozen=True)
class RolloutReport:
    """One run of a rollout.

    Attributes:
        version: The version in the rollout; None: no rollout is in progress.
        action: LedgerAction of the step, or `nothing`.
        summary: Version, action and reason in one line.
        evidence: Everything that the step depends on; None: nothing was measured.

    """

    version: str | None
    action: str
    summary: str
    evidence: Evidence | None = None


@dataclass(frozen=True)
class Candidate:
    """A version in a rollout.

    Attributes:
        row: The ledger row that put the version into its role.
        version: The version.
        percent: Percent of the entities that it answers; 0: it is a shadow.
        production: The version in production.
        start: Start of the step.

    """

    row: LedgerRow
    version: str
    percent: int
    production: str
    start: datetime

    @property
    def place(self) -> str:
        return f"at {self.percent} %" if self.percent else "as shadow"


def judge_step(policy: Rollout, evidence: Evidence) -> RolloutStep:
    """Abort a rollout that does harm, hold it while too little is known, else advance it."""
    challenger = evidence.challenger
    production = evidence.production
    if evidence.percent == WHOLE and evidence.previous_production:
        production = evidence.previous_production
    problem = find_harm(challenger, production, policy)
    if problem:
        return RolloutStep("abort", 0, problem)
    missing = _missing_evidence(policy, evidence.minutes, challenger, production)
    if missing:
        return RolloutStep("hold", evidence.percent, missing)
    score_distance = distance(challenger.scores, production.scores)
    if score_distance > policy.scores:
        reason = (
            f"its scores are {score_distance:.2f} away from production's, at most "
            f"{policy.scores:g} is allowed: too few scores to be sure"
        )
        return RolloutStep("hold", evidence.percent, reason)
    reason = (
        f"{challenger.failed_rows} of {challenger.rows} rows failed beside "
        f"{production.failed_rows} of {production.rows}, 95 % of requests within "
        f"{milliseconds(challenger.seconds['p95'])} beside "
        f"{milliseconds(production.seconds['p95'])}, scores {score_distance:.2f} apart"
    )
    next_steps = [step for step in policy.steps if step > evidence.percent]
    if next_steps:
        return RolloutStep("advance", next_steps[0], reason)
    return RolloutStep("done", WHOLE, reason)


def _missing_evidence(
    policy: Rollout, minutes: float, challenger: Variant, production: Variant
) -> str | None:
    """Return which evidence is still missing; None if none is.

    Rows and requests are counted apart: a request may have many rows.
    """
    fewest = policy.requests
    for name, variant in (("it", challenger), ("production", production)):
        if variant.scored_rows < fewest:
            return (
                f"{name} has answered {variant.scored_rows} of {fewest} rows "
                "of the population"
            )
        if variant.requests < fewest:
            return f"{name} has answered {variant.requests} of {fewest} requests"
    if minutes < policy.minutes:
        return f"{minutes:.0f} of {policy.minutes:g} minutes have passed"
    return None


def find_candidate(rows: Sequence[LedgerRow]) -> Candidate | None:
    """Return the challenger, else the shadow; None if there is neither. `rows` agree with MLflow."""
    production = last_applied(rows, PRODUCTION)
    for role in (CHALLENGER, SHADOW):
        row = last_applied(rows, role)
        if production and row and row.to_version is not None:
            return Candidate(
                row=row,
                version=row.to_version,
                percent=row.percent if role == CHALLENGER else 0,
                production=str(production.to_version),
                start=max(row.time, production.time),
            )
    return None


def roll_out(settings: Settings, spec: ModelSpec, as_of: datetime) -> RolloutReport:
    """Judge the current step by the log up to `as_of`, and advance, hold or abort the rollout.

    Raises:
        RegistryError, DataError: A store does not answer.

    """
    registry = Registry(settings)
    with (
        one_writer(settings, f"rollout_{spec.name}"),
        Ledger(settings) as ledger,
        Alerts(settings) as alerts,
    ):
        candidate = find_candidate(reconcile(registry, ledger, spec.name))
        if candidate is None:
            alerts.deliver(spec.name, as_of)
            summary = f"{spec.name}: no rollout is in progress"
            return RolloutReport(None, "nothing", summary)
        step, evidence = _judge(settings, spec, candidate, as_of)
        version = f"version {candidate.version}"
        if step.action == "abort":
            # Before the step: a process that is killed after the step has stored its alert.
            incident = f"{ROLLOUT_STOPPED}{version} stopped (ledger row {candidate.row.sequence})"
            alerts.note(spec.name, incident, f"{incident}: {step.reason}", as_of)
        try:
            if evidence:
                _take(registry, ledger, candidate, step, evidence)
        except PromotionRefusedError as exc:  # a person was faster
            step = RolloutStep("hold", candidate.percent, str(exc))
        alerts.deliver(spec.name, as_of)
    effect = EFFECTS[step.action].format(step.percent)
    return RolloutReport(
        version=candidate.version,
        action=step.action,
        summary=f"{spec.name} {version} {candidate.place} {effect}: {step.reason}",
        evidence=evidence,
    )


def _judge(
    settings: Settings,
    spec: ModelSpec,
    candidate: Candidate,
    as_of: datetime,
) -> tuple[RolloutStep, Evidence | None]:
    """Return the step and its evidence; None instead of evidence if nothing was measured."""
    row = candidate.row
    if row.action != STEP:
        reason = (
            f"{row.who} set this {row.role}: promote it, or end it with gyre release, after which "
            f"gyre promote {row.model} {candidate.version} --rollout begins its rollout"
        )
        return RolloutStep("hold", candidate.percent, reason), None
    collect(settings)
    model = RoleAssignment(row.model, row.created)
    variants = measure_variants(settings, model, candidate.start, as_of)
    previous_production = None
    if row.role == CHALLENGER and row.evidence:
        previous_production = EVIDENCE.validate_json(row.evidence).production
    evidence = Evidence(
        percent=candidate.percent,
        minutes=(as_of - candidate.start) / timedelta(minutes=1),
        production=variants[PRODUCTION, candidate.production],
        challenger=variants[row.role, candidate.version],
        previous_production=previous_production,
    )
    return judge_step(spec.rollout, evidence), evidence


def _take(
    registry: Registry,
    ledger: Ledger,
    candidate: Candidate,
    step: RolloutStep,
    evidence: Evidence,
) -> None:
    """Carry out a step, which writes one ledger row. A step that holds writes none."""
    if step.action == "hold":
        return
    role = candidate.row.role
    model = candidate.row.model
    version = candidate.version
    origin = {
        "who": AUTHOR,
        "why": f"{candidate.place}: {step.reason}",
        "evidence": EVIDENCE.dump_json(evidence).decode(),
    }
    if step.action == "abort":
        release(registry, ledger, model, role, **origin, replaces=version)
        return
    next_role = PRODUCTION
    replaced_version: str | None = candidate.production
    if step.action == "advance":
        next_role = CHALLENGER
        replaced_version = version if role == CHALLENGER else None
    promote(
        registry,
        ledger,
        model,
        version,
        **origin,
        action=STEP,
        role=next_role,
        percent=step.percent,
        replaces=replaced_version,
    )
