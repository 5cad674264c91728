"""Stage 5: may the challenger be promoted? `decide` is pure; what it says is stored first."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from mlflow_server.tracking import Tracking
from stack.errors import TrainingError
from stack.spec import LOWER_IS_BETTER, AgainstChampion, BetterThanTrivial, Limit
from training.artifacts import EVALUATION, GATES, PLOTS, fetched, read
from training.card import CARD, model_card
from training.metrics import Interval  # noqa: TC001  (pydantic reads the annotations)
from training.segments import Segment  # noqa: TC001

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stack.settings import Settings
    from stack.spec import Gate, ModelSpec


@dataclass(frozen=True)
class Evaluation:
    """What the newest matured snapshot says. Metrics by name; all on the same rows.

    What has a default is not in the evaluations of older versions, which monitoring reads too.

    champion: version compared with, None if nothing was in production.
    differences: challenger minus champion, on the same resamples.
    unavailable: why the champion could not be compared with; a gate that asks for it then refuses.
    threshold: from which the challenger says 1, None if it predicts a number; the champion is
    measured at its own.
    intervals: the challenger's metrics with their 95 % intervals.
    figures: what is measured of the challenger alone: calibration, fairness, size, latency.
    no_champion: why what is in production is none, though it is what is to be replaced.
    unproved: why ONNX does not score as scikit-learn does; empty when it does.
    """

    rows: int
    challenger: dict[str, float]
    trivial: dict[str, float]
    champion_version: str | None
    champion: dict[str, float]
    differences: dict[str, Interval]
    unavailable: str | None = None
    threshold: float | None = 0.5
    intervals: dict[str, Interval] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    segments: tuple[Segment, ...] = ()
    unproved: str = ""
    no_champion: str = ""


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

    Raises:
        TrainingError: refused because the champion could not be compared with.

    """
    tracking = Tracking(settings)
    evaluation = load_evaluation(tracking, run_id)
    outcomes = decide(spec.gates, evaluation)
    refused = _store(tracking, run_id, outcomes)
    with fetched(tracking, run_id, PLOTS) as plots:
        card = model_card(spec, tracking.run(run_id), evaluation, outcomes, plots)
    tracking.log_text(run_id, card, CARD)
    if refused and evaluation.unavailable:
        raise TrainingError(f"{spec.name}: refused: {refused}")
    if refused:
        tracking.log(run_id, tags={"outcome": f"refused: {refused}"})
        tracking.finish(run_id, "FINISHED")
    return refused or None


def load_evaluation(tracking: Tracking, run_id: str) -> Evaluation:
    """Fetch what `evaluate` stored."""
    return EVALUATIONS.validate_json(read(tracking, run_id, EVALUATION))


def decide(gates: Sequence[Gate], evaluation: Evaluation) -> tuple[Outcome, ...]:
    """Apply each gate, then the one that needs no asking: ONNX scores as scikit-learn does.

    One that compares with a champion is passed where there is none. No number passes no gate.
    """
    passed = not evaluation.unproved
    text = "as scikit-learn does" if passed else f"not as scikit-learn does: {evaluation.unproved}"
    proof = Outcome("onnx_proof", "onnx", passed, f"ONNX scores {text}")
    return (*(_judged(gate, evaluation) for gate in gates), proof)


def _store(tracking: Tracking, run_id: str, outcomes: Sequence[Outcome]) -> str:
    refused = "; ".join(f"{o.metric} {o.rule}: {o.text}" for o in outcomes if not o.passed)
    tracking.log_json(run_id, {"gates": [asdict(outcome) for outcome in outcomes]}, GATES)
    tracking.log(run_id, tags={"gate": f"refused: {refused}" if refused else "passed"})
    return refused


def _judged(gate: Gate, evaluation: Evaluation) -> Outcome:
    match gate:
        case Limit():
            passed, text = _limit(gate, evaluation)
        case BetterThanTrivial():
            passed, text = _better_than_trivial(gate, evaluation)
        case AgainstChampion():
            passed, text = _against_champion(gate, evaluation)
    return Outcome(gate.rule, gate.metric, passed, text)


def _limit(gate: Limit, evaluation: Evaluation) -> tuple[bool, str]:
    ours = (evaluation.figures | evaluation.challenger)[gate.metric]
    passed = ours >= gate.value if gate.rule == "at_least" else ours <= gate.value
    return passed, f"{gate.metric} is {ours:.4g}, allowed is {gate.rule} {gate.value:.4g}"


def _better_than_trivial(gate: BetterThanTrivial, evaluation: Evaluation) -> tuple[bool, str]:
    ours, trivial = evaluation.challenger[gate.metric], evaluation.trivial[gate.metric]
    better = ours < trivial if gate.metric in LOWER_IS_BETTER else ours > trivial
    text = f"{gate.metric} {ours:.4f} is {'' if better else 'not '}better than {trivial:.4f}"
    whose = "acting on nobody or everybody" if gate.metric == "cost" else "the best constant"
    return better, f"{text} of {whose}"


def _against_champion(gate: AgainstChampion, evaluation: Evaluation) -> tuple[bool, str]:
    if evaluation.champion_version is None or evaluation.no_champion:
        why = f": {evaluation.no_champion}" if evaluation.no_champion else ""
        return True, f"no champion to compare with{why}"
    champion = f"version {evaluation.champion_version}"
    if evaluation.unavailable is not None:
        return False, f"{champion} cannot be compared with: {evaluation.unavailable}"
    found = evaluation.differences[gate.metric]
    # Signed so that positive means the challenger is worse.
    sign = 1 if gate.metric in LOWER_IS_BETTER else -1
    worse, worst = sign * found.value, max(sign * found.low, sign * found.high)
    margin = gate.margin_percent / 100 * abs(evaluation.champion[gate.metric])
    if gate.rule == "better_than_champion":
        passed, limit = worse < 0 and -worse >= margin, f"asked is {margin:.4f} better"
    else:
        passed = worse <= 0 and worst <= margin
        limit = f"allowed is no worse, and at worst {margin:.4f} worse"
    text = f"{gate.metric} minus that of {champion} is {found.value:+.4f} "
    text += f"[{found.low:+.4f}, {found.high:+.4f}]"
    return passed, text if passed else f"{text}; {limit}"
