"""`gyre check`: compares a model's files with each other, with Feast and with rows.

A check is a generator of findings, one line each. An error in a user's expression is a finding, too.
"""

import logging
import re
from collections.abc import Iterator
from datetime import datetime

import pyarrow as pa

from core.errors import RegistryError, TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import in_one_line
from feature_repo.engine import LabelSource, feature_engine
from feature_repo.labels import label_source
from feature_repo.published.service import service_of
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from training.data.frame import build_frame, extent, feature_columns, snapshot_rows
from training.data.leaks import leak_remarks
from training.data.snapshots import Plan, plan_snapshots
from training.evaluation.results import load_evaluation
from training.model.estimators import category_remarks, estimator_problems
from training.model.onnx_export import EXPORT_REMEDY
from training.model.proof import served_form
from training.planning import first_known_event
from training.stages.dataset import FEWEST_ROWS, coverage, unlearnable, without_label
from training.stages.gate import UNPROVED
from training.stages.train import fit_pipeline
from training.stages.validate import mismatches

log = logging.getLogger(__name__)


def check(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> tuple[list[str], str]:
    """Return all findings, and one line on whether rows were checked."""
    findings = [*estimator_problems(spec)]
    for line in wide_features(settings, spec):
        log.warning(line)
    if spec.dataset:
        more, remark = feature_engine().check_datasets(settings, spec, as_of)
        return findings + more, remark
    findings += collected(f"{spec.name}.toml", _published(settings, spec))
    if findings:
        return findings, "rows: not checked before spec and Feast fit together"
    findings += collected("rows", _labelled(settings, spec, as_of))
    return findings, "rows: those of the label's table"


def _published(settings: Settings, spec: ModelSpec) -> Iterator[str]:
    yield from mismatches(spec, service_of(settings, spec))


def _labelled(settings: Settings, spec: ModelSpec, as_of: datetime) -> Iterator[str]:
    source = label_source(settings, spec)
    yield from learning_problems(settings, spec, source, as_of)


def plan_now(spec: ModelSpec, source: LabelSource, until: datetime) -> Plan:
    """Plan a training on all rows that were known at `until`."""
    first_event = first_known_event(source, until, None)
    return plan_snapshots(first_event, until, source.label, spec.snapshots)


def learning_problems(
    settings: Settings,
    spec: ModelSpec,
    source: LabelSource,
    until: datetime,
    step: int = 1,
) -> Iterator[str]:
    """Yield a finding for each reason why a training cannot learn, or its model cannot be served.

    Args:
        settings: Settings of the installation.
        spec: The model.
        source: Source of its labels.
        until: Moment of the training, aware UTC.
        step: The rows are those of every n-th entity.

    """
    plan = plan_now(spec, source, until)
    used_snapshots = (*plan.train, *plan.test)
    frame = build_frame(settings, spec, source, used_snapshots, until, None)
    log.info(extent(spec, plan, frame, step))
    test = snapshot_rows(frame, plan.test)
    train = snapshot_rows(frame, plan.train)
    problems = unlearnable(spec, train, test, FEWEST_ROWS if step == 1 else 1)
    yield from problems
    if not problems:
        yield from _trials(spec, frame, train)
        many_values = category_remarks(spec.inputs, feature_columns(spec, train))
        for remark in (*leak_remarks(spec, train, {}), *many_values):
            log.warning("%s.toml: %s", spec.name, remark)
    unlabelled = without_label(settings, spec, plan, test).num_rows
    # An error of it is one more finding.
    coverage(spec, unlabelled, test.num_rows + unlabelled, source.label.unlabelled)


def wide_features(settings: Settings, spec: ModelSpec) -> list[str]:
    """Return a warning for each feature of production's version that is above its limit on normal days.

    There is none if MLflow does not answer or nothing is in production.
    """
    registry = Registry(settings)
    try:
        version = registry.production(spec.name)
        if version is None:
            return []
        run_id = registry.version(spec.name, version).run_id
        spread = load_evaluation(Tracking(settings), run_id).spread
    except RegistryError:
        return []
    limit = spec.monitoring.psi_significant
    return [
        f"{spec.name}.toml: {name}: normal {spread.basis} have a PSI of {value:.2f}, the limit "
        f"is {limit:g}: only a PSI above both is drift. To exclude the feature: "
        f'[monitoring.monitor_only] {name} = "why"'
        for name, value in spread.wide_features(spec.monitoring).items()
    ]


def collected(where: str, lines: Iterator[str]) -> list[str]:
    """Return the findings of a check; an error of it is one more."""
    findings = list[str]()
    try:
        findings.extend(lines)
    except Exception as exc:  # noqa: BLE001  (whatever an expression raises)
        findings += in_one_line(exc).splitlines()
    return [placed(where, line) for line in findings]


def placed(where: str, line: str) -> str:
    """Put `where` before a line that does not begin with the name of a file."""
    return line if re.match(r"\S+\.(toml|py|json)\b", line) else f"{where}: {line}"


def _trials(spec: ModelSpec, frame: pa.Table, train: pa.Table) -> Iterator[str]:
    """Fit each estimator on the rows `train`; yield a finding if it cannot be served."""
    for position, estimator in enumerate(spec.estimators):
        place = f"{spec.name}.toml: estimators.{position}"
        try:
            model = fit_pipeline(spec, estimator, train)
            _, proof = served_form(
                model=model,
                spec=spec,
                rows=feature_columns(spec, train),
                all_rows=feature_columns(spec, frame),
                threshold=spec.threshold,
            )
        except TrainingError as exc:
            yield f"{place}: {exc}"
            continue
        for reason in proof.reasons[:1]:
            yield f"{place}: {estimator.name}: {UNPROVED}: {reason}; {EXPORT_REMEDY}"
