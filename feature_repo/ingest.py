"""Ingest: what is due at the source becomes tables, feature rows and online values.

pull → validate → quarantine and merge → features → materialise. Each step can be repeated: rows
are merged by key, the feature file is switched when complete, online writes are the same again.
Events land without it (feature_repo/consumer.py), also while it is under way: of a key the newest
arrival wins.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_repo.datasets import load_dataset
from feature_repo.definition_check import (
    DefinitionChangedError,
    alert_changed,
    check_definitions,
)
from feature_repo.entities import EntityFeatures
from feature_repo.features import (
    TIME,
    forget_online,
    news,
    note_online,
    open_raw,
    raw_table,
    redefined,
    write_views,
)
from feature_repo.freshness import record_freshness
from feature_repo.source import place, pull
from feature_repo.store import FeatureStore
from feature_repo.validation import validate
from stack.errors import BatchRejectedError, DataError
from stack.storage import Table, one_writer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

    from feature_repo.definition import Dataset
    from feature_repo.validation import Validation
    from stack.settings import Settings

MANY = 5_000
"""Rows that came late or went, from which writing every entity anew is cheaper."""


@dataclass(frozen=True)
class IngestReport:
    """Rows, by what became of them, and the table's version afterwards."""

    dataset: str
    as_of: datetime
    inserted: int = 0
    replaced: int = 0
    quarantined: int = 0
    table_version: int = -1
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def summary(self) -> str:
        what = f"{self.inserted} new, {self.replaced} corrected, {self.quarantined} quarantined"
        head = f"{self.dataset} as of {self.as_of:%Y-%m-%d %H:%M} UTC: {what}"
        return "; ".join((head, f"table version {self.table_version}", *self.warnings))

    def as_json(self) -> dict[str, object]:
        return asdict(self) | {"as_of": self.as_of.isoformat()}


def quarantine_table(settings: Settings, dataset: Dataset) -> Table:
    """Rows set aside: when, by which rules, and the row as JSON (its types may be the fault)."""
    schema = pa.schema({"quarantined_at": TIME, "rules": pa.string(), "row": pa.string()})
    return Table(settings.data / "quarantine" / dataset.name, schema)


def ingest(settings: Settings, name: str, as_of: datetime, *, full: bool = False) -> IngestReport:
    """Bring dataset `name` to `as_of`.

    full: read all of the source, not only its newest rows, as the first ingest of a day (UTC) does:
    it finds what was corrected before the look-back.

    Raises:
        BatchRejectedError: the batch broke a rule as a whole; tables and features are as before.
        DefinitionChangedError: see `catch_up`; the rows are in the table.
        DataError: source or table cannot be read or written, or another ingest goes on.

    """
    dataset = load_dataset(name)
    with one_writer(settings.data / name):
        report = _ingest(settings, dataset, as_of, full=full)
        record_freshness(settings, name)
    return report


def _ingest(settings: Settings, dataset: Dataset, as_of: datetime, *, full: bool) -> IngestReport:
    table, store = raw_table(settings, dataset), FeatureStore(settings)
    last = store.watermark(dataset)
    full = full or last is None or last.date() < as_of.date()
    since = None if full else _read_from(table, dataset, as_of)
    new, silent = _news_of_source(settings, dataset, as_of, since)
    report = IngestReport(dataset.name, as_of, table_version=table.version)
    if new.num_rows:
        checked = validate(dataset, new, as_of, settings.data_docs)
        _stop_if_rejected(settings, dataset, checked, as_of)
        report = _land(settings, dataset, new, checked, as_of)
    catch_up(settings, dataset, store, table, as_of)
    return replace(report, warnings=(*silent, *report.warnings))


def land_all(settings: Settings, dataset: Dataset, rows: pa.Table, as_of: datetime) -> None:
    """Make table and views of all of a source's rows, by the same rules; nothing goes online.

    Raises:
        BatchRejectedError: the rows broke a rule as a whole.

    """
    rows = _newest_of_key(rows, dataset)
    checked = validate(dataset, rows, as_of)
    if broken := "; ".join(finding.message for finding in checked.rejections):
        raise BatchRejectedError(f"{dataset.name}: {place(settings, dataset)}: {broken}")
    _land(settings, dataset, rows, checked, as_of)
    write_views(settings, dataset, raw_table(settings, dataset))


def catch_up(
    settings: Settings, dataset: Dataset, store: FeatureStore, table: Table, as_of: datetime
) -> None:
    """Bring views and online store to what the table holds.

    From the tables, not from a batch: a run that was killed may have landed rows before. What went
    or was late says nothing of itself at a later time, so its entities are brought online anew.

    Raises:
        DefinitionChangedError: the code would change what a version in a role is served; the
            values of the views and those online stay.

    """
    if redefined(settings, dataset, table):
        try:
            check_definitions(settings, f"gyre ingest {dataset.name}", dataset=dataset.name)
        except DefinitionChangedError as exc:
            alert_changed(settings, dataset.name, exc, as_of)
            raise
    online = EntityFeatures(settings, dataset, table)
    with online.turn():
        pass  # events whose values were computed without the rows landed here are online now
    write_views(settings, dataset, table)
    changed, last = news(settings, dataset, table), store.watermark(dataset)
    if changed is not None and last is not None:
        late = pc.less_equal(changed[dataset.event_time], pa.scalar(last, TIME))
        changed = changed.filter(pc.or_(changed["gone"], late))
    every = changed is None or changed.num_rows > MANY
    if every:
        forget_online(settings, dataset)
    store.materialise(dataset, as_of, rewrite=every)
    if changed is not None and not every:
        online.bring_online(changed.to_pylist(), as_of)
    note_online(settings, dataset)
    meanwhile = news(settings, dataset, table)
    if meanwhile is not None:  # events whose values were online before those of the views
        online.bring_online(meanwhile.to_pylist(), as_of)
    online.close()


def _news_of_source(
    settings: Settings, dataset: Dataset, as_of: datetime, since: datetime | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """What the source says that neither table nor quarantine holds, and a word if it is silent.

    A source may keep a row that it corrected since by one dated before `since`. So where a row
    read would correct the table, all rows of its key are read, and the last of them counts.
    """
    table = raw_table(settings, dataset)

    def unknown(rows: pa.Table) -> pa.Table:
        return _unknown_rows(settings, _newest_of_key(rows, dataset), table, dataset)

    delivered = pull(settings, dataset, as_of, since)
    new = unknown(delivered)
    keys = _corrected(new, table, dataset) if since else []
    if keys:
        others = new.filter(pc.invert(pc.is_in(new[dataset.key[0]], pa.array(keys))))
        again = unknown(pull(settings, dataset, as_of, keyed=keys))
        new = pa.concat_tables([others, again])
    silent = () if delivered.num_rows else (f"{place(settings, dataset)} delivered no rows",)
    return new, silent


def _corrected(rows: pa.Table, table: Table, dataset: Dataset) -> list[Any]:
    """First columns of the keys of those `rows` whose key the table holds."""
    if not (table.exists and rows.num_rows and rows.schema.remove_metadata() == dataset.schema):
        return []
    known = ibis.memtable(rows).semi_join(open_raw(table), dataset.key)
    found: list[Any] = known[dataset.key[0]].to_pyarrow().unique().to_pylist()
    return found


def _read_from(table: Table, dataset: Dataset, as_of: datetime) -> datetime | None:
    if not table.exists:
        return None
    newest: datetime = open_raw(table)[dataset.event_time].max().to_pyarrow().as_py()
    return min(newest, as_of) - dataset.look_back


def _newest_of_key(rows: pa.Table, dataset: Dataset) -> pa.Table:
    """Drop exact repeats; of rows that share a key the last in the source's order stays.

    Rows without a key pass: quarantine names them.
    """
    if not set(dataset.key) <= set(rows.column_names):
        return rows  # the suite names the missing column
    numbered = rows.append_column("_position", pa.array(np.arange(rows.num_rows)))
    keyed = pc.is_valid(numbered[dataset.key[0]])
    for name in dataset.key[1:]:
        keyed = pc.and_(keyed, pc.is_valid(numbered[name]))
    last = numbered.filter(keyed).group_by(list(dataset.key)).aggregate([("_position", "max")])
    stay = pa.concat_arrays(
        [
            last["_position_max"].combine_chunks(),
            numbered.filter(pc.invert(keyed))["_position"].combine_chunks(),
        ]
    )
    return rows.take(stay.take(pc.sort_indices(stay)))


def _unknown_rows(settings: Settings, rows: pa.Table, table: Table, dataset: Dataset) -> pa.Table:
    """Rows whose content neither the table nor quarantine holds: new keys and corrections.

    What an event superseded was delivered before: it is none.

    Compared only where the columns are those of the dataset; else the suite has the word.
    """
    if not (table.exists and rows.num_rows and rows.schema.remove_metadata() == dataset.schema):
        return rows
    columns, known = dataset.schema.names, open_raw(table)
    superseded = known.filter(known.superseded.notnull()).superseded.to_pyarrow().to_pylist()
    times = pc.min_max(rows[dataset.event_time]).as_py()
    if times["min"]:
        known = known.filter(known[dataset.event_time].between(times["min"], times["max"]))
    rows = ibis.memtable(rows).anti_join(known.select(columns), columns).to_pyarrow()
    rows = rows.cast(dataset.schema)
    aside = {*superseded, *quarantine_table(settings, dataset).read()["row"].to_pylist()}
    return rows.filter(pa.array([row not in aside for row in as_json(rows)], pa.bool_()))


def as_json(rows: pa.Table) -> list[str]:
    return [json.dumps(row, default=str, sort_keys=True) for row in rows.to_pylist()]


def _stop_if_rejected(
    settings: Settings, dataset: Dataset, checked: Validation, as_of: datetime
) -> None:
    if not checked.rejections:
        return
    folder = settings.home / "reports" / "ingest"
    folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / f"{dataset.name}-{as_of:%Y%m%dT%H%M%S}.json"
    path.write_text(json.dumps(checked.report, default=str))
    broken = "; ".join(finding.message for finding in checked.rejections)
    raise BatchRejectedError(
        f"{dataset.name}: the batch of {place(settings, dataset)} was stopped, "
        f"nothing was changed: {broken}. Rules: expectations/{dataset.name}.json. Report: {path}"
    )


def _land(
    settings: Settings, dataset: Dataset, batch: pa.Table, checked: Validation, as_of: datetime
) -> IngestReport:
    table, bad = raw_table(settings, dataset), checked.bad_rows()
    good = pa.array(i not in bad for i in range(batch.num_rows))
    try:
        rows = batch.filter(good).cast(dataset.schema)
    except (pa.ArrowException, ValueError) as exc:  # of a database, where the suite has no rule
        wrong = f"{place(settings, dataset)}: nothing was changed: {dataset.differences(batch)}"
        raise DataError(f"{dataset.name}: {wrong}: {exc}") from exc
    known_at = rows[dataset.event_time].cast(TIME) if not table.exists else _constant(rows, as_of)
    merged = table.merge(
        rows.append_column("ingested_at", known_at),
        dataset.key,
        dataset.schema.names,
        "ingested_at",
    )
    texts = as_json(batch.take([*bad])) if bad else []
    quarantine(quarantine_table(settings, dataset), texts, [*bad.values()], as_of)
    return IngestReport(
        dataset.name, as_of, merged["inserted"], merged["replaced"], len(bad), table.version,
        warnings=tuple(warning.message for warning in checked.warnings),
    )  # fmt: skip


def _constant(rows: pa.Table, as_of: datetime) -> pa.Array:
    return pa.array([as_of] * rows.num_rows, TIME)


def quarantine(table: Table, rows: Sequence[str], rules: Sequence[str], at: datetime) -> None:
    """Write rows (JSON) with the rules they broke, once: one that is there already stays."""
    if not rows:
        return
    times = pa.array([at] * len(rows), TIME)
    found = pa.table({"quarantined_at": times, "rules": rules, "row": rows})
    table.merge(found, key=("row",), content=("rules",))
