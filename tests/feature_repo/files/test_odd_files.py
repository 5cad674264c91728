"""Drawn parquet files of a view: our store gives the values of Feast's own, or names the fault."""

import os
import re

import pytest

from core.errors import DataError
from tests.support.feature_repo.odd_files import OddFiles
from tests.support.feature_repo.parquet_files import stores_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:Merging dataframes with merge column"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning"),
]
FIRST = int(os.environ["ODD_SEED"])
NIGHT = [
    pytest.param(number, marks=pytest.mark.nightly)
    for number in range(FIRST, FIRST + 300)
]
REFUSED_HERE = (
    "expected a type that holds the values of all files",
    "expected a column as in the other files",
    "expected a decimal of at most 38 digits",
    "expected names of columns that differ in more than case",
    "expected a name that Feast does not give a column of its own",
    "expected another name of a column beside columns of folders",
    "expected a path without a backslash",
)
"""Messages about files of which Feast's own client may know the values, by luck or by pandas."""


@pytest.mark.parametrize("seed", [*range(20), *NIGHT])
def test_values_are_those_of_feasts_own_client_or_refused_by_name(tmp_path, seed):
    files = OddFiles(seed, tmp_path)
    stores = stores_of(tmp_path, files.objects)
    require_right_rows(files, stores, files.historical, files.right_historical())
    require_right_rows(files, stores, files.latest, files.right_latest())


def require_right_rows(files, stores, ask, right_rows):
    """Require the rows of a search by hand, or an error where Feast's own client is wrong, too.

    A column whose types differ between files has the values that Feast's own client makes of them.
    """
    stock, ours = stores
    stock_rows = rows_of_stock(ask, stock)
    try:
        our_rows = ask(ours)
    except DataError as exc:
        message = str(exc)
        assert any(name in message for name in (*files.names, str(files.folder)))
        is_stock_right = stock_rows and not wrong_values(files, stock_rows, right_rows)
        assert not is_stock_right or re.search("|".join(REFUSED_HERE), message)
        return
    assert our_rows.keys() == right_rows.keys()
    for place, name, value in wrong_values(files, our_rows, right_rows):
        # Of whole numbers beside others, pandas makes doubles.
        assert len(files.types[name]) > 1
        assert value in [float(row[name]) for row in right_rows[place]]


def rows_of_stock(ask, stock):
    """Return the rows of Feast's own client; None: it fails."""
    try:
        return ask(stock)
    except Exception:  # noqa: BLE001  (dask fails in many ways)
        return None


def wrong_values(files, rows, right_rows):
    """Return places, features and values where rows have none of the right values."""
    wrong = []
    for place, candidates in right_rows.items():
        values = rows.get(place, {})
        wrong += [
            (place, name, values.get(name))
            for name in files.features
            if values.get(name) not in [row.get(name) for row in candidates]
        ]
    return wrong
