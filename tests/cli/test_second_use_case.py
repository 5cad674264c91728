"""The tutorial, its files and commands as they are written, in a project of its own."""

import json
import re
from contextlib import ExitStack

import httpx
import pytest

from stack.environment import child_environment
from tests.cli.clone import finished, online_answer, outer_environment, serving
from tests.conftest import mlflow_server, new_settings, redis_server, wait_until
from tests.pages import read_page
from tests.preloaded import commands_folder

PAGE = read_page("second-use-case.md")
UP = "gyre up\n"
"""Of the whole stack MLflow, Redis and serving are started here."""
LATER = PAGE.commands.index("gyre parity late_flight\n")
"""From here on commands are left to the nightly run."""
SAVE = '\n{ export -p; echo cd "$PWD"; } > '
PREDICT = "/models/late_flight/predict"
KEY = {"tailnum": "N042"}
REQUEST = KEY | {"distance_km": 1860.1, "hour": 18}


class Reader:
    """Who follows a page of the docs, in one shell."""

    def __init__(self, folder, project):
        """`project` is the folder that `gyre init` makes."""
        self.folder = folder
        self.project = folder / project
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

    def write_files(self, page):
        for name, text in page.files.items():
            (self.project / name).write_text(text)

    def start(self, opened):
        settings = self.settings
        opened.enter_context(mlflow_server(settings))
        opened.enter_context(redis_server(settings.redis_port, settings.home))
        opened.enter_context(serving(settings, "live", **self.variables()))

    def variables(self):
        project = {"GYRE_PROJECT": str(self.project)}
        return self.environment | child_environment(self.settings) | project

    def url(self, path=PREDICT):
        return f"{self.settings.serving_address}{path}"

    def ask(self, body, path=PREDICT):
        return httpx.post(self.url(path), json=body, timeout=60)

    def files(self):
        paths = (path.relative_to(self.project) for path in self.project.rglob("*.*"))
        hidden = {".gyre", "__pycache__"}
        return {str(path) for path in paths if not hidden & {*path.parts}}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return Reader(tmp_path_factory.mktemp("tutorial"), "airline")


@pytest.fixture(scope="module")
def outputs(reader):
    """What each command prints, by its last line, up to the first prediction."""
    outputs = {}
    before = None
    with ExitStack() as opened:
        for block in PAGE.commands[:LATER]:
            if block != UP:
                outputs[block.splitlines()[-1]] = reader.run(block)
            elif before is None:
                reader.start(opened)
                before = reader.files()
            if block.startswith("python"):
                reader.write_files(PAGE)
            if block.startswith("(cd feature_repo"):
                wait_until("the model", lambda: reader.ask(KEY).status_code != 503)
        yield outputs | {"new files": reader.files() - before}


def test_the_tutorial_writes_three_files_of_at_most_140_lines(outputs):
    names = ("feature_repo/datasets/flights.py", "feature_repo/expectations/flights.json",
             "models/late_flight.toml")  # fmt: skip
    assert tuple(PAGE.files) == names
    new_files = {*names, "data/flights.csv", "data/tomorrow.json"}
    assert outputs["new files"] == new_files
    assert sum(text.count("\n") for text in PAGE.files.values()) <= 140
    checked = outputs["gyre check late_flight"]
    assert "late_flight: ok; rows: a sample of" in checked
    trained = outputs["gyre train late_flight"]
    assert "late_flight: version 1 is in production" in trained


def test_the_tutorial_ends_with_a_prediction_from_request_data_and_stored_features(
    outputs, reader
):
    texts = [text for text in outputs.values() if str(text).startswith('{"tailnum"')]
    (answer,) = (json.loads(text) for text in texts)
    assert answer.items() >= (KEY | {"model_version": "1"}).items()
    early = online_answer(reader.url(), REQUEST | {"hour": 7})["probability"]
    late = online_answer(reader.url(), REQUEST | {"hour": 19})["probability"]
    assert 0 < early < late < 1  # delays add up
    path = "/v1/models/late_flight:predict"
    kserve = reader.ask({"instances": [REQUEST]}, path).json()
    assert kserve["predictions"][0]["score"] == answer["probability"]
    refused = reader.ask(KEY | {"distance_km": 1.0})
    assert refused.status_code == 422
    assert "hour (int64)" in refused.text


@pytest.mark.nightly
def test_parity_reproduction_and_monitoring_give_the_results_of_the_tutorial(
    outputs, reader
):
    parity, reproduced, monitored = map(reader.run, PAGE.commands[LATER:])
    assert "240 entities, 8 features, 12 moments: 23040 values, 0 differences" in parity
    assert "late_flight version 1: reproduced" in reproduced
    assert re.search("late_flight version 1: (ok|bad): ", monitored)
    assert "decided again from these inputs: the same" in monitored
