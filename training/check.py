"""The three files of a use case held against each other, against Feast and a sample of its rows.

A check is a generator of findings, a line each; what a user's expression raises is one too.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import dataset_of, load_dataset
from feature_repo.features import raw_table
from feature_repo.history import whole_history
from feature_repo.source import place
from feature_repo.store import TYPES, FeatureStore, defined, publish_beside
from feature_repo.validation import check as check_rows
from feature_repo.validation import suite, suite_problems
from stack.errors import DataError
from stack.user_code import in_one_line
from training.coverage import coverage
from training.dataset import frame_rules, unlearnable
from training.frame import TIME, at, build_frame, population
from training.onnx_export import build_pipeline
from training.validate import mismatches, plan_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import ibis.expr.types as ir

    from feature_repo.definition import Dataset
    from stack.settings import Settings
    from stack.spec import ModelSpec

SAMPLE = 10_000
"""Rows of the source, about: all rows of every n-th entity."""


def check(settings: Settings, spec: ModelSpec, as_of: datetime) -> tuple[list[str], str]:
    """Return all findings, and one line on whether rows of the source were looked at."""
    file = f"{spec.name}.toml"
    findings = _findings(f"{file}: estimators", _estimators(spec))
    try:
        dataset = load_dataset(spec.dataset)
    except Exception as exc:  # noqa: BLE001  (whatever the module raises)
        return [*findings, _after(f"{file}: dataset", in_one_line(exc))], "rows: not checked"
    module = f"feature_repo/datasets/{dataset.name}.py"
    checks = {
        module: _names(dataset),
        f"{module}: label {spec.label}": _label(spec, dataset),
        f"feature_repo/expectations/{dataset.name}.json": _suite(dataset),
        f"{module}: service {spec.feature_service}": _service(settings, spec, dataset),
    } | {
        f"{module}: view {view.name}": _view(dataset, view)
        for view in defined(dataset, "FeatureView")
        if view.name in dataset.views
    }
    files = [line for where, lines in checks.items() for line in _findings(where, lines)]
    if files:
        return findings + files, "rows: not checked before the files fit together"
    if spec.dataset not in settings.sources and dataset.shipped is None:
        variable = f"GYRE_SOURCES__{dataset.name.upper()}"
        return findings, f"rows: not checked, no source: set {variable} to files or address#table"
    findings += _findings(f"{module}: rows", _rows(settings, spec, dataset, as_of))
    return findings, f"rows: a sample of {place(settings, dataset)}"


def _findings(where: str, lines: Iterator[str]) -> list[str]:
    found = list[str]()
    try:
        found.extend(lines)
    except Exception as exc:  # noqa: BLE001  (whatever an expression raises)
        found += in_one_line(exc).splitlines()
    return [_after(where, line) for line in found]


def _after(where: str, line: str) -> str:
    """Put `where` before a line that does not begin with a file of its own."""
    return line if re.match(r"\S+\.(toml|py|json)\b", line) else f"{where}: {line}"


def _estimators(spec: ModelSpec) -> Iterator[str]:
    """What scikit-learn says of names and values of parameters."""
    for each in spec.estimators:
        try:
            made = build_pipeline(each.type, each.parameters, spec.features, spec.seed, spec.task)
            made["estimator"]._validate_params()  # noqa: SLF001  (no public way but to fit)
        except (ValueError, TypeError) as exc:
            yield f"{each.name}: {exc}"
    if any(each.space for each in spec.estimators):
        from training.search import check_spaces

        check_spaces(spec)


def _names(dataset: Dataset) -> Iterator[str]:
    """Columns of the schema and feature views that the dataset names."""
    columns, named = dataset.schema.names, {"entity": dataset.entity}
    named |= {"event_time": dataset.event_time} | {f"key {name}": name for name in dataset.key}
    for argument, name in named.items():
        if name not in columns:
            yield f"{argument}: expected a column of the schema, {columns}, found {name!r}"
    views = {view.name for view in defined(dataset, "FeatureView")}
    views = {name for name in views if dataset_of(name) in (None, dataset)}
    if views != set(dataset.views):
        yield f"views: expected its feature views, {sorted(views)}, found {sorted(dataset.views)}"


def _view(dataset: Dataset, view: Any) -> Iterator[str]:
    fields = (*view.entity_columns, *view.features)
    times = view.batch_source.timestamp_field, view.batch_source.created_timestamp_column
    declared = {field.name: TYPES.get(str(field.dtype)) for field in fields}
    declared |= {name: None for name in times if name}
    yield from _given(dataset.views[view.name](_raw(dataset)), declared)


def _label(spec: ModelSpec, dataset: Dataset) -> Iterator[str]:
    if spec.label in dataset.labels:  # else `mismatches` says it
        snapshots = ibis.table({"event_timestamp": "timestamp('UTC')"}, name="snapshots")
        rows = dataset.labels[spec.label].expression(_raw(dataset), snapshots)
        yield from _given(rows, spec.entity_key | {"event_timestamp": None, "label": "double"})


def _raw(dataset: Dataset) -> ir.Table:
    schema = dataset.schema.append(pa.field("ingested_at", TIME))
    return ibis.table(ibis.Schema.from_pyarrow(schema), name=dataset.name)


def _given(rows: ir.Table, declared: Mapping[str, str | None]) -> Iterator[str]:
    """Say which of the declared columns an expression does not give in their type."""
    for name, kind in declared.items():
        if name not in rows.columns:
            yield f"expected a column {name} of the expression, found {', '.join(rows.columns)}"
            continue
        found = rows.schema()[name]
        number = found.is_numeric() or found.is_boolean()
        if not {"int64": found.is_integer(), "double": number, "string": found.is_string()}.get(
            kind or "", True
        ):
            yield f"{name}: expected {kind}, found {found}"


def _suite(dataset: Dataset) -> Iterator[str]:
    if problems := suite_problems(dataset.name):
        yield from problems
        return
    columns = dataset.schema.names
    for number, rule in enumerate(suite(dataset.name)["expectations"], 1):
        asked = rule.get("kwargs", {})
        names = {asked[key] for key in ("column", "column_A", "column_B") if key in asked}
        names |= {*asked.get("column_list", ()), *asked.get("column_set", ())}
        for name in sorted(names.difference(columns)):
            where = f"rule {number}: {rule['type']}"
            yield f"{where}: expected a column of the schema, {columns}, found {name!r}"


def _service(settings: Settings, spec: ModelSpec, dataset: Dataset) -> Iterator[str]:
    """Feast takes the definitions, and gives what the spec asks for."""
    services = [service.name for service in defined(dataset, "FeatureService")]
    if spec.feature_service not in services:
        expected = f"expected one of {dataset.name}.py, {services}"
        yield f"{spec.name}.toml: feature_service: {expected}, found {spec.feature_service!r}"
        return
    with TemporaryDirectory(prefix="gyre-check-") as home:
        beside = settings.model_copy(update={"home": Path(home)})
        publish_beside(beside, dataset)
        yield from mismatches(spec, dataset, FeatureStore(beside))


def _rows(settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime) -> Iterator[str]:
    """Rows hold schema and suite, and a training can learn from what is made of them."""

    def sample(rows: pa.Table) -> pa.Table:
        found = dict(zip(rows.schema.names, rows.schema.types, strict=True))
        other = [field for field in dataset.schema if found.get(field.name) != field.type]
        lines = [f"{f.name}: expected {f.type}, found {found.get(f.name, 'none')}" for f in other]
        if lines:
            raise DataError("\n".join(lines))
        known = pc.unique(rows[dataset.entity]).sort()
        return rows.filter(pc.is_in(rows[dataset.entity], known[:: 1 + rows.num_rows // SAMPLE]))

    with whole_history(settings, dataset, as_of, sample) as (beside, until):
        version = raw_table(beside, dataset).version
        planned = plan_run(beside, spec, dataset, until, version)
        moments = (*planned.train, planned.test)
        frame = build_frame(beside, spec, dataset, moments, until, version)
        test = at(frame, [planned.test])
        for broken in check_rows(spec.name, frame_rules(spec), frame, {}).rejections:
            yield f"label {spec.label}: {broken.message}"
        yield from unlearnable(spec, at(frame, planned.train), test, fewest=1)
        members = population(beside, spec, dataset, planned.test)
        covered = coverage(spec, test, members, dataset.labels[spec.label].unlabelled)
        if covered.refusal:
            yield f"label {spec.label}: {planned.test:%Y-%m-%d}: {covered.refusal}"
