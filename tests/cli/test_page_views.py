"""The page on windows that end, its files and commands as they are written."""

import json
from contextlib import ExitStack

import pytest

from tests.cli.test_second_use_case import UP, Reader
from tests.conftest import BIN, running, wait_until
from tests.pages import read_page

PAGE = read_page("page-views.md")


def start_consumer(reader, opened):
    log = reader.settings.home / "consumer.log"
    command = [str(BIN / "gyre"), "consume"]
    opened.enter_context(running(command, log, **reader.variables()))
    wait_until("the consumer", lambda: b"consuming events" in log.read_bytes())


def page_outputs(folder):
    """Return what each command of the page prints."""
    reader = Reader(folder, "shop")
    texts = []
    is_started = False
    with ExitStack() as opened:
        for command in PAGE.commands:
            if command != UP:
                texts.append(reader.run(command))
            elif is_started:
                start_consumer(reader, opened)
            else:
                reader.start(opened)
                is_started = True
            if command.startswith("python"):
                reader.write_files(PAGE)
    return texts


@pytest.mark.nightly
def test_the_tutorial_promotes_a_model_and_ends_windows_without_an_event(tmp_path):
    outputs = page_outputs(tmp_path)
    explanations = [json.loads(text) for text in outputs if '"contributions"' in text]
    before, after = (
        {name: part["value"] for name, part in explanation["contributions"].items()}
        for explanation in explanations
    )
    names = ("views_5m", "products_5m", "last_price_5m", "views_1h", "mean_price_1h")
    assert [before[name] for name in names] == [3, 3, 40.0, 3, 30.0]
    assert [after[name] for name in names] == [0, 0, None, 3, 30.0]
    text = "".join(outputs)
    assert "leaving: version 1 is in production" in text
    assert " 0 differences" in text
