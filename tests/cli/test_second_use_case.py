"""The tutorial, its commands run as they are written, in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stack.environment import child_environment, write_feast_config
from stack.settings import PROJECT
from tests.conftest import BIN, answers, mlflow_server, new_settings, redis_server, running
from tests.conftest import wait_until as wait
from tests.dags.test_parse import READ

pytestmark = pytest.mark.timeout(600)  # the first test waits for the whole tutorial
TUTORIAL = (PROJECT / "docs" / "second-use-case.md").read_text()
UP = "gyre up"
"""Of the whole stack, serving is started here; Airflow's side is read from the DAG files."""
SPEND, VISITS = "next_quarter_spend", "web_visits"
KEY = {"customer_id": 3049, "basket": "several"}
LOGGED = '{"basket": "several", "customer_id": 3049}'
LEARN = """
from datetime import UTC, datetime, timedelta
import pyarrow as pa
from feature_repo.ingest import ingest
from monitoring.performance import actuals
from stack.settings import load_settings
from stack.spec import load_spec
from training.chain import train

settings, now = load_settings(), datetime.now(UTC)
print(ingest(settings, "web_visits", now).summary())
report = train(settings, load_spec("web_visits"), now, key="a", reason="b", who="c")
print(f"web_visits: {report.outcome}")
entity = '{"basket": "several", "customer_id": 3049}'
answered = {"request_id": ["a"], "entity": [entity], "as_of": [now - timedelta(days=120)]}
(spent,) = actuals(settings, load_spec("next_quarter_spend"), pa.table(answered), {}, now)
print(f"known of {entity}: {spent >= 0}")
"""
"""What `gyre ingest` and `gyre train` do, importing all of it once; and the monitor's side."""
THREE = {"models/{}.toml", "feature_repo/datasets/{}.py", "feature_repo/expectations/{}.json"}


def ask(address, key):
    return httpx.post(f"{address}/models/{SPEND}/predict", json=key)


class Copy:
    """The project as git has it, in a folder of its own; the packages are this environment's."""

    def __init__(self, folder, settings):
        self.folder, self.settings = folder, settings
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(git, cwd=PROJECT, capture_output=True, check=True).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (PROJECT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        own = {k: v for k, v in os.environ.items() if not k.startswith(("GYRE_", "PROMETHEUS_"))}
        self.environment = own | child_environment(settings) | {
            "PYTHONPATH": str(folder), "PATH": f"{BIN}:{os.environ['PATH']}",
        }  # fmt: skip
        self.before = self.content()

    def run(self, command, code=0, **more):
        done = subprocess.run(
            ["bash", "-euc", command], cwd=self.folder, env=self.environment | more,
            capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip
        assert done.returncode == code, f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout + done.stderr

    @contextmanager
    def serving(self):
        log, address = self.folder / "serving.log", self.settings.serving_address
        command = ["bash", "-c", f"cd {self.folder} && exec {sys.executable} -m serving"]
        with running(command, log, **self.environment):
            wait("serving", lambda: answers(f"{address}/health/live"), 60)
            wait("its model", lambda: ask(address, KEY | {"basket": "none"}).status_code == 404)
            yield address

    @contextmanager
    def console(self):
        log, address = self.folder / "console.log", self.settings.console_address
        command = ["bash", "-c", f"cd {self.folder} && exec {sys.executable} -m monitoring.console"]
        with running(command, log, **self.environment):
            wait("console", lambda: answers(f"{address}/health/live"), 60)
            yield address

    def content(self):
        skipped = {".gyre", "__pycache__"}
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file() and not skipped & set(path.parts) and path.suffix != ".log"
        }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    settings = new_settings(folder / ".gyre", demo_start=None)
    with mlflow_server(settings), redis_server(settings.redis_port, settings.home):
        write_feast_config(settings)
        yield Copy(folder, settings)


@pytest.fixture(scope="module")
def told(project):
    """What the blocks of the tutorial said, in order."""
    found = re.findall(r"^( *)```sh\n(.*?)^ *```", TUTORIAL, re.MULTILINE | re.DOTALL)
    blocks = ["\n".join(line.removeprefix(m) for line in body.splitlines()) for m, body in found]
    at = blocks.index(UP)
    said = [project.run(block) for block in blocks[:at]]
    with project.serving() as address, project.console() as console:
        said += [UP, *map(project.run, blocks[at + 1 :])]
        page, api = httpx.get(f"{console}/").text, httpx.get(f"{address}/openapi.json").json()
        unknown = ask(address, KEY | {"basket": "none"})
        kserve = httpx.post(f"{address}/v1/models/{SPEND}:predict", json={"instances": [KEY]})
        half = {"instances": [{"customer_id": 3049}]}
        refused = httpx.post(f"{address}/v1/models/{SPEND}:predict", json=half)
    return said, page, api, unknown, kserve, refused


def test_it_ends_with_a_number_for_both_columns_of_the_key(told, project):
    said, _, api, unknown, kserve, refused = told
    (line,) = [text for text in said if text.startswith('{"customer_id"')]
    answer = json.loads(line)
    assert answer.items() >= (KEY | {"model_version": "1", "features_from": "online"}).items()
    assert answer["prediction"] > 0
    assert answer["in_population"] is True
    assert unknown.status_code == 404
    assert "customer_id 3049, basket none is not known" in unknown.text
    assert (
        kserve.json()["predictions"][0].items() >= (KEY | {"score": answer["prediction"]}).items()
    )
    assert (refused.status_code, "basket is missing" in refused.text) == (400, True)
    form = api["components"]["schemas"]["NextQuarterSpendRequest"]
    assert {name: form["properties"][name]["type"] for name in form["required"]} == {
        "customer_id": "integer", "basket": "string",
    }  # fmt: skip
    log = (project.settings.home / "serving" / "log").glob("predictions-*.jsonl")
    rows = [json.loads(line) for file in log for line in file.read_text().splitlines()]
    assert {row["entity"] for row in rows} == {LOGGED}


def test_routes_dags_and_page_are_there(told, project):
    _, page, api, *_ = told
    assert {f"/models/{SPEND}/predict", "/events/{dataset}"} <= set(api["paths"])
    assert "/predict" not in api["paths"]  # of three models none is the default one
    assert f'<h2><a href="/status/{SPEND}">{SPEND}</a></h2>' in page
    home = project.folder / ".gyre" / "airflow"
    known = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    known["AIRFLOW__CORE__DAGS_FOLDER"] = str(project.folder / "dags")
    read = project.run('python -c "$READ" dags 2> /dev/null | tail -1', READ=READ, **known)
    bag = json.loads(read)
    assert bag["errors"] == {}
    kinds, models = ("train", "schedule", "monitor", "hourly", "score"), (SPEND, VISITS)
    assert {f"{kind}_{model}" for kind in kinds for model in models} <= set(bag["dags"])
    datasets = ("orders", "spend", VISITS)
    ingests = {f"ingest_{dataset}" for dataset in datasets}
    assert ingests | {"read_specs"} == set(bag["dags"]["ingest"]["tasks"])


def test_no_line_of_another_file_was_edited(told, project):
    now = project.content()
    assert {name: now[name] for name in project.before} == project.before
    new = {place.format(name) for place in THREE for name in ("spend", VISITS)}
    new = {name.replace("models/spend", f"models/{SPEND}") for name in new}
    assert now.keys() - project.before.keys() == new


def test_what_gyre_new_wrote_learns_as_it_is_and_passes_every_check(told, project):
    chance, days = np.random.default_rng(7), 400
    start = np.datetime64("now", "s") - np.timedelta64(days, "D")
    steady = chance.random(300) < 0.5
    entity, seconds = [], []
    for number, goes_on in enumerate(steady):
        gaps = chance.exponential(8 if goes_on else 45, 80) * 86_400
        times = chance.random() * 30 * 86_400 + gaps.cumsum()
        times = times[times < days * 86_400]
        entity += [number] * len(times)
        seconds += [*times.astype(int)]
    at = pa.array(start + np.array(seconds, "timedelta64[s]"), pa.timestamp("us", "UTC"))
    rows = {"event_id": range(len(entity)), "entity_id": entity, "event_ts": at}
    rows["amount"] = chance.integers(1, 100, len(entity)) / 4
    pq.write_table(
        pa.table({n: pa.array(v) for n, v in rows.items()}), project.folder / "v.parquet"
    )
    missing = project.run(f"gyre ingest {VISITS}", 1)
    assert f"add the line GYRE_SOURCES__{VISITS.upper()}=…" in missing
    (project.settings.home / "gyre.env").write_text(
        f"GYRE_SOURCES__{VISITS.upper()}={project.folder / 'v.parquet'}\n"
    )
    said = project.run('python -c "$LEARN"', LEARN=LEARN)
    assert f"{len(entity)} new" in said
    assert f"{VISITS}: version 1 is in production" in said
    assert f"known of {LOGGED}: True" in said  # by its text in the log
    project.run("ruff check --no-cache . && ruff format --no-cache --check .")
    project.run(f"mypy --cache-dir {PROJECT / '.mypy_cache'} feature_repo/datasets/{VISITS}.py")
    assert "there already" in project.run(f"gyre new {VISITS}", 2)
    assert "orders has a view customer_features" in project.run("gyre new customer", 2)
    for bad in ("Web", "class", "a-b", "a__b", "../x", "x" * 31):
        assert "expected up to 30 small letters" in project.run(f"gyre new {bad}", 2)
