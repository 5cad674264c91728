"""Files of the log, and of replicas on S3, become tables: each row once, also if torn or sent twice."""

import fcntl
import json
import threading
from dataclasses import replace

import pyarrow.compute as pc

from monitoring.log.collect import Collected, collect
from monitoring.log.tables import answered_rows, predictions
from serving.prediction_log.append_log import AppendLog
from tests.conftest import new_settings
from tests.support.monitoring.log_lines import FAILURE, answer, write
from tests.support.stores.s3 import s3_server

FILE = "predictions-1-1.jsonl"
READ_BEFORE = Collected(predictions=0, outcomes=0, malformed=0)
ONE_ROW = replace(READ_BEFORE, predictions=1)


def stored(settings):
    """Rows of the table by their id."""
    rows = predictions(settings).read().to_pylist()
    return {row["request_id"]: row for row in rows}


def test_a_file_is_read_at_once_and_its_torn_end_is_malformed_once_the_file_is_closed(
    settings,
):
    closed = write(settings, FILE, answer("a"), answer("b"))
    torn = json.dumps(answer("c"))[:30]
    still = write(settings, "predictions-copy.jsonl", answer("c"), torn, end="")
    with still.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert collect(settings) == replace(READ_BEFORE, predictions=3)
        assert (closed.exists(), still.exists()) == (False, True)
        assert collect(settings) == READ_BEFORE
    assert collect(settings) == replace(READ_BEFORE, malformed=1)
    assert not still.exists()
    write(settings, FILE, answer("d"), end="")  # whole, and nothing more comes
    assert collect(settings) == ONE_ROW
    assert {*stored(settings)} == {"a", "b", "c", "d"}


def test_answers_and_failures_that_are_read_twice_become_one_row_each(settings):
    """A challenger failed, production answered, a shadow did both; a proxy asked twice."""
    lines = [
        answer("r", role="challenger", **FAILURE),
        answer("r", **FAILURE),
        answer("r"),
        answer("r"),
        answer("r", role="shadow", probability=0.75),
        answer("r", role="shadow", **FAILURE),
    ]
    write(settings, FILE, *lines)
    assert collect(settings).predictions == 5
    write(settings, FILE, *lines, answer("e"))  # as if it had not been removed
    assert collect(settings) == ONE_ROW
    assert list((settings.home / "serving" / "log").iterdir()) == []
    rows = stored(settings)
    assert {name: row["probability"] for name, row in rows.items()} == {
        "e": 0.5,
        "r": 0.5,
        "r/challenger/error": None,
        "r/production/error": None,
        "r/shadow": 0.75,
        "r/shadow/error": None,
    }
    assert rows["r/production/error"]["error"] == FAILURE["error"]
    answers = answered_rows(settings, pc.field("model") == "m")
    assert sorted(answers["request_id"].to_pylist()) == ["e", "r", "r/shadow"]


def test_lines_that_cannot_be_read_are_set_aside_and_counted_once(settings):
    lines = [
        "{torn",
        answer("b", extra=1),
        answer("c", probability=float("nan")),
        answer("d", prediction=None),
        json.dumps(answer("f")).replace("+00:00", ""),
    ]
    file = write(settings, FILE, answer("a"), *lines)
    assert collect(settings) == replace(ONE_ROW, malformed=len(lines))
    assert not file.exists()
    assert "extra" in file.with_suffix(".malformed").read_text()
    assert collect(settings).malformed == 0


def test_no_row_is_lost_while_the_writer_begins_new_files(settings):
    log = AppendLog(settings.home / "serving" / "log", "predictions")
    names = [f"w{number}" for number in range(500)]

    def write_and_rotate():
        for name in names:
            log.open()
            assert log.write([answer(name)])
        log.close()

    writer = threading.Thread(target=write_and_rotate)
    writer.start()
    while writer.is_alive():
        collect(settings)
    collect(settings)
    assert stored(settings).keys() == {*names}


def test_files_of_all_replicas_are_read_once_and_deleted(tmp_path, monkeypatch):
    """A replica that did not hear that its file was taken sends it again."""
    with s3_server(tmp_path, monkeypatch):
        settings = new_settings(tmp_path / "home", data_url="s3://gyre/a/b")
        inbox = settings.data / "inbox"
        for expected in (replace(READ_BEFORE, predictions=2), READ_BEFORE):
            for replica in ("one", "other"):
                text = json.dumps(answer(replica))
                (inbox / replica / FILE).write_text(f"{text}\n")
            assert collect(settings) == expected
            assert [*inbox.glob("*/*")] == []
        assert stored(settings).keys() == {"one", "other"}
