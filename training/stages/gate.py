"""Stage 5, gate: may the challenger be promoted?

`apply_gates` is pure; outcomes and model card are stored before anything is refused.
"""

import logging
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import jinja2

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.training import (
    LOWER_IS_BETTER,
    AgainstChampion,
    BetterThanBaseline,
    Gate,
    Limit,
)
from feature_repo.definition import table_versions
from mlflow_server.api.comparison import GATES
from mlflow_server.api.pages import CARD
from mlflow_server.api.tracking import Run, Tracking
from training.artifacts import PLOTS, fetched_artifact
from training.data.lineage import lineage
from training.evaluation.results import Evaluation, GateOutcome, load_evaluation

log = logging.getLogger(__name__)
MODEL_CARD: jinja2.Template = jinja2.Template(
    Path(__file__).with_name(CARD).read_text("utf-8"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

UNPROVED = "the served file scores differently from the fitted model"


def gate(settings: Settings, spec: ModelSpec, run_id: str) -> str | None:
    """Judge the run's evaluation by the spec's gates, store outcomes and model card.

    Returns:
        Why the challenger is refused; None: every gate is passed.

    Raises:
        TrainingError: The champion could not be compared with.

    """
    tracking = Tracking(settings)
    evaluation = load_evaluation(tracking, run_id)
    outcomes = apply_gates(spec.gates, evaluation, spec.least_class_rows)
    for remark in evaluation.remarks:
        log.warning("%s: %s", spec.name, remark)
    reasons = [
        f"{outcome.metric} {outcome.rule}: {outcome.text}"
        for outcome in outcomes
        if not outcome.passed
    ]
    refusal = "; ".join(reasons)
    stored = {"gates": [asdict(outcome) for outcome in outcomes]}
    tracking.log_dict(run_id, stored, GATES)
    verdict = f"refused: {refusal}" if refusal else "passed"
    tracking.log(run_id, tags={"gate": verdict})
    with fetched_artifact(tracking, run_id, PLOTS) as plots:
        card = model_card(spec, tracking.run(run_id), evaluation, outcomes, plots)
    tracking.log_text(run_id, card, CARD)
    if refusal and evaluation.unavailable:
        raise TrainingError(f"{spec.name}: {verdict}")
    if refusal:
        tracking.end(run_id, verdict)
    return refusal or None


def apply_gates(
    gates: Sequence[Gate], evaluation: Evaluation, least_class_rows: int = 0
) -> tuple[GateOutcome, ...]:
    """Apply each gate of the spec, then check that the served file scores as the fitted model.

    Every class needs some rows: a figure of a handful of them is chance.

    A gate that compares with a champion passes where there is none. NaN fails every gate. A remark
    is an outcome that passes.
    """
    outcomes = []
    for gate in gates:
        match gate:
            case Limit():
                passed, text = _limit(gate, evaluation)
            case BetterThanBaseline():
                passed, text = _better_than_baseline(gate, evaluation)
            case AgainstChampion():
                passed, text = _against_champion(gate, evaluation)
        outcomes.append(GateOutcome(gate.rule, gate.metric, passed, text))
    for name, count in evaluation.class_rows.items():
        if count < least_class_rows:
            text = (
                f"{count} of {evaluation.rows:,} test rows are of class {name}, required: "
                f"at least {least_class_rows} (least_class_rows): more snapshots in test"
            )
            outcomes.append(
                GateOutcome("at_least", "class_rows", passed=False, text=text)
            )
    remarks = [
        GateOutcome("remark", "label", passed=True, text=remark)
        for remark in evaluation.remarks
    ]
    text = "the served file scores as the fitted model"
    if evaluation.unproved:
        text = f"{UNPROVED}: {evaluation.unproved}"
    proof = GateOutcome("same_scores", "score", not evaluation.unproved, text)
    return (*outcomes, *remarks, proof)


def _limit(gate: Limit, evaluation: Evaluation) -> tuple[bool, str]:
    value = (evaluation.figures | evaluation.challenger)[gate.metric]
    passed = value >= gate.value if gate.rule == "at_least" else value <= gate.value
    text = f"{gate.metric} is {value:.4g}, required: {gate.rule} {gate.value:.4g}"
    return passed, text


def _better_than_baseline(
    gate: BetterThanBaseline, evaluation: Evaluation
) -> tuple[bool, str]:
    value = evaluation.challenger[gate.metric]
    baseline = evaluation.baseline[gate.metric]
    is_better = value > baseline
    if gate.metric in LOWER_IS_BETTER:
        is_better = value < baseline
    constant = "the best constant"
    if gate.metric == "cost":
        constant = "acting on nobody or everybody"
    verdict = "better" if is_better else "not better"
    text = f"{gate.metric} {value:.4f} is {verdict} than {baseline:.4f} of {constant}"
    return is_better, text


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
    loss = sign * difference.value
    largest_loss = max(sign * difference.low, sign * difference.high)
    margin = gate.margin_percent / 100 * abs(evaluation.champion[gate.metric])
    if gate.rule == "better_than_champion":
        passed = loss < 0 and -loss >= margin
        limit = f"required: at least {margin:.4f} better"
    else:
        passed = loss <= 0 and largest_loss <= margin
        limit = (
            f"required: not worse, and the interval ends at {margin:.4f} worse at most"
        )
    text = (
        f"{gate.metric} minus that of {champion} is {difference.value:+.4f} "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]"
    )
    return passed, text if passed else f"{text}; {limit}"


def model_card(
    spec: ModelSpec,
    run: Run,
    evaluation: Evaluation,
    outcomes: Sequence[GateOutcome],
    plots: Path,
) -> str:
    """Return HTML on the run's model; `plots` is the folder of the run's figures."""
    pictures = {
        file.stem: b64encode(file.read_bytes()).decode() for file in plots.iterdir()
    }
    return MODEL_CARD.render(
        spec=spec,
        run=run,
        evaluation=evaluation,
        outcomes=outcomes,
        pictures=pictures,
        lower_is_better=LOWER_IS_BETTER,
        lineage=lineage(run),
        tables=table_versions(run.tags),
        wide_features=evaluation.spread.wide_features(spec.monitoring),
    )
