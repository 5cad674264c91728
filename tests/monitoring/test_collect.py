"""Log files become tables, each row once, whatever is torn, repeated or killed on the way."""

from __future__ import annotations

import fcntl
import json
import threading
import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.collect import collect, final_lines, is_closed, outcomes, predictions
from monitoring.window import window
from serving.prediction_log import AppendLog
from tests.conftest import new_settings

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
FEATURES = {"orders": "int64", "segment": "string"}


def line(number, **change):
    row = {
        "request_id": f"r{number}", "model": "m", "version": "1", "role": "production",
        "received": (NOW - timedelta(minutes=number)).isoformat(),
        "as_of": (NOW - timedelta(minutes=number)).isoformat(), "entity": number,
        "features": {"orders": number, "segment": "new"}, "features_from": "online",
        "probability": 0.5, "prediction": 1.0, "in_population": True,
    }  # fmt: skip
    return json.dumps(row | change)


@pytest.fixture
def settings(tmp_path):
    made = new_settings(tmp_path)
    (made.home / "serving" / "log").mkdir(parents=True)
    return made


def told(request_id, actual, received=NOW):
    row = {"request_id": request_id, "actual": actual, "received": received.isoformat()}
    return json.dumps(row)


def write(settings, name, *lines, end="\n"):
    path = settings.home / "serving" / "log" / name
    path.write_text("\n".join(lines) + end)
    return path


def test_a_closed_file_is_taken_and_goes_and_an_open_one_is_taken_and_stays(settings):
    closed = write(settings, "predictions-1-1.jsonl", line(1), line(2))
    still = write(settings, "predictions-2-2.jsonl", line(3))
    with still.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert collect(settings).predictions == 3
        assert (closed.exists(), still.exists()) == (False, True)
        assert collect(settings).predictions == 0
    assert collect(settings).predictions == 0
    assert not still.exists()
    assert predictions(settings).read().num_rows == 3


def test_killed_between_the_table_and_the_file_nothing_is_doubled(settings):
    content = [line(1), line(2)]
    write(settings, "predictions-1-1.jsonl", *content)
    collect(settings)
    write(
        settings, "predictions-1-1.jsonl", *content, line(3)
    )  # as if it had not been removed
    assert collect(settings).predictions == 1
    assert predictions(settings).read().num_rows == 3


def test_many_files_take_no_more_memory_than_one(settings):
    def peak(look, files):
        for n in range(files):
            rows = (line(k, request_id=f"{look}-{n}-{k}") for k in range(500))
            write(settings, f"predictions-1-{n + 1}.jsonl", *rows)
        tracemalloc.start()
        try:
            assert collect(settings, at_once=300_000).predictions == files * 500
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("what is loaded once", 1)
    one, twenty = peak("one", 1), peak("twenty", 20)
    assert twenty < 3 * one


@pytest.mark.parametrize("at_once", [1, 10**6])
def test_the_same_request_in_two_files_is_one_row_and_the_first_files(
    settings, at_once
):
    write(settings, "predictions-1-1.jsonl", line(1, probability=0.25), line(2))
    write(settings, "predictions-1-2.jsonl", line(1, probability=0.75), line(3))
    assert collect(settings, at_once=at_once).predictions == 3
    rows = predictions(settings).read().sort_by("request_id")
    assert rows["probability"].to_pylist() == [0.25, 0.5, 0.5]


def test_a_request_that_a_proxy_repeated_after_its_timeout_is_one_row_and_the_first(
    settings,
):
    """Its first replica was lost, and its log came later, or sooner."""
    for number, (minutes, probability) in enumerate([(2, 0.25), (1, 0.75), (3, 0.5)]):
        at = (NOW - timedelta(minutes=minutes)).isoformat()
        row = line(1, probability=probability, received=at, as_of=at)
        write(settings, f"predictions-1-{number}.jsonl", row)
        collect(settings)
    assert predictions(settings).read()["probability"].to_pylist() == [0.25]


def test_a_file_that_is_not_named_by_a_time_is_taken_too(settings):
    file = write(settings, "predictions-copy.jsonl", line(1))
    assert collect(settings).predictions == 1
    assert not file.exists()


def test_torn_and_foreign_lines_are_counted_and_stop_nothing(settings):
    write(settings, "predictions-1-1.jsonl", line(1), "{torn", "[]", line(2, extra=1), "\0\0\0",
          line(3, received="2026-11-20T12:00:00"), line(4, probability=float("nan")))  # fmt: skip
    found = collect(settings)
    assert (found.predictions, found.malformed) == (1, 6)


def test_a_last_line_without_its_end_is_none_yet_in_an_open_file_and_torn_in_a_closed_one(
    settings,
):
    kinds = ("predictions-1-1.jsonl", line(1)), ("feedback-1-1.jsonl", told("r1", 1.0))
    files = [write(settings, name, row, row[:30], end="") for name, row in kinds]
    with files[0].open("rb") as writer, files[1].open("rb") as other:
        for opened in (writer, other):
            fcntl.flock(opened, fcntl.LOCK_EX)
        found = collect(settings)
        assert (found.predictions, found.outcomes, found.malformed) == (1, 1, 0)
    assert collect(settings).malformed == 2
    assert all(file.with_suffix(".malformed").exists() for file in files)
    write(
        settings, "predictions-1-2.jsonl", line(2), end=""
    )  # whole, and nothing more comes
    found = collect(settings)
    assert (found.predictions, found.malformed) == (1, 0)


def test_every_line_of_feedback_is_one_outcome_however_often_it_is_taken(settings):
    row = told("r1", 1.0)
    odd = told("r2", 1.0).replace("1.0", "1e999")
    lines = row, row, told("r3", -7.25)
    file = write(settings, "feedback-1-1.jsonl", *lines)
    with file.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert [collect(settings).outcomes for _ in range(2)] == [3, 0]
    assert collect(settings).outcomes == 0
    assert not file.exists()
    write(
        settings, "feedback-1-1.jsonl", *lines, odd, "{"
    )  # as if it had not been removed
    found = collect(settings)
    assert (found.outcomes, found.malformed) == (0, 2)
    assert "1e999" in file.with_suffix(".malformed").read_text()
    assert sorted(outcomes(settings).read()["actual"].to_pylist()) == [-7.25, 1.0, 1.0]


def test_a_window_counts_the_last_prediction_of_each_member_and_says_what_it_left_out(
    settings,
):
    write(
        settings, "predictions-1-1.jsonl",
        line(1), line(2, entity=1), line(3), line(4, version="0"), line(5, in_population=False),
        line(6, entity=None), line(7, features_from="defaults"), line(8, features={"orders": 1}),
        line(9, model="other"), line(10, received=(NOW - timedelta(hours=25)).isoformat()),
        line(11, features={"orders": 11, "segment": None}),
        line(12, features={"orders": 1, "segment": "a", "more": 2}), line(13, version="7"),
        line(14, features={"orders": "many", "segment": "a"}),
        line(15, features={"orders": 1, "segment": 2}), line(16, version="7", in_population=False),
    )  # fmt: skip
    collect(settings)
    seen = window(predictions(settings), "m", "1", {"0", "1"}, FEATURES, NOW)
    assert sorted(seen.rows["orders"]) == [1, 3, 11]
    assert list(seen.rows.columns) == ["orders", "segment", "score", "entity", "as_of"]
    assert seen.left_out == {
        "of another version": 1, "outside the population": 1, "without an entity": 1,
        "answered from defaults": 1, "with other features": 4, "followed by a later one": 1,
        "of an unknown version": 2,
    }  # fmt: skip


def test_the_score_of_a_window_is_the_probability_or_the_number_predicted(settings):
    number = {"probability": None, "prediction": -31.5}
    write(settings, "predictions-1-1.jsonl", line(1), line(2, version="2", **number))
    collect(settings)
    for version, score in (("1", 0.5), ("2", -31.5)):
        seen = window(predictions(settings), "m", version, {"1", "2"}, FEATURES, NOW)
        assert seen.rows["score"].tolist() == [score]


def test_a_feature_that_nobody_has_any_more_is_a_column_of_nulls(settings):
    nulls = dict.fromkeys(FEATURES)
    write(
        settings,
        "predictions-1-1.jsonl",
        line(1, features=nulls),
        line(2, features=nulls),
    )
    collect(settings)
    seen = window(predictions(settings), "m", "1", {"1"}, FEATURES, NOW)
    assert seen.rows["orders"].dtype == float
    assert seen.rows[list(FEATURES)].isna().all(axis=None)


def test_a_window_of_nothing_is_empty(settings):
    seen = window(predictions(settings), "m", "1", {"1"}, FEATURES, NOW)
    assert (len(seen.rows), seen.left_out) == (0, {})


def test_a_file_that_was_just_begun_is_never_taken_for_a_closed_one(settings):
    """The writer rotates all the time and the collector looks all the time: no row is lost."""
    log = AppendLog(settings.home / "serving" / "log", "predictions")
    total, done = 2000, threading.Event()

    def write_and_rotate():
        for number in range(total):
            log.open()
            assert log.write([json.loads(line(number % 600, request_id=f"w{number}"))])
        log.close()
        done.set()

    writer = threading.Thread(target=write_and_rotate)
    writer.start()
    seen = []
    while not done.is_set():
        seen += take_closed(settings)
    writer.join()
    collect(settings)
    kept = predictions(settings).read()["request_id"].to_pylist()
    assert sorted([*seen, *kept]) == sorted(f"w{number}" for number in range(total))


def take_closed(settings):
    """What `collect` does with closed files, without the table, so that it looks more often."""
    taken = []
    for file in (settings.home / "serving" / "log").glob("predictions-*.jsonl"):
        if is_closed(file):
            lines = final_lines(file.read_bytes(), closed=True)
            taken += [json.loads(row)["request_id"] for row in lines]
            file.unlink()
    return taken


def test_lines_that_could_not_be_read_are_set_aside_not_thrown_away(settings):
    file = write(settings, "predictions-1-1.jsonl", line(1), line(2, extra=1))
    assert collect(settings).malformed == 1
    assert not file.exists()
    assert "extra" in file.with_suffix(".malformed").read_text()
    assert collect(settings).malformed == 0


@pytest.mark.parametrize(
    ("number", "taken"),
    [(-(2**63) + 1, 1), (2**53 + 1, 1), (10**30, 1), (10**400, 0)],
    ids=["int64's last", "odd above 2^53", "beyond int64", "beyond float64"],
)
def test_a_number_no_float_can_hold_is_taken_to_the_nearest_and_stops_nothing(
    settings, number, taken
):
    odd = line(2, features={"orders": number, "segment": "new"})
    write(settings, "predictions-1-1.jsonl", line(1), odd)
    found = collect(settings)
    assert (found.predictions, found.malformed) == (1 + taken, 1 - taken)
    rows = predictions(settings).read().sort_by("request_id").to_pylist()[1:]
    assert [row["numbers"] for row in rows] == (
        [[float(number), None]] if taken else []
    )
    assert [float(json.loads(row["features"])["orders"]) for row in rows] == (
        [float(number)] if taken else []
    )
