"""Log files become tables, each row once, whatever is torn, repeated or killed on the way."""

from __future__ import annotations

import fcntl
import json
import threading

import pyarrow.compute as pc
import pytest

from monitoring.collect import (
    Collected,
    answered_rows,
    collect,
    predictions,
    request_of_row,
)
from serving.prediction_log import AppendLog
from tests.conftest import new_settings
from tests.monitoring.log import FAILURE, answer, write

FILE = "predictions-1-1.jsonl"


@pytest.fixture
def settings(tmp_path):
    return new_settings(tmp_path)


def stored(settings):
    """Rows of the table by their id."""
    rows = predictions(settings).read().to_pylist()
    return {row["request_id"]: row for row in rows}


def locked(file):
    """Hold the lock of a writer until the file is closed."""
    writer = file.open("rb")
    fcntl.flock(writer, fcntl.LOCK_EX)
    return writer


def test_a_closed_log_file_is_read_and_deleted_and_an_open_one_stays(settings):
    closed = write(settings, FILE, answer("a"), answer("b"))
    still = write(settings, "predictions-copy.jsonl", answer("c"))
    with locked(still):
        assert collect(settings).predictions == 3
        assert (closed.exists(), still.exists()) == (False, True)
        assert collect(settings).predictions == 0
    assert collect(settings).predictions == 0
    assert not still.exists()
    assert {*stored(settings)} == {"a", "b", "c"}


def test_a_file_that_is_read_twice_gives_each_row_once(settings):
    failures = [answer(name, **FAILURE, seconds=0.25) for name in "cd"]
    lines = [answer("a"), answer("b"), *failures]
    write(settings, FILE, *lines)
    collect(settings)
    write(settings, FILE, *lines, answer("e"))  # as if it had not been removed
    assert collect(settings) == Collected(predictions=1, outcomes=0, malformed=0)
    assert len(stored(settings)) == 5
    failed = stored(settings)["c/production/error"]
    assert (failed["error"], failed["seconds"]) == (FAILURE["error"], 0.25)
    assert list((settings.home / "serving" / "log").iterdir()) == []


def test_answer_and_failures_of_one_request_are_rows_of_their_own(settings):
    """A challenger failed, production answered, a shadow scored and failed it; a proxy asked
    twice."""
    write(
        settings,
        FILE,
        answer("r", role="challenger", **FAILURE),
        answer("r", **FAILURE),
        answer("r"),
        answer("r"),
        answer("r", role="shadow", probability=0.75),
        answer("r", role="shadow", **FAILURE),
    )
    assert collect(settings).predictions == 5
    probabilities = {name: row["probability"] for name, row in stored(settings).items()}
    assert probabilities == {
        "r": 0.5,
        "r/challenger/error": None,
        "r/production/error": None,
        "r/shadow": 0.75,
        "r/shadow/error": None,
    }
    assert {request_of_row(name) for name in probabilities} == {"r"}
    answers = answered_rows(settings, pc.field("model") == "m")
    assert sorted(answers["request_id"].to_pylist()) == ["r", "r/shadow"]


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
    assert collect(settings) == Collected(predictions=1, outcomes=0, malformed=7)
    assert not file.exists()
    assert "extra" in file.with_suffix(".malformed").read_text()
    assert collect(settings).malformed == 0


def test_an_incomplete_last_line_is_malformed_once_its_file_is_closed(settings):
    torn = json.dumps(answer("b"))[:30]
    file = write(settings, FILE, answer("a"), torn, end="")
    with locked(file):
        assert collect(settings) == Collected(predictions=1, outcomes=0, malformed=0)
    assert collect(settings) == Collected(predictions=0, outcomes=0, malformed=1)
    write(settings, FILE, answer("c"), end="")  # whole, and nothing more comes
    assert collect(settings) == Collected(predictions=1, outcomes=0, malformed=0)


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
