"""The page on windows that end, its files and commands as they are written."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from tests.cli.test_second_use_case import Reader
from tests.conftest import BIN, new_settings, wait_until
from tests.pages import read_page

PAGE = read_page("page-views.md")
UP = "gyre up\n"
"""Of the whole stack MLflow, Redis, serving and the consumer are started here."""


class PageReader(Reader):
    """Who follows the page, in one shell."""

    def __init__(self, folder, settings):
        super().__init__(folder, settings)
        # On a busy machine an event may take longer than the page says.
        with (folder / ".curlrc").open("a") as file:
            file.write("retry-all-errors\n")

    @property
    def project(self):
        return self.folder / "shop"

    def start_consumer(self, opened):
        log = self.settings.home / "consumer.log"
        opened.enter_context(self.running([str(BIN / "gyre"), "consume"], log))
        wait_until("the consumer", lambda: b"consuming events" in log.read_bytes())


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What each command of the page prints."""
    folder = tmp_path_factory.mktemp("page")
    reader = PageReader(
        folder, new_settings(folder / "shop" / ".gyre", demo_start=None)
    )
    texts = []
    is_started = False
    with ExitStack() as opened:
        for command in PAGE.commands:
            if command != UP:
                texts.append(reader.run(command))
            elif is_started:
                reader.start_consumer(opened)
            else:
                reader.start(opened)
                is_started = True
            if command.startswith("python"):
                for name, content in PAGE.files.items():
                    (reader.project / name).write_text(content)
        yield texts


def contributions(texts):
    """Return the feature values of each explanation, in their order."""
    features = []
    for text in texts:
        if '"contributions"' in text:
            parts = json.loads(text)["contributions"]
            features.append({name: part["value"] for name, part in parts.items()})
    return features


@pytest.mark.nightly
def test_the_page_shows_a_window_that_ends_without_an_event(output):
    before, after = contributions(output)
    assert (before["views_5m"], before["products_5m"], before["last_price_5m"]) == (
        3,
        3,
        40.0,
    )
    assert (after["views_5m"], after["products_5m"], after["last_price_5m"]) == (
        0,
        0,
        None,
    )
    assert before["views_1h"] == after["views_1h"] == 3
    assert before["mean_price_1h"] == after["mean_price_1h"] == 30.0


@pytest.mark.nightly
def test_the_page_ends_with_a_version_in_production_and_no_difference_of_parity(output):
    text = "".join(output)
    assert "leaving: version 1 is in production" in text
    assert " 0 differences" in text
