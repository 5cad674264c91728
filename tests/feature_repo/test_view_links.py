"""Where views are on S3, a host has all rows of one folder, or says that it has not."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from feature_repo.view_links import fetch, point, publish, view_path
from tests.conftest import new_settings
from tests.s3 import s3_server

ONE, TWO = (f"v.{'a' * 16}.{version}" for version in (1, 2))


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch, s3_server(folder, patch):
        yield "s3://gyre"


@pytest.fixture
def hosts(bucket, tmp_path):
    url = f"{bucket}/{tmp_path.name}"
    return [new_settings(tmp_path / str(n), data_url=url) for n in range(2)]


def write(settings, folder, old, **files):
    for name, value in files.items():
        place = settings.features / folder / f"period={name[1]}"
        place.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"n": [value]}), place / f"{name}.parquet")
    publish(settings, "v", folder, old)
    point(settings, view_path(settings, "v"), folder)


def rows(settings):
    fetch(settings, "v")
    files = view_path(settings, "v").resolve().glob("*/*.parquet")
    return sorted(pq.read_table(file)["n"][0].as_py() for file in files)


def test_another_host_has_what_was_published_and_downloads_what_is_new(hosts):
    writer, reader = hosts
    write(writer, ONE, "", p1=1, p2=2)
    assert rows(reader) == [1, 2]
    before = (view_path(reader, "v") / "period=1" / "p1.parquet").stat().st_ino
    write(writer, TWO, ONE, p1=1, q2=3)
    assert rows(reader) == [1, 3]
    assert (view_path(reader, "v") / "period=1" / "p1.parquet").stat().st_ino == before


def test_a_folder_that_ingest_is_writing_is_left_alone(hosts):
    writer, reader = hosts
    write(writer, ONE, "", p1=1)
    for name in (f"{TWO}.part", "v.spill.xyz"):
        (reader.features / name).mkdir(parents=True)
    assert rows(reader) == [1]
    assert {f"{TWO}.part", "v.spill.xyz"} <= {path.name for path in reader.features.iterdir()}


def test_a_folder_that_a_killed_ingest_left_without_its_link_is_taken(hosts):
    writer, _ = hosts
    write(writer, ONE, "", p1=1)
    write(writer, TWO, ONE, p1=1, q2=3)
    link = view_path(writer, "v")
    link.unlink()
    link.symlink_to(ONE)
    assert rows(writer) == [1, 3]


def test_rows_that_are_gone_on_this_disk_come_again_and_those_gone_on_s3_are_said(hosts):
    writer, reader = hosts
    write(writer, ONE, "", p1=1)
    assert rows(reader) == [1]
    view_path(reader, "v").resolve().rename(reader.home / "gone")
    assert rows(reader) == [1]
    shared = writer.data / "features" / ONE
    shared.fs.rm(shared.path, recursive=True)
    view_path(reader, "v").resolve().rename(reader.home / "gone too")
    with pytest.raises(DataError, match=r"is empty: remove .*/features, then run gyre ingest"):
        rows(reader)
