"""The three files of a use case held against each other, against Feast and a sample of its rows.

A check is a generator of findings, a line each; what a user's expression raises is one too.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DataError, TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names, in_one_line
from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.definition import Dataset
from feature_repo.features import raw_table
from feature_repo.ingest import whole_history
from feature_repo.service import TYPES, PublishedService
from feature_repo.source import place, require_source
from feature_repo.store import defined, publish_beside
from feature_repo.validation import suite_file, suite_problems, suite_rules
from training.dataset import FEWEST, coverage, unlearnable, without_label
from training.estimators import estimator_problems
from training.frame import TIME, at, build_frame, extent, features
from training.onnx_export import REMEDY, exported, prove
from training.train import fit_pipeline
from training.validate import mismatches, plan_run

log = logging.getLogger(__name__)
SAMPLE = 10_000
"""Rows of the source, about: all rows of every n-th entity."""


def check(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> tuple[list[str], str]:
    """Return all findings, and one line on whether rows of the source were looked at."""
    file = f"{spec.name}.toml"
    findings = [*estimator_problems(spec)]
    try:
        dataset = load_dataset(spec.dataset)
    except Exception as exc:  # noqa: BLE001  (whatever the module raises)
        return [
            *findings,
            _placed(f"{file}: dataset", in_one_line(exc)),
        ], "rows: not checked"
    module = f"feature_repo/datasets/{dataset.name}.py"
    checks = {
        f"{module}: label {spec.label}": _label(spec, dataset),
        f"{module}: service {spec.feature_service}": _service(settings, spec, dataset),
    }
    datasets = [load_dataset(name) for name in dataset_names(spec.dataset)]
    for each in datasets:
        file = f"feature_repo/datasets/{each.name}.py"
        checks[file] = _names(each)
        checks[f"feature_repo/{suite_file(each)}"] = _suite(each)
        for view in defined(each.name, "FeatureView"):
            if view.name in each.views:
                checks[f"{file}: view {view.name}"] = _view(each, view)
    of_files = [
        line for where, lines in checks.items() for line in _findings(where, lines)
    ]
    if of_files:
        return findings + of_files, "rows: not checked before the files fit together"
    try:
        for each in datasets:
            require_source(settings, each)
    except DataError as exc:
        return findings, f"rows: not checked, {exc}"
    findings += _findings(f"{module}: rows", _rows(settings, spec, dataset, as_of))
    return findings, f"rows: a sample of {place(settings, dataset)}"


def _findings(where: str, lines: Iterator[str]) -> list[str]:
    findings = list[str]()
    try:
        findings.extend(lines)
    except Exception as exc:  # noqa: BLE001  (whatever an expression raises)
        findings += in_one_line(exc).splitlines()
    return [_placed(where, line) for line in findings]


def _placed(where: str, line: str) -> str:
    """Put `where` before a line that does not begin with a file of its own."""
    return line if re.match(r"\S+\.(toml|py|json)\b", line) else f"{where}: {line}"


def _names(dataset: Dataset) -> Iterator[str]:
    """Columns of the schema and feature views that the dataset names."""
    named = {"entity": dataset.entity, "event_time": dataset.event_time}
    named |= {f"key {name}": name for name in dataset.key}
    yield from _columns(dataset, named)
    views = {view.name for view in defined(dataset.name, "FeatureView")}
    views = {name for name in views if dataset_of(name) in (None, dataset)}
    if views != set(dataset.views):
        yield f"views: expected its feature views, {sorted(views)}, found {sorted(dataset.views)}"


def _columns(dataset: Dataset, named: Mapping[str, str]) -> Iterator[str]:
    columns = dataset.schema.names
    for where, name in named.items():
        if name not in columns:
            yield f"{where}: expected a column of the schema, {columns}, found {name!r}"


def _suite(dataset: Dataset) -> Iterator[str]:
    problems = suite_problems(dataset)
    yield from problems
    rules = [] if problems else suite_rules(dataset)
    for number, rule in enumerate(rules, 1):
        arguments = rule.get("kwargs", {})
        names = {
            arguments[key]
            for key in ("column", "column_A", "column_B")
            if key in arguments
        }
        names |= {*arguments.get("column_list", ()), *arguments.get("column_set", ())}
        for name in sorted(names):
            yield from _columns(dataset, {f"rule {number}: {rule['type']}": name})


def _view(dataset: Dataset, view: Any) -> Iterator[str]:
    fields = (*view.entity_columns, *view.features)
    times = (
        view.batch_source.timestamp_field,
        view.batch_source.created_timestamp_column,
    )
    declared = {name: None for name in times if name}
    declared |= {field.name: TYPES.get(str(field.dtype)) for field in fields}
    yield from _given(dataset.views[view.name](_raw(dataset)), declared)


def _label(spec: ModelSpec, dataset: Dataset) -> Iterator[str]:
    if spec.label in dataset.labels:  # else `mismatches` says it
        snapshots = ibis.table(
            {"event_timestamp": "timestamp('UTC')"}, name="snapshots"
        )
        given = (
            [_raw(dataset)]
            if spec.snapshots.rows == "label"
            else [_raw(dataset), snapshots]
        )
        rows = dataset.labels[spec.label].expression(*given)
        label = "class" if spec.classes else "double"
        yield from _given(
            rows, spec.entity_key | {"event_timestamp": None, "label": label}
        )


def _raw(dataset: Dataset) -> ir.Table:
    schema = dataset.schema.append(pa.field("ingested_at", TIME))
    return ibis.table(ibis.Schema.from_pyarrow(schema), name=dataset.name)


def _given(rows: ir.Table, declared: Mapping[str, str | None]) -> Iterator[str]:
    """Say which of the declared columns an expression does not give in their type."""
    for name, kind in declared.items():
        if name not in rows.columns:
            yield f"expected a column {name} of the expression, found {', '.join(rows.columns)}"
            continue
        type_ = rows.schema()[name]
        fits = {
            "int32": type_.is_integer(),
            "int64": type_.is_integer(),
            "float32": type_.is_numeric(),
            "double": type_.is_numeric() or type_.is_boolean(),
            "bool": type_.is_boolean(),
            "timestamp": type_.is_timestamp(),
            "string": type_.is_string(),
            "class": type_.is_string() or type_.is_integer(),
        }
        if kind in fits and not fits[kind]:
            yield f"{name}: expected {kind}, found {type_}"


def _service(settings: Settings, spec: ModelSpec, dataset: Dataset) -> Iterator[str]:
    """Feast takes the definitions, and gives what the spec asks for."""
    services = [service.name for service in defined(dataset.name, "FeatureService")]
    if spec.feature_service not in services:
        expected = f"expected one of {dataset.name}.py, {services}"
        yield f"{spec.name}.toml: feature_service: {expected}, found {spec.feature_service!r}"
        return
    with TemporaryDirectory(prefix="gyre-check-") as home:
        beside = settings.beside(Path(home))
        publish_beside(beside, dataset)
        service = PublishedService(beside, spec.feature_service)
        yield from mismatches(spec, dataset, service)


def _rows(
    settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime
) -> Iterator[str]:
    """Rows hold schema and suite, and a training can learn from what is made of them."""
    share, known = 1, pa.array([])

    def sample(of: Dataset, rows: pa.Table) -> pa.Table:
        nonlocal share, known
        if of is dataset:
            share = 1 + rows.num_rows // SAMPLE
            known = pc.unique(rows[of.entity]).sort()[::share]
        # Of another entity all: rows name any of them.
        same = of.entity == dataset.entity
        return rows.filter(pc.is_in(rows[of.entity], known)) if same else rows

    with whole_history(settings, spec, as_of, sample) as (beside, until):
        version = raw_table(beside, dataset).version
        planned = plan_run(beside, spec, dataset, until, version)
        used = (*planned.train, *planned.test)
        frame = build_frame(beside, spec, dataset, used, until, version)
        log.info(extent(spec, planned, frame, share))
        test = at(frame, planned.test)
        fewest = FEWEST if share == 1 else 1
        problems = unlearnable(spec, at(frame, planned.train), test, fewest)
        yield from problems or _trials(spec, frame, at(frame, planned.train))
        lacking = without_label(beside, spec, planned, test).num_rows
        reason = dataset.labels[spec.label].unlabelled
        # Raises what is one more finding.
        coverage(spec, lacking, test.num_rows + lacking, reason)


def _trials(spec: ModelSpec, frame: pa.Table, train: pa.Table) -> Iterator[str]:
    """Fit each estimator on the rows `train`; say what keeps it from being served."""
    for number, each in enumerate(spec.estimators):
        where = f"{spec.name}.toml: estimators.{number}"
        try:
            model = fit_pipeline(spec, each, train)
            served = exported(model, spec)
        except TrainingError as exc:
            yield f"{where}: {exc}"
            continue
        rows, types = features(spec, frame), spec.inputs
        proof = prove(
            model, served, rows, spec.seed, features=types, threshold=spec.threshold
        )
        for found in proof.reasons[:1]:
            yield f"{where}: {each.name}: what is served scores otherwise: {found}; {REMEDY}"
