"""A view is a table: it is kept up to date, and its rows change in one commit, on disk and on S3."""

import shutil
from pathlib import Path

import pytest

from core.errors import DataError
from feature_engine.offline.views import view_table, write_views
from feature_repo.published.config import view_address
from tests.conftest import new_settings
from tests.support.feature_engine.rebuilt_views import land, rebuilt, rows_of
from tests.support.feature_engine.shop import ORDERS, VIEW
from tests.support.stores.s3 import s3_server


def assert_written_as_rebuilt(settings, raw):
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).equals(rebuilt(settings, raw))


def test_a_view_is_computed_in_full_if_history_or_its_own_rows_are_missing(tmp_path):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 9, 1.0), (2, 2, 9, 1.0)], 0))
    raw = land(settings, [(1, 3, 5, 1.0)], 1)
    raw.purge()
    assert_written_as_rebuilt(settings, raw)
    shutil.rmtree(view_address(settings, VIEW))
    assert_written_as_rebuilt(settings, raw)
    raw.path.rename(raw.path.with_name("gone"))
    for hour in range(2):
        raw = land(settings, [(7 + hour, 7, 3, 1.0)], hour)
    write_views(settings, ORDERS, raw)
    assert set(rows_of(settings)["customer_id"].to_pylist()) == {7}


def inodes(settings):
    """The inode of each file of the view on this host."""
    files = view_table(settings, VIEW).files()
    return {name: Path(name).stat().st_ino for name in files}


@pytest.mark.journey
def test_another_host_reads_the_new_version_and_fetches_only_new_files(
    tmp_path, monkeypatch
):
    with s3_server(tmp_path, monkeypatch):
        bucket = {"data_url": "s3://gyre/team"}
        writer = new_settings(tmp_path / "writer", **bucket)
        reader = new_settings(tmp_path / "reader", **bucket)
        raw = land(writer, [(1, 1, 300, 1.0), (2, 2, 1, 1.0)], 0)
        write_views(writer, ORDERS, raw)
        assert rows_of(reader).equals(rows_of(writer))
        old = inodes(reader)
        write_views(writer, ORDERS, land(writer, [(3, 1, 0, 1.0)], 1))
        assert rows_of(reader).equals(rows_of(writer))
        new = inodes(reader)
        assert 0 < len(old.keys() & new.keys()) == len(old.items() & new.items())
        # Another host writes.
        write_views(reader, ORDERS, land(reader, [(4, 2, 0, 1.0)], 2))
        assert rows_of(writer).equals(rows_of(reader))


def test_an_uncommitted_refresh_is_invisible_to_readers(tmp_path):
    settings = new_settings(tmp_path)
    write_views(settings, ORDERS, land(settings, [(1, 1, 9, 1.0)], 0))
    before = rows_of(settings)
    raw = land(settings, [(2, 1, 3, 1.0)], 1)
    log = settings.data / "features" / VIEW / "_delta_log"
    commit = log / f"{len([*log.glob('*.json')]):020}.json"
    commit.mkdir()  # where the next one would be
    with pytest.raises(DataError, match=VIEW):
        write_views(settings, ORDERS, raw)
    commit.rmdir()
    assert rows_of(settings).equals(before)
    assert_written_as_rebuilt(settings, raw)
