"""Stage 5: may the challenger be promoted? `decide` is pure; its outcomes are stored first."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
from pydantic import TypeAdapter

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.training_spec import (
    LOWER_IS_BETTER,
    AgainstChampion,
    BetterThanTrivial,
    Gate,
    Limit,
)
from feature_repo.definition import table_versions
from mlflow_server.pages import CARD
from mlflow_server.tracking import Run, Tracking
from training.artifacts import EVALUATION, GATES, PLOTS, fetched, read
from training.lineage import lineage
from training.metrics import Interval, Segment

PAGE: jinja2.Template = jinja2.Template(
    Path(__file__).with_name(CARD).read_text("utf-8"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name on the rows of the newest matured snapshots.

    champion_version: what is in production. differences: challenger minus champion, on the same
    resamples. unavailable: why the champion could not be scored; gates that ask for it then refuse.
    no_champion: why what is in production is none. figures: of the challenger alone: calibration,
    fairness, size, latency. unproved: why what is served scores otherwise. contributions: by
    feature, the mean of their sizes, the largest first.
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
    contributions: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """One gate and what it said."""

    rule: str
    metric: str
    passed: bool
    text: str


EVALUATIONS = TypeAdapter(Evaluation)


def load_evaluation(tracking: Tracking, run_id: str) -> Evaluation:
    """Fetch what `evaluate` stored."""
    return EVALUATIONS.validate_json(read(tracking, run_id, EVALUATION))


def gate(settings: Settings, spec: ModelSpec, run_id: str) -> str | None:
    """Judge the run's evaluation by the spec's gates, store the outcome, return why it is refused.

    None: every gate is passed. TrainingError: the champion could not be compared with.
    """
    tracking = Tracking(settings)
    evaluation = load_evaluation(tracking, run_id)
    outcomes = decide(spec.gates, evaluation)
    refused = "; ".join(
        f"{o.metric} {o.rule}: {o.text}" for o in outcomes if not o.passed
    )
    tracking.log_json(
        run_id, {"gates": [asdict(outcome) for outcome in outcomes]}, GATES
    )
    tracking.log(run_id, tags={"gate": f"refused: {refused}" if refused else "passed"})
    with fetched(tracking, run_id, PLOTS) as plots:
        card = model_card(spec, tracking.run(run_id), evaluation, outcomes, plots)
    tracking.log_text(run_id, card, CARD)
    if refused and evaluation.unavailable:
        raise TrainingError(f"{spec.name}: refused: {refused}")
    if refused:
        tracking.end(run_id, f"refused: {refused}")
    return refused or None


def decide(gates: Sequence[Gate], evaluation: Evaluation) -> tuple[Outcome, ...]:
    """Apply each gate, then the one without a name: what is served scores as what was fitted.

    A gate that compares with a champion passes where there is none. NaN fails every gate.
    """
    outcomes = []
    for gate in gates:
        match gate:
            case Limit():
                passed, text = _limit(gate, evaluation)
            case BetterThanTrivial():
                passed, text = _better_than_trivial(gate, evaluation)
            case AgainstChampion():
                passed, text = _against_champion(gate, evaluation)
        outcomes.append(Outcome(gate.rule, gate.metric, passed, text))
    unproved = evaluation.unproved
    text = f"not as what was fitted: {unproved}" if unproved else "as what was fitted"
    return (
        *outcomes,
        Outcome("onnx_proof", "onnx", not unproved, f"what is served scores {text}"),
    )


def _limit(gate: Limit, evaluation: Evaluation) -> tuple[bool, str]:
    ours = (evaluation.figures | evaluation.challenger)[gate.metric]
    passed = ours >= gate.value if gate.rule == "at_least" else ours <= gate.value
    return (
        passed,
        f"{gate.metric} is {ours:.4g}, allowed is {gate.rule} {gate.value:.4g}",
    )


def _better_than_trivial(
    gate: BetterThanTrivial, evaluation: Evaluation
) -> tuple[bool, str]:
    ours, trivial = evaluation.challenger[gate.metric], evaluation.trivial[gate.metric]
    better = ours < trivial if gate.metric in LOWER_IS_BETTER else ours > trivial
    whose = (
        "acting on nobody or everybody"
        if gate.metric == "cost"
        else "the best constant"
    )
    verdict = "better" if better else "not better"
    return (
        better,
        f"{gate.metric} {ours:.4f} is {verdict} than {trivial:.4f} of {whose}",
    )


def _against_champion(
    gate: AgainstChampion, evaluation: Evaluation
) -> tuple[bool, str]:
    if evaluation.no_champion:
        return True, f"no champion to compare with: {evaluation.no_champion}"
    if evaluation.champion_version is None:
        return True, "no champion to compare with"
    champion = f"version {evaluation.champion_version}"
    if evaluation.unavailable is not None:
        return False, f"{champion} cannot be compared with: {evaluation.unavailable}"
    difference = evaluation.differences[gate.metric]
    # Signed so that positive means the challenger is worse.
    sign = 1 if gate.metric in LOWER_IS_BETTER else -1
    worse, worst = (
        sign * difference.value,
        max(sign * difference.low, sign * difference.high),
    )
    margin = gate.margin_percent / 100 * abs(evaluation.champion[gate.metric])
    if gate.rule == "better_than_champion":
        passed, limit = worse < 0 and -worse >= margin, f"asked is {margin:.4f} better"
    else:
        passed = worse <= 0 and worst <= margin
        limit = f"allowed is no worse, and at worst {margin:.4f} worse"
    text = f"{gate.metric} minus that of {champion} is {difference.value:+.4f} "
    text += f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    return passed, text if passed else f"{text}; {limit}"


def model_card(
    spec: ModelSpec,
    run: Run,
    evaluation: Evaluation,
    outcomes: Sequence[Outcome],
    plots: Path,
) -> str:
    """HTML of the run's model; `plots` is the folder of the run's figures."""
    return PAGE.render(
        spec=spec,
        run=run,
        evaluation=evaluation,
        outcomes=outcomes,
        pictures={
            file.stem: b64encode(file.read_bytes()).decode() for file in plots.iterdir()
        },
        lower_is_better=LOWER_IS_BETTER,
        lineage=lineage(run),
        tables=table_versions(run.tags),
    )
