"""Files of the log, and of replicas on S3, become tables: each row once, also if torn or sent twice."""

import fcntl
import json
import threading
from dataclasses import replace

import pyarrow.compute as pc

from monitoring.collect import (
    Collected,
    answered_rows,
    collect,
    outcomes,
    predictions,
    request_of_row,
)
from serving.prediction_log import AppendLog
from tests.conftest import new_settings
from tests.monitoring.log import FAILURE, answer, feedback, write
from tests.s3 import s3_server

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
    """A challenger failed, production answered, a shadow scored and failed it; a proxy asked
    twice."""
    lines = [
        answer("r", role="challenger", **FAILURE),
        answer("r", **FAILURE, seconds=0.25),
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
    failed = rows["r/production/error"]
    assert (failed["error"], failed["seconds"]) == (FAILURE["error"], 0.25)
    assert {request_of_row(name) for name in rows} == {"e", "r"}
    answers = answered_rows(settings, pc.field("model") == "m")
    assert sorted(answers["request_id"].to_pylist()) == ["e", "r", "r/shadow"]


def test_lines_that_cannot_be_read_are_set_aside_and_counted_once(settings):
    file = write(
        settings,
        FILE,
        answer("a"),
        "{torn",
        "[]",
        answer("b", extra=1),
        answer("c", probability=float("nan")),
        answer("d", prediction=None),
        answer("e", error="and an answer"),
        json.dumps(answer("f")).replace("+00:00", ""),
    )
    assert collect(settings) == replace(ONE_ROW, malformed=7)
    assert not file.exists()
    assert "extra" in file.with_suffix(".malformed").read_text()
    assert collect(settings).malformed == 0


def test_no_row_is_lost_while_the_writer_begins_new_files(settings):
    """The writer rotates all the time and the collector looks all the time: no row is lost."""
    log = AppendLog(settings.home / "serving" / "log", "predictions")
    total = 500
    is_done = threading.Event()

    def write_and_rotate():
        for number in range(total):
            log.open()
            assert log.write([answer(f"w{number}")])
        log.close()
        is_done.set()

    writer = threading.Thread(target=write_and_rotate)
    writer.start()
    while not is_done.is_set():
        collect(settings)
    writer.join()
    collect(settings)
    assert {*stored(settings)} == {f"w{number}" for number in range(total)}


def test_files_of_all_replicas_are_read_once_and_deleted(tmp_path, monkeypatch):
    """A replica that did not hear that its file was taken sends it again."""
    with s3_server(tmp_path, monkeypatch):
        settings = new_settings(tmp_path / "home", data_url="s3://gyre/a/b")
        assert collect(settings).predictions == 0  # there is no inbox yet
        inbox = settings.data / "inbox"
        sent = {
            "one/predictions-1-1-a.jsonl": [answer("a"), answer("b")],
            "other/predictions-1-1-b.jsonl": [answer("c"), answer("a")],
            "other/feedback-1-1-c.jsonl": [feedback("a", 1.0)] * 2,
        }
        for expected in (replace(READ_BEFORE, predictions=3, outcomes=2), READ_BEFORE):
            for name, lines in sent.items():
                (inbox / name).write_text("\n".join(map(json.dumps, lines)) + "\n")
            assert collect(settings) == expected
            assert [*inbox.glob("*/*")] == []
        assert [path for path in settings.cache.rglob("*") if path.is_file()] == []
        assert len(stored(settings)) == 3
        assert outcomes(settings).read().num_rows == 2
