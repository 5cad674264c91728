"""The tutorials, their files and commands as they are written, each in a project of its own."""

import json
import re
from contextlib import ExitStack

import pytest

from stack.environment import child_environment
from tests.conftest import (
    answers,
    mlflow_server,
    new_settings,
    redis_server,
    running,
    wait_until,
)
from tests.support.tools.clone import (
    finished,
    online_answer,
    outer_environment,
)
from tests.support.tools.pages import read_page
from tests.support.tools.preloaded import commands_folder

pytestmark = pytest.mark.journey

PAGE = read_page("second-use-case.md")
PAGE_VIEWS = read_page("page-views.md")
UP = "gyre up\n"
"""Of the whole stack MLflow, Redis, serving and the consumer are started here."""
LATER = PAGE.commands.index("gyre parity late_flight\n")
"""From here on commands are left to the nightly run."""
SAVE = '\n{ export -p; echo cd "$PWD"; } > '
KEY = {"tailnum": "N042"}
REQUEST = KEY | {"distance_km": 1860.1}


class Reader:
    """Who follows a page of the docs, in one shell."""

    def __init__(self, folder, project):
        """`project` is the folder that `gyre init` makes."""
        self.folder = folder
        self.project = folder / project
        self.first_files = set()
        self.settings = new_settings(self.project / ".gyre", demo_start=None)
        self.state = folder / "shell"
        self.state.touch()
        ports = {
            name: value
            for name, value in child_environment(self.settings).items()
            if name.endswith("_PORT")
        }
        # On a busy machine a look-up may be late.
        self.environment = outer_environment() | ports | {"CURL_HOME": str(folder)}
        options = "retry = 100\nretry-delay = 1\nretry-all-errors\n"
        (folder / ".curlrc").write_text(options)

    def run(self, block):
        # `gyre env` puts the environment's own programs first.
        start = f". {self.state}\nPATH={commands_folder()}:$PATH\n"
        command = f"{start}{block}{SAVE}{self.state}"
        return finished(command, self.folder, self.environment).stdout

    def follow(self, page, opened, end=None):
        """Do what a page says, up to a block of commands; return what each block prints."""
        outputs = []
        for block in page.commands[:end]:
            if block == UP:
                self.up(opened)
            else:
                outputs.append(self.run(block))
            if block.startswith("python"):
                for name, text in page.files.items():
                    (self.project / name).write_text(text)
        return outputs

    def up(self, opened):
        """Start servers; the second time, as there is a new dataset, the consumer of its events."""
        settings = self.settings
        programs = commands_folder()
        project = {"GYRE_PROJECT": str(self.project)}
        variables = self.environment | child_environment(settings) | project
        if not self.first_files:
            self.first_files = self.files()
            opened.enter_context(mlflow_server(settings))
            opened.enter_context(redis_server(settings.redis_port, settings.home))
            log = settings.home / "serving.log"
            command = [str(programs / "python"), "-m", "serving"]
            opened.enter_context(running(command, log, **variables))
            return
        log = settings.home / "consumer.log"
        command = [str(programs / "gyre"), "consume"]
        opened.enter_context(running(command, log, **variables))
        wait_until("the consumer", lambda: b"consuming events" in log.read_bytes())
        live = f"{settings.serving_address}/health/live"
        wait_until("serving", lambda: answers(live))

    def files(self):
        paths = (path.relative_to(self.project) for path in self.project.rglob("*.*"))
        hidden = {".gyre", "__pycache__"}
        return {str(path) for path in paths if not hidden & {*path.parts}}


def window_values(explanation):
    contributions = json.loads(explanation)["contributions"]
    names = ("views_5m", "products_5m", "last_price_5m", "views_1h", "mean_price_1h")
    return [contributions[name]["value"] for name in names]


@pytest.mark.nightly
def test_the_page_on_page_views_promotes_a_model_and_ends_windows_without_an_event(
    tmp_path,
):
    with ExitStack() as opened:
        outputs = Reader(tmp_path, "shop").follow(PAGE_VIEWS, opened)
    explanations = [text for text in outputs if '"contributions"' in text]
    before, after = map(window_values, explanations)
    assert before == [3, 3, 40.0, 3, 30.0]
    assert after == [0, 0, None, 3, 30.0]
    text = "".join(outputs)
    assert "leaving: version 1 is in production" in text
    assert " 0 differences" in text


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("tutorial"), "airline")


@pytest.fixture(scope="module")
def outputs(reader):
    """What each block of commands prints, up to the first prediction."""
    with ExitStack() as opened:
        yield reader.follow(PAGE, opened, LATER)


def test_the_tutorial_writes_three_files_of_at_most_140_lines(outputs, reader):
    names = ("feature_repo/datasets/flights.py", "feature_repo/expectations/flights.json",
             "models/late_flight.toml")  # fmt: skip
    assert tuple(PAGE.files) == names
    new_files = {*names, "data/flights.csv", "data/tomorrow.json"}
    assert reader.files() - reader.first_files == new_files
    assert sum(text.count("\n") for text in PAGE.files.values()) <= 140
    text = "".join(outputs)
    assert "late_flight: ok; rows: a sample of" in text
    assert "late_flight: version 1 is in production" in text


def test_the_tutorial_ends_with_a_prediction_from_request_data_and_stored_features(
    outputs, reader
):
    answer = json.loads(outputs[-1])
    assert answer.items() >= (KEY | {"model_version": "1"}).items()
    url = f"{reader.settings.serving_address}/models/late_flight/predict"
    early = online_answer(url, REQUEST | {"hour": 7})["probability"]
    late = online_answer(url, REQUEST | {"hour": 19})["probability"]
    assert 0 < early < late < 1  # delays add up


@pytest.mark.nightly
def test_parity_reproduction_and_monitoring_give_the_results_of_the_tutorial(
    outputs, reader
):
    parity, reproduced, monitored = map(reader.run, PAGE.commands[LATER:])
    assert "240 entities, 8 features, 12 moments: 23040 values, 0 differences" in parity
    assert "late_flight version 1: reproduced" in reproduced
    assert re.search("late_flight version 1: (ok|bad): ", monitored)
    assert "decided again from these inputs: the same" in monitored
