"""Drawn tables of `gyre score --from`: each value is right, or its column and a value are named."""

import os
from datetime import UTC, datetime

import pytest

from core.errors import DataError
from core.spec import load_spec
from tests.conftest import new_settings
from tests.support.feature_engine.odd.own_types import MISFIT
from tests.support.feature_engine.odd.team_rows import TeamRows
from tests.support.training.loans import MODEL, SPEC
from training.data.requests import request_frame, table_rows

FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 300)
]
KINDS = {
    "loan_id": "int",
    "event_timestamp": "time",
    "income": "float",
    "children": "int",
    "town": "text",
}
AS_OF = datetime(9998, 12, 31, tzinfo=UTC)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    (folder / f"{MODEL}.toml").write_text(SPEC)
    return load_spec(MODEL, folder)


@pytest.mark.parametrize("seed", [*range(20), *NIGHT])
def test_rows_to_score_are_as_they_are_or_refused_by_column(tmp_path, spec, seed):
    rows = TeamRows(seed, KINDS, "loan_id", "town")
    address = rows.write(tmp_path)
    settings = new_settings(tmp_path / "home")
    columns = {name: rows.held(name) for name in KINDS}
    faults = [name for name, values in columns.items() if MISFIT in values]
    if faults:
        with pytest.raises(DataError) as refusal:
            request_frame(settings, spec, table_rows(address), AS_OF, "rows")
        found_names = [
            name for name in KINDS if f"{name}: expected " in str(refusal.value)
        ]
        assert found_names == faults
        return
    frame = request_frame(settings, spec, table_rows(address), AS_OF, "rows")
    found = {row["loan_id"]: row for row in frame.to_pylist()}
    assert len(found) == frame.num_rows
    for values in zip(*columns.values(), strict=True):
        expected = dict(zip(columns, values, strict=True))
        row = found[expected["loan_id"]]
        assert {
            name: repr(row[name]) for name in KINDS if name != "event_timestamp"
        } == {
            name: repr(value)
            for name, value in expected.items()
            if name != "event_timestamp"
        }
        assert row["event_timestamp"] == expected["event_timestamp"]
