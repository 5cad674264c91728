"""A view is a table: its rows change in one commit, on disk and on S3."""

from pathlib import Path

import pytest

from core.errors import DataError
from feature_repo.views import view_table, write_views
from tests.conftest import new_settings
from tests.feature_repo.test_incremental import ORDERS, VIEW, land, rows_of
from tests.s3 import s3_server


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Two hosts with one bucket, and nothing else in common."""
    with s3_server(tmp_path, monkeypatch):
        yield [
            new_settings(tmp_path / str(n), data_url="s3://gyre/team") for n in range(2)
        ]


def test_another_host_reads_the_new_version_and_fetches_only_new_files(hosts):
    writer, reader = hosts
    write_views(writer, ORDERS, land(writer, [(1, 1, 300, 1.0), (2, 2, 1, 1.0)], 0))
    assert rows_of(reader).equals(rows_of(writer))
    fetched = {
        name: Path(name).stat().st_ino for name in view_table(reader, VIEW).files()
    }
    write_views(writer, ORDERS, land(writer, [(3, 1, 0, 1.0)], 1))
    assert rows_of(reader).equals(rows_of(writer))
    kept = fetched.keys() & {*view_table(reader, VIEW).files()}
    assert kept
    assert all(Path(name).stat().st_ino == fetched[name] for name in kept)
    write_views(
        reader, ORDERS, land(reader, [(4, 2, 0, 1.0)], 2)
    )  # a writer of another host
    assert rows_of(writer).equals(rows_of(reader))


def test_an_uncommitted_refresh_is_invisible_to_readers(tmp_path, monkeypatch):
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
    write_views(settings, ORDERS, raw)
    assert rows_of(settings).num_rows > before.num_rows
