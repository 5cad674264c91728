"""The part of `gyre check` about datasets: a use case's files, and a sample of its source's rows."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import DataError
from core.schedule import periods
from core.settings import Settings
from core.spec import ModelSpec
from core.user_code import dataset_names, in_one_line
from feature_engine.ingest.pipeline import whole_history
from feature_engine.ingest.source import place, require_source
from feature_repo.datasets import (
    dataset_of,
    entity_problems,
    load_dataset,
    load_datasets,
)
from feature_repo.definition import Dataset
from feature_repo.engine import LabelSource
from feature_repo.labels import label_source
from feature_repo.published.service import FEATURE_TYPES, PublishedService
from feature_repo.published.store import defined, publish_beside
from feature_repo.rules import suite_file, suite_problems, suite_rules
from training.check import collected, learning_problems, placed, plan_now
from training.data.frame import TIME_TYPE, snapshot_labels
from training.data.snapshots import Snapshot
from training.stages.validate import mismatches

SAMPLE = 10_000
"""Rows of the source, about: all rows of every n-th entity."""


def check_datasets(
    settings: Settings, spec: ModelSpec, as_of: datetime
) -> tuple[list[str], str]:
    """Return all findings, and one line on whether rows of the source were checked."""
    findings = [*late_features(settings, spec)]
    try:
        dataset = load_dataset(str(spec.dataset))
        datasets = [load_dataset(name) for name in dataset_names(dataset.name)]
    except Exception as exc:  # noqa: BLE001  (whatever the module raises)
        findings.append(placed(f"{spec.name}.toml: dataset", in_one_line(exc)))
        return findings, "rows: not checked"
    checks = _file_checks(settings, spec, dataset, datasets)
    file_findings = []
    for place_of_file, lines in checks.items():
        file_findings += collected(place_of_file, lines)
    if file_findings:
        remark = "rows: not checked before the files fit together"
        return findings + file_findings, remark
    try:
        for used_dataset in datasets:
            require_source(settings, used_dataset)
    except DataError as exc:
        return findings, f"rows: not checked, {exc}"
    lines = _rows(settings, spec, dataset, as_of)
    findings += collected(f"{_module(dataset)}: rows", lines)
    return findings, f"rows: a sample of {place(settings, dataset)}"


def _file_checks(
    settings: Settings, spec: ModelSpec, dataset: Dataset, datasets: Sequence[Dataset]
) -> dict[str, Iterator[str]]:
    """Return the checks that need no rows, by the place that their findings are about."""
    module = _module(dataset)
    checks = {
        f"{module}: label {spec.label_name}": _label(spec, dataset),
        f"{module}: service {spec.feature_service}": _service(settings, spec, dataset),
    }
    for used_dataset in datasets:
        module = _module(used_dataset)
        checks[module] = _names(used_dataset)
        checks[f"feature_repo/{suite_file(used_dataset)}"] = _suite(used_dataset)
        for view in defined(used_dataset.name, "FeatureView"):
            if view.name in used_dataset.views:
                checks[f"{module}: view {view.name}"] = _view(used_dataset, view)
    return checks


def _module(dataset: Dataset) -> str:
    return f"feature_repo/datasets/{dataset.name}.py"


def late_features(settings: Settings, spec: ModelSpec) -> Iterator[str]:
    """Yield a finding if features reach their age limit before the next ingest."""
    schedule = settings.ingest_schedule
    period = max(periods(schedule))
    if period >= spec.monitoring.feature_age_limit:
        yield (
            f"{spec.name}.toml: monitoring.freshness_hours: expected more than the "
            f"{period / timedelta(hours=1):g} h that may lie between two ingests "
            f"(GYRE_INGEST_SCHEDULE is {schedule!r}), found {spec.monitoring.freshness_hours:g}: "
            "features would be too old before the second"
        )


def _names(dataset: Dataset) -> Iterator[str]:
    """Yield a finding for each column and each feature view that the dataset names and lacks."""
    columns = {"entity": dataset.entity, "event_time": dataset.event_time}
    columns |= {f"key {name}": name for name in dataset.key}
    yield from _columns(dataset, columns)
    all_datasets, _ = load_datasets()
    problem = entity_problems(all_datasets).get(dataset.name)
    if problem:
        yield problem
    views = {view.name for view in defined(dataset.name, "FeatureView")}
    views = {name for name in views if dataset_of(name) in (None, dataset)}
    if views != set(dataset.views):
        yield f"views: expected its feature views, {sorted(views)}, found {sorted(dataset.views)}"


def _columns(dataset: Dataset, columns: Mapping[str, str]) -> Iterator[str]:
    schema_columns = dataset.schema.names
    for place_of_name, name in columns.items():
        if name not in schema_columns:
            expected = f"expected a column of the schema, {schema_columns}"
            yield f"{place_of_name}: {expected}, found {name!r}"


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
    declared |= {field.name: FEATURE_TYPES.get(str(field.dtype)) for field in fields}
    yield from _missing_columns(dataset.views[view.name](_raw(dataset)), declared)


def _label(spec: ModelSpec, dataset: Dataset) -> Iterator[str]:
    if not isinstance(spec.label, str):
        return
    if spec.label not in dataset.labels:
        names = ", ".join(dataset.labels)
        problem = f"expected one of {dataset.name}: {names}; found {spec.label}"
        yield f"{spec.name}.toml: label: {problem}"
        return
    tables = [_raw(dataset)]
    if spec.snapshots.rows == "members":
        moments = {"event_timestamp": "timestamp('UTC')"}
        tables.append(ibis.table(moments, name="snapshots"))
    rows = dataset.labels[spec.label].expression(*tables)
    label_kind = "class" if spec.classes else "double"
    columns = spec.entity_key | {"event_timestamp": None, "label": label_kind}
    yield from _missing_columns(rows, columns)


def _raw(dataset: Dataset) -> ir.Table:
    schema = dataset.schema.append(pa.field("ingested_at", TIME_TYPE))
    return ibis.table(ibis.Schema.from_pyarrow(schema), name=dataset.name)


def _missing_columns(
    rows: ir.Table, declared: Mapping[str, str | None]
) -> Iterator[str]:
    """Yield a finding for each declared column that an expression lacks or gives in another type."""
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
    """Yield findings where Feast refuses the definitions or the spec does not fit them."""
    services = [service.name for service in defined(dataset.name, "FeatureService")]
    if spec.feature_service not in services:
        expected = f"expected one of {dataset.name}.py, {services}"
        yield f"{spec.name}.toml: feature_service: {expected}, found {spec.feature_service!r}"
        return
    with TemporaryDirectory(prefix="gyre-check-") as home:
        temporary_settings = settings.beside(Path(home))
        publish_beside(temporary_settings, dataset)
        service = PublishedService(temporary_settings, spec.feature_service)
        yield from mismatches(spec, service)


class _Sample:
    """Rows of every n-th entity of the label's dataset, in each source.

    Attributes:
        step: The n of every n-th entity.
        label_rows: All rows of the label's dataset.

    """

    def __init__(self, dataset: Dataset) -> None:
        self.step = 1
        self.label_rows = pa.table({})
        self._dataset = dataset
        self._entities = pa.array([])

    def part(self, source: Dataset, rows: pa.Table) -> pa.Table:
        """Return the rows of `source` that are in the sample; the label's dataset comes first."""
        if source is self._dataset:
            self.label_rows = rows
            self.step = 1 + rows.num_rows // SAMPLE
            self._entities = pc.unique(rows[source.entity]).sort()[:: self.step]
        if source.entity == self._dataset.entity:
            return rows.filter(pc.is_in(rows[source.entity], self._entities))
        return rows  # they name any entity of another kind


def _rows(
    settings: Settings, spec: ModelSpec, dataset: Dataset, as_of: datetime
) -> Iterator[str]:
    """Yield findings where sample rows break schema or suite, or a training cannot learn from them."""
    sample = _Sample(dataset)
    with whole_history(settings, spec, as_of, sample.part) as (history, until):
        source = label_source(history, spec)
        plan = plan_now(spec, source, until)
        findings = [*label_problems(spec, source, sample.label_rows, plan.test)]
        yield from findings
        if not findings:
            yield from learning_problems(history, spec, source, until, sample.step)


def label_problems(
    spec: ModelSpec, source: LabelSource, rows: pa.Table, test: Sequence[Snapshot]
) -> Iterator[str]:
    """Yield a finding if an entity has two labels at one time, or a label changes after its horizon."""
    if not isinstance(spec.label, str):
        return  # a table says itself when a label became known
    label = source.label
    key = [*spec.entity_key, "event_timestamp"]
    horizon_end = pa.scalar(test[-1].last + label.horizon, TIME_TYPE)
    known_rows = rows.filter(pc.field(source.event_time) <= horizon_end)
    tables = []
    for part in (rows, known_rows):
        raw = part.append_column("ingested_at", part[source.event_time])
        label_rows = snapshot_labels(spec, source, test, ibis.memtable(raw))
        tables.append(label_rows.select(*key, "label").to_pyarrow().to_pandas())
    final_labels, known_labels = tables
    repeated = final_labels[final_labels.duplicated(key)]
    if len(repeated):
        first = ", ".join(map(str, repeated[key].iloc[0]))
        yield (
            f"label {spec.label_name}: expected one row for each {', '.join(key)}, found "
            f"{len(repeated)} more, such as for {first}"
        )
    both = final_labels.merge(known_labels, how="left", indicator=True)
    changed_count = int((both["_merge"] == "left_only").sum())
    if changed_count:
        yield (
            f"label {spec.label_name}: expected labels that are known after their horizon of "
            f"{label.horizon}, found {changed_count} of {len(final_labels)} that change with later rows"
        )
