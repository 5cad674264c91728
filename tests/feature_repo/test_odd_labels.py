"""Drawn tables of labels: keys, times and inputs are right, or their row is left out."""

import os
from datetime import UTC, datetime

import ibis
import pandas as pd
import pytest

from core.errors import DataError
from core.spec import load_spec
from feature_repo.labels import label_rows, label_source
from feature_repo.team_tables import open_table
from tests.support.feature_engine.odd.own_types import MISFIT
from tests.support.feature_engine.odd.team_rows import TeamRows
from tests.support.training.loans import MODEL, SPEC

FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 300)
]
KINDS = {"loan_id": "int", "asked": "time", "defaulted": "int", "town": "text"}
SPAN = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))


@pytest.mark.parametrize("seed", [*range(20), *NIGHT])
def test_labels_are_as_they_are_or_left_out(tmp_path, seed):
    (tmp_path / f"{MODEL}.toml").write_text(SPEC)
    spec = load_spec(MODEL, tmp_path)
    rows = TeamRows(seed, KINDS, "loan_id", "town")
    label = spec.label.model_copy(update={"source": rows.write(tmp_path)})
    source = label_source(None, spec.model_copy(update={"label": label}))
    columns = {name: rows.held(name) for name in ("loan_id", "asked", "town")}
    try:
        with source.opened(SPAN[1], None) as opened:
            table = label_rows(opened, source.label, SPAN, own_rows=True).to_pyarrow()
    except DataError as exc:
        message = str(exc)
    else:
        message = ""
    if message:
        # Nothing in a column is a key, or a time.
        is_useless = {name: {*values} == {MISFIT} for name, values in columns.items()}
        assert is_useless["loan_id"] or is_useless["asked"]
        assert (
            "loan_id: expected int64" in message or "asked: expected times" in message
        )
        return
    expected = {
        (key, time, town)
        for key, time, town in zip(*columns.values(), strict=True)
        if MISFIT not in (key, time)
    }
    found = {
        (row["loan_id"], row["event_timestamp"], row["town"])
        for row in table.to_pylist()
        if 1 < row["event_timestamp"].year < 9999
    }
    assert found == expected


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_columns_that_differ_in_case_alone_are_refused(tmp_path, ending):
    """DuckDB takes them for one, and would read the first."""
    file = tmp_path / f"rows.{ending}"
    rows = pd.DataFrame({"Town": ["Bern"], "town": ["Aix"]})
    rows.to_parquet(file) if ending == "parquet" else rows.to_csv(file, index=False)
    with pytest.raises(
        DataError, match="Town and town: expected names of columns that"
    ):
        open_table(ibis.duckdb.connect(), str(file))
