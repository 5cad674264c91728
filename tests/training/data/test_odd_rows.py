"""Drawn tables of `gyre score --from`: each value is right, or its row is left out."""

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
def test_rows_to_score_are_as_they_are_or_left_out(tmp_path, caplog, spec, seed):
    rows = TeamRows(seed, KINDS, "loan_id", "town")
    address = rows.write(tmp_path)
    settings = new_settings(tmp_path / "home")
    columns = {name: rows.held(name) for name in KINDS}
    faults = [name for name, values in columns.items() if MISFIT in values]
    good_rows = [
        values for values in zip(*columns.values(), strict=True) if MISFIT not in values
    ]
    is_useless = any({*values} - {None} == {MISFIT} for values in columns.values())
    if is_useless or not good_rows:
        with pytest.raises(DataError) as refusal:
            request_frame(settings, spec, table_rows(address), AS_OF, "rows")
        words = str(refusal.value)
    else:
        frame = request_frame(settings, spec, table_rows(address), AS_OF, "rows")
        words = caplog.text
    found_names = [name for name in KINDS if f"{name}: expected " in words]
    assert found_names == faults
    if is_useless or not good_rows:
        return
    found = {row["loan_id"]: row for row in frame.to_pylist()}
    assert len(found) == frame.num_rows
    for values in good_rows:
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
