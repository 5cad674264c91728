"""The tutorial, its files and commands as they are written, in a project of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import ExitStack

import httpx
import pytest

from core.settings import CLONE, PROJECT
from stack.environment import child_environment
from tests.cli.test_project import bare
from tests.conftest import answers, mlflow_server, new_settings, redis_server, running
from tests.conftest import wait_until as wait
from tests.dags.test_parse import READ
from tests.preloaded import commands_folder

TUTORIAL = (PROJECT / "docs" / "second-use-case.md").read_text()
BLOCKS = re.findall(
    r"^```(sh|python|json|toml)\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL
)
SHELL = [body for kind, body in BLOCKS if kind == "sh"]
FILES = dict(zip(re.findall(r"^`(\S+)`: ", TUTORIAL, re.MULTILINE),
                 [body for kind, body in BLOCKS if kind != "sh"], strict=True))  # fmt: skip
UP = "gyre up\n"
"""Of the whole stack MLflow, Redis, serving and the console are started here."""
LATER = SHELL.index("gyre parity late_flight\n")
"""From here on blocks are left to the nightly run."""
KEPT = '\n{ export -p; echo cd "$PWD"; } > '
KEY = {"tailnum": "N042"}
ASKED = KEY | {"distance_km": 1860.1, "hour": 18}


class Reader:
    """Who follows the tutorial, in one shell."""

    def __init__(self, folder, settings):
        self.folder, self.settings, self.state = folder, settings, folder / "shell"
        names = child_environment(settings)
        self.environment = bare() | {
            n: v for n, v in names.items() if n.endswith("_PORT")
        }
        self.environment["CURL_HOME"] = str(
            folder
        )  # on a busy machine a look-up may be late
        (folder / ".curlrc").write_text("retry = 100\nretry-delay = 1\n")
        self.state.touch()

    @property
    def project(self):
        return self.folder / "airline"

    def run(self, block):
        # `gyre env` puts the environment's own programs first.
        command = (
            f". {self.state}\nPATH={commands_folder()}:$PATH\n{block}{KEPT}{self.state}"
        )
        done = subprocess.run(
            ["bash", "-euc", command], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{block}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done.stdout

    def start(self, opened):
        opened.enter_context(mlflow_server(self.settings, commands_folder() / "python"))
        opened.enter_context(redis_server(self.settings.redis_port, self.settings.home))
        self.start_program(opened, "serving", self.settings.serving_address)

    def start_program(self, opened, module, address):
        log = self.settings.home / f"{module}.log"
        opened.enter_context(self.running([sys.executable, "-m", module], log))
        wait(address, lambda: answers(f"{address}/health/live"))

    def running(self, command, log):
        project = {
            "GYRE_PROJECT": str(self.project),
            "GYRE_HOME": str(self.settings.home),
        }
        environment = self.environment | child_environment(self.settings) | project
        return running(command, log, **environment)

    def ask(self, body, path="/models/late_flight/predict"):
        return httpx.post(
            f"{self.settings.serving_address}{path}", json=body, timeout=60
        )

    def answer(self, *asked):
        """Ask until the look-up of features was in time."""
        found = []
        wait(
            "an answer", lambda: found.append(self.ask(*asked)) or found[-1].is_success
        )
        return found[-1].json()

    def files(self):
        paths = (path.relative_to(self.project) for path in self.project.rglob("*.*"))
        return {
            str(path) for path in paths if not {".gyre", "__pycache__"} & {*path.parts}
        }


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tutorial")
    return Reader(folder, new_settings(folder / "airline" / ".gyre", demo_start=None))


@pytest.fixture(scope="module")
def said(reader):
    """What each block said, by its last line, up to the first prediction."""
    said, first = {}, SHELL.index(UP)
    with ExitStack() as opened:
        for number, block in enumerate(SHELL[:LATER]):
            if block != UP:
                said[block.splitlines()[-1]] = reader.run(block)
            elif number == first:
                reader.start(opened)
                before = reader.files()
            else:  # started again, it knows the new model
                address = reader.settings.console_address
                reader.start_program(opened, "monitoring.console", address)
            if block.startswith("python"):
                for place, text in FILES.items():
                    (reader.project / place).write_text(text)
            if block.startswith("(cd feature_repo"):
                wait(
                    "it",
                    lambda: (
                        reader.ask(KEY).status_code != httpx.codes.SERVICE_UNAVAILABLE
                    ),
                )
        yield said | {"new files": reader.files() - before}


def test_three_files_of_140_lines_are_all_that_is_written(said):
    places = ("feature_repo/datasets/flights.py", "feature_repo/expectations/flights.json",
              "models/late_flight.toml")  # fmt: skip
    assert tuple(FILES) == places
    assert said["new files"] == {*places, "data/flights.csv", "data/tomorrow.json"}
    assert sum(text.count("\n") for text in FILES.values()) <= 140
    assert "late_flight: ok; rows: a sample of" in said["gyre check late_flight"]
    assert "late_flight: version 1 is in production" in said["gyre train late_flight"]


def test_it_ends_with_a_prediction_of_the_request_and_the_stored_features(said, reader):
    (told,) = (
        json.loads(text) for text in said.values() if str(text).startswith('{"tailnum"')
    )
    assert told.items() >= (KEY | {"model_version": "1"}).items()
    assert 0 < told["probability"] < 1
    wait("a look-up in time", lambda: reader.answer(ASKED)["features_from"] == "online")
    early, late = (
        reader.answer(ASKED | {"hour": hour})["probability"] for hour in (7, 19)
    )
    assert early < late  # delays add up over a day
    kserve = reader.answer({"instances": [ASKED]}, "/v1/models/late_flight:predict")
    assert kserve["predictions"][0]["score"] == told["probability"]
    lacking = reader.ask(KEY | {"distance_km": 1.0})
    assert (lacking.status_code, "hour (int64)" in lacking.text) == (422, True)


def test_routes_dags_and_page_are_there(said, reader):
    settings = reader.settings
    api = httpx.get(f"{settings.serving_address}/openapi.json").json()
    assert {"/models/{name}/predict", "/events/{dataset}"} <= set(api["paths"])
    types = {"tailnum": "string", "distance_km": "number", "hour": "integer"}
    fields = [
        {name: schema["properties"][name]["type"] for name in types}
        for schema in api["components"]["schemas"].values()
        if types.keys() <= schema.get("properties", {}).keys()
    ]
    assert types in fields
    page = httpx.get(f"{settings.console_address}/").text
    assert '<h3><a href="/status/late_flight">late_flight</a> ' in page
    home = settings.home / "airflow"
    known = (
        f"export AIRFLOW_HOME={home} AIRFLOW__CORE__LOAD_EXAMPLES=False READ='{READ}'\n"
    )
    known += f"export AIRFLOW__CORE__DAGS_FOLDER={CLONE}/dags\n"
    bag = json.loads(
        reader.run(f'({known} python -c "$READ" {CLONE}/dags 2> /dev/null | tail -1)')
    )
    assert bag["errors"] == {}
    assert {"train_late_flight", "monitor_late_flight"} <= set(bag["dags"])
    ingests = {"ingest_orders", "ingest_flights", "read_specs"}
    assert set(bag["dags"]["ingest"]["tasks"]) == ingests


@pytest.mark.nightly
def test_parity_reproduction_and_monitor_say_what_they_promise(said, reader):
    parity, reproduced, monitored = map(reader.run, SHELL[LATER:])
    assert "240 entities, 8 features, 12 moments: 23040 values, 0 differences" in parity
    assert "late_flight version 1: reproduced" in reproduced
    assert "late_flight version 1: " in monitored
    assert "on 240 entities" in monitored
    assert "decided again from these inputs: the same" in monitored
