"""Stage 5: may the challenger be promoted? A pure decision over what was measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from mlflow_server.tracking import Tracking
from stack.spec import LOWER_IS_BETTER
from training.artifacts import EVALUATION, GATES, read
from training.metrics import Difference  # noqa: TC001  (pydantic reads the annotations)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.settings import Settings
    from stack.spec import Gate, ModelSpec


@dataclass(frozen=True)
class Evaluation:
    """What the newest matured snapshot says. Metrics by name; all on the same rows.

    champion: version compared with, None if nothing was in production.
    differences: challenger minus champion, for each metric a gate compares them by.
    unavailable: why the champion could not be compared with; a gate that asks for it then refuses.
    """

    rows: int
    challenger: dict[str, float]
    trivial: dict[str, float]
    champion_version: str | None
    champion: dict[str, float]
    differences: dict[str, Difference]
    unavailable: str | None = None


@dataclass(frozen=True)
class Outcome:
    """One gate and what it said."""

    rule: str
    metric: str
    passed: bool
    text: str


EVALUATIONS = TypeAdapter(Evaluation)


def gate(settings: Settings, spec: ModelSpec, run_id: str) -> str | None:
    """Judge the run's evaluation by the spec's gates; the outcome is stored before it is said.

    Returns None when every gate is passed, else the reasons of the refusal.
    """
    tracking = Tracking(settings)
    evaluation = load_evaluation(tracking, run_id)
    outcomes = decide(spec.gates, evaluation)
    refused = "; ".join(outcome.text for outcome in outcomes if not outcome.passed)
    tracking.log_json(run_id, {"gates": [asdict(outcome) for outcome in outcomes]}, GATES)
    tracking.log(run_id, tags={"gate": f"refused: {refused}" if refused else "passed"})
    if refused:
        tracking.finish(run_id, "FINISHED")
    return refused or None


def load_evaluation(tracking: Tracking, run_id: str) -> Evaluation:
    """Fetch what `evaluate` stored."""
    return EVALUATIONS.validate_json(read(tracking, run_id, EVALUATION))


def decide(gates: Sequence[Gate], evaluation: Evaluation) -> tuple[Outcome, ...]:
    """Apply each gate; one that compares with a champion is passed where there is none."""
    return tuple(RULES[gate.rule](gate, evaluation) for gate in gates)


def _better_than_trivial(gate: Gate, evaluation: Evaluation) -> Outcome:
    ours, trivial = evaluation.challenger[gate.metric], evaluation.trivial[gate.metric]
    better = ours < trivial if gate.metric in LOWER_IS_BETTER else ours > trivial
    text = f"{gate.metric} {ours:.4f} is {'' if better else 'not '}better than {trivial:.4f}"
    return Outcome(gate.rule, gate.metric, better, f"{text} of the best constant")


def _not_worse_than_champion(gate: Gate, evaluation: Evaluation) -> Outcome:
    if evaluation.champion_version is None:
        return Outcome(gate.rule, gate.metric, passed=True, text="no champion to compare with")
    if evaluation.unavailable is not None:
        champion = f"version {evaluation.champion_version}"
        text = f"{champion} cannot be compared with: {evaluation.unavailable}"
        return Outcome(gate.rule, gate.metric, passed=False, text=text)
    difference, base = evaluation.differences[gate.metric], evaluation.champion[gate.metric]
    # Signed so that positive means the challenger is worse.
    sign = 1 if gate.metric in LOWER_IS_BETTER else -1
    worse = sign * difference.value
    worst = max(sign * difference.low, sign * difference.high)
    allowed = gate.margin_percent / 100 * abs(base)
    passed = worse <= 0 and worst <= allowed
    text = (
        f"{gate.metric} minus that of version {evaluation.champion_version} is "
        f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    )
    limit = f"; allowed is no worse, and at worst {allowed:.4f} worse"
    return Outcome(gate.rule, gate.metric, passed, text if passed else text + limit)


RULES = {
    "better_than_trivial": _better_than_trivial,
    "not_worse_than_champion": _not_worse_than_champion,
}
