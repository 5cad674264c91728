"""What replicas sent to S3 becomes rows, each once, and leaves the inbox."""

from __future__ import annotations

import pytest

from core.errors import DataError
from monitoring.collect import collect, outcomes, predictions
from tests.conftest import new_settings
from tests.monitoring.test_collect import line, told
from tests.s3 import s3_server


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch) as server:
        yield server


@pytest.fixture
def settings(bucket, tmp_path):
    return new_settings(tmp_path / "home", data_url="s3://gyre/a/b")


def send(settings, name, *lines):
    sent = settings.data / "inbox" / name
    sent.write_text("\n".join(lines) + "\n")
    return sent


def left(settings):
    return sorted(file.name for file in (settings.data / "inbox").glob("*/*"))


def test_files_of_all_replicas_are_taken_and_go(settings):
    assert collect(settings).predictions == 0  # there is no inbox yet
    send(settings, "one/predictions-1-1-a.jsonl", line(1), line(2))
    send(settings, "other/predictions-1-1-b.jsonl", line(3), line(1, probability=0.75))
    send(settings, "other/feedback-1-1-c.jsonl", told("r1", 1.0), told("r1", 1.0))
    found = collect(settings)
    assert (found.predictions, found.outcomes, found.malformed) == (3, 2, 0)
    assert left(settings) == []
    assert [path for path in settings.cache.rglob("*") if path.is_file()] == []
    found = collect(settings)
    assert (found.predictions, found.outcomes) == (0, 0)


def test_what_is_still_there_or_comes_again_is_taken_once(settings):
    """A collector killed after the commit; a replica that did not hear that its file was taken."""
    files = {
        "one/predictions-1-1-a.jsonl": [line(1), line(2)],
        "one/feedback-1-1-a.jsonl": [told("r1", 1.0), told("r2", 0.0)],
    }
    for _ in range(2):
        for name, lines in files.items():
            send(settings, name, *lines)
        collect(settings)
    assert left(settings) == []
    assert predictions(settings).read().num_rows == 2
    assert outcomes(settings).read().num_rows == 2


def test_lines_that_could_not_be_read_are_set_aside_in_the_inbox(settings):
    sent = send(
        settings, "one/predictions-1-1-a.jsonl", line(1), "{torn", line(2, extra=1)
    )
    found = collect(settings)
    assert (found.predictions, found.malformed) == (1, 2)
    assert left(settings) == ["predictions-1-1-a.malformed"]
    assert "{torn" in sent.with_suffix(".malformed").read_text()
    assert collect(settings).malformed == 0


def test_a_bucket_that_is_not_there_is_said(settings):
    away = settings.model_copy(update={"data_url": "s3://away/a"})
    with pytest.raises(DataError, match="prediction"):
        collect(away)
