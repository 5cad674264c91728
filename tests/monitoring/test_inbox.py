"""What replicas sent to S3 becomes rows, each once, and leaves the inbox."""

from __future__ import annotations

import json

import pytest

from monitoring.collect import Collected, collect, outcomes, predictions
from tests.conftest import new_settings
from tests.monitoring.log import answer, feedback
from tests.s3 import s3_server


@pytest.fixture
def settings(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch):
        yield new_settings(tmp_path / "home", data_url="s3://gyre/a/b")


def send(settings, name, *lines):
    sent = settings.data / "inbox" / name
    sent.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return sent


def inbox_names(settings):
    return sorted(file.name for file in (settings.data / "inbox").glob("*/*"))


def test_files_of_all_replicas_are_read_once_and_deleted(settings):
    """A replica that did not hear that its file was taken sends it again."""
    assert collect(settings).predictions == 0  # there is no inbox yet
    for expected in (Collected(3, 2, 0), Collected(0, 0, 0)):
        send(settings, "one/predictions-1-1-a.jsonl", answer("a"), answer("b"))
        send(settings, "other/predictions-1-1-b.jsonl", answer("c"), answer("a"))
        send(settings, "other/feedback-1-1-c.jsonl", *[feedback("a", 1.0)] * 2)
        assert collect(settings) == expected
        assert inbox_names(settings) == []
    assert [path for path in settings.cache.rglob("*") if path.is_file()] == []
    assert predictions(settings).read().num_rows == 3
    assert outcomes(settings).read().num_rows == 2
