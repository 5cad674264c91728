"""The log against a full disk, other threads and the replacement of files."""

import resource
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from serving.prediction_log.append_log import AppendLog
from tests.serving.conftest import read_log


@pytest.fixture
def log(tmp_path):
    log = AppendLog(tmp_path, "predictions")
    log.open()
    return log


def test_a_row_cut_by_a_full_disk_damages_no_other_row(log, tmp_path):
    """The kernel's limit on the size of a file stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert log.write([{"n": 1}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
        assert not log.write([{"n": 2}])  # takes a part
        assert not log.write([{"n": 3}])  # takes nothing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.problem
    assert log.write([{"n": 4}])
    assert log.problem is None
    log.close()
    assert read_log(tmp_path) == [{"n": 1}, {"n": 4}]


@pytest.fixture(params=["a file", "a folder of another file system"])
def bad_outbox(request, tmp_path):
    """An outbox that takes no hard link."""
    if request.param == "a file":
        path = tmp_path / "outbox"
        path.touch()
        yield path
        return
    with TemporaryDirectory(dir="/dev/shm") as name:
        path = Path(name)
        assert path.stat().st_dev != tmp_path.stat().st_dev
        yield path


def test_a_log_whose_outbox_takes_no_link_says_why_and_leaves_no_file(
    tmp_path, bad_outbox, caplog
):
    folder = tmp_path / "log"
    log = AppendLog(folder, "predictions", bad_outbox)
    log.open()
    log.flush()  # each second it is tried again
    assert not log.write([{"n": 1}])
    remedy = "serving/outbox and serving/log of GYRE_HOME need one file system"
    assert remedy in log.problem
    assert caplog.text.count(remedy) == 1
    assert [*folder.iterdir()] == []
    assert bad_outbox.is_file() or [*bad_outbox.iterdir()] == []
    log._outbox = tmp_path / "another"
    log.flush()
    assert log.write([{"n": 2}])
    assert log.problem is None
    log.close()
    assert read_log(folder) == [{"n": 2}]


def test_rows_are_written_while_another_thread_writes_a_large_batch(log, tmp_path):
    """The event loop writes rows while a thread writes a batch: it must not wait for the thread."""
    batch = [{"batch": n} for n in range(100_000)]
    writer = threading.Thread(target=log.write, args=[batch])
    writer.start()
    single_rows = []
    while writer.is_alive():
        row = {"n": len(single_rows)}
        assert log.write([row])
        single_rows.append(row)
    log.close()
    rows = read_log(tmp_path)
    assert [row for row in rows if "batch" in row] == batch
    assert [row for row in rows if "n" in row] == single_rows
    between = rows[rows.index(batch[0]) : rows.index(batch[-1])]
    assert any("n" in row for row in between)
