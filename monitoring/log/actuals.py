"""Actual values of logged answers, from raw data or from feedback."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

import ibis
import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from core.settings import Settings
from core.spec import ModelSpec, entity_of
from core.timestamps import BEGINNING
from feature_repo.definition import OWN_PREFIX
from feature_repo.engine import LabelSource
from feature_repo.labels import label_rows, label_source
from feature_repo.published.service import ARROW
from monitoring.log.tables import join_outcomes
from training.data.frame import TIME_TYPE, require_outcome_key, with_typed_labels

DAY = "event_timestamp"
"""Column of a label's moment, which is the beginning of a day here."""
FIRST = f"{OWN_PREFIX}first"
"""Column of the time of an entity's first event in a day."""


def read_actuals(
    spec: ModelSpec,
    source: LabelSource,
    answers: pa.Table,
    feedback: Mapping[str, float],
    as_of: datetime,
) -> tuple[NDArray[np.float64], int]:
    """Return the actual value of each answer.

    Args:
        spec: Spec of the model.
        source: Source of its labels.
        answers: Rows of `predictions`.
        feedback: Actual values by request. A value of raw data is preferred.
        as_of: The moment by which an outcome must be known.

    Returns:
        Actual values, nan where they are not known yet, and the number of answers that fit
        several rows of the label: raw data gives these answers no value.

    """
    requests = answers["request_id"].to_pandas()
    from_feedback = pd.Series(feedback, dtype=float).reindex(requests)
    values = np.array(from_feedback, np.float64)
    ambiguous_count = 0
    if spec.snapshots.rows == "label":
        labelled, ambiguous_count = _row_labels(spec, source, answers, as_of)
    else:
        labelled = _matured_labels(spec, source, answers, as_of)
    labelled = labelled[labelled["label"].notna()]
    values[labelled["place"]] = labelled["label"]
    return values, ambiguous_count


def outcomes_of(
    settings: Settings, spec: ModelSpec, answers: pa.Table, as_of: datetime
) -> NDArray[np.float64]:
    """Return the actual value of each answer, from raw data or feedback; nan: not known at `as_of`.

    Raises:
        DataError: A table cannot be read.

    """
    feedback = join_outcomes(settings, spec, as_of).known
    source = label_source(settings, spec)
    values, _ = read_actuals(spec, source, answers, feedback, as_of)
    return values


def units(spec: ModelSpec, answers: pa.Table) -> pd.DataFrame:
    """Return the keys of each answer's outcome: a day of its entity, or a row of the label.

    Args:
        spec: Spec of the model.
        answers: Rows of `predictions`, with `request_data`.

    """
    keys: pd.DataFrame = answers.select(["entity", "as_of"]).to_pandas()
    if spec.snapshots.rows != "label":
        keys["as_of"] = keys["as_of"].dt.floor("D")
    elif spec.outcome_key:
        sent = [json.loads(text) for text in answers["request_data"].to_pylist()]
        for name in spec.outcome_key:
            keys[name] = pd.Series([data.get(name) for data in sent], dtype=object)
        # Without its key the row that a request is about is not known.
        has_key = keys[[*spec.outcome_key]].notna().all(axis="columns")
        keys["entity"] = keys["entity"].where(has_key)
        del keys["as_of"]
    return keys


def _row_labels(
    spec: ModelSpec, source: LabelSource, answers: pa.Table, as_of: datetime
) -> tuple[pd.DataFrame, int]:
    """Return place and label of each answer, and the number of answers that fit several rows."""
    keyed_answers = units(spec, answers).rename(columns={"as_of": DAY})
    keyed_answers["place"] = range(answers.num_rows)
    keyed_answers = _with_entity_keys(spec, keyed_answers)
    if keyed_answers.empty:
        return keyed_answers.assign(label=np.nan), 0
    outcome_key = spec.outcome_key or {}
    key = [*spec.entity_key, *(outcome_key or [DAY])]
    for name, kind in outcome_key.items():
        keyed_answers[name] = keyed_answers[name].astype(
            "int64" if kind == "int64" else "object"
        )
    with source.opened(as_of, None) as raw:
        moments = [BEGINNING, newest_known(source, as_of)]
        rows = label_rows(raw, source.label, moments, own_rows=True)
        require_outcome_key(spec, rows)
        entities = keyed_answers[[*spec.entity_key]].drop_duplicates()
        rows = rows.semi_join(ibis.memtable(entities), [*spec.entity_key])
        rows = rows.mutate(
            {name: rows[name].cast(kind) for name, kind in outcome_key.items()}
        )
        known_rows = with_typed_labels(
            spec, rows.select(*key, "label").to_pyarrow()
        ).to_pandas()
    is_ambiguous = known_rows.duplicated(key, keep=False)
    certain_rows = known_rows[~is_ambiguous]
    ambiguous_rows = known_rows[is_ambiguous].drop_duplicates(key)
    ambiguous_count = len(keyed_answers.merge(ambiguous_rows, on=key))
    return keyed_answers.merge(certain_rows, on=key), ambiguous_count


def _matured_labels(
    spec: ModelSpec, source: LabelSource, answers: pa.Table, as_of: datetime
) -> pd.DataFrame:
    """Return place and label of each answer whose label has matured, by entity and day (UTC).

    A label belongs to an entity and a day. An answer has no label if the entity had an event on
    that day before the answer.
    """
    known_answers = answers.select(["entity", "as_of"]).to_pandas()
    known_answers["place"] = range(answers.num_rows)
    is_matured = known_answers["as_of"] <= newest_known(source, as_of)
    keyed_answers = _with_entity_keys(spec, known_answers[is_matured])
    if keyed_answers.empty:
        return keyed_answers.assign(label=np.nan)
    keyed_answers[DAY] = keyed_answers["as_of"].dt.floor("D")
    day_labels = _day_labels(spec, source, keyed_answers, as_of)
    labelled_answers = keyed_answers.merge(day_labels, on=[*spec.entity_key, DAY])
    is_after_event = labelled_answers["as_of"] >= labelled_answers[FIRST]
    return labelled_answers[~is_after_event]


def _day_labels(
    spec: ModelSpec, source: LabelSource, answers: pd.DataFrame, as_of: datetime
) -> pd.DataFrame:
    """Return the label of each entity and day of the answers.

    Column `FIRST` has the time of the entity's first event after the day began, NaT if there was
    none.
    """
    owner = source.entity
    days = [day.to_pydatetime() for day in sorted(answers[DAY].unique())]
    last = answers["as_of"].max().to_pydatetime()
    with source.opened(as_of, None) as raw:
        rows = label_rows(raw, source.label, days)
        day_labels = with_typed_labels(spec, rows.to_pyarrow()).to_pandas()
        time = raw[source.event_time]
        within = raw.filter(time.between(days[0], last))
        key = within[owner].cast(spec.entity_key[owner])
        events = within.select({owner: key, FIRST: time}).to_pyarrow()
    event_rows = events.set_column(1, FIRST, events[FIRST].cast(TIME_TYPE)).to_pandas()
    event_rows[DAY] = event_rows[FIRST].dt.floor("D")
    event_rows = event_rows[event_rows[FIRST] > event_rows[DAY]]
    first_events = event_rows.groupby([owner, DAY], as_index=False)[FIRST].min()
    labelled_days: pd.DataFrame = day_labels[[*spec.entity_key, DAY, "label"]]
    return labelled_days.merge(first_events, on=[owner, DAY], how="left")


def newest_known(source: LabelSource, as_of: datetime) -> datetime:
    """Return the last moment whose label is known at `as_of`."""
    return as_of - source.label.horizon - source.label.lateness


def _with_entity_keys(spec: ModelSpec, answers: pd.DataFrame) -> pd.DataFrame:
    """Add the key columns of the entity. Answers without an entity of the spec are left out."""
    rows = []
    for text in answers["entity"].dropna().unique():
        with suppress(TypeError, ValueError):
            rows.append({"entity": text, **entity_of(spec.entity_key, text)})
    kinds = {name: ARROW[kind] for name, kind in spec.entity_key.items()}
    schema = pa.schema(kinds | {"entity": pa.string()})
    keys: pd.DataFrame = pa.Table.from_pylist(rows, schema).to_pandas()
    return answers.merge(keys, on="entity")
