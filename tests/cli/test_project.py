"""A project of a team's own, from `gyre init` to predictions, and what a wrong one is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import httpx
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.settings import CLONE
from feature_repo.feast_config import write_feast_config
from stack.environment import child_environment
from tests.conftest import (
    BIN,
    answers,
    mlflow_server,
    new_settings,
    redis_server,
    running,
)
from tests.conftest import wait_until as wait
from tests.dags.test_parse import READ
from tests.preloaded import commands_folder

NEW = (
    "gyre new visits --from ../visits.csv --label silence "
    "--key visit_no --entity visitor_id --time seen_at"
)
OWN = "SILENCE = timedelta(hours=24)"
LEARN = """
import json, sys
from datetime import UTC, datetime
from core.settings import load_settings
from core.spec import load_spec
from feature_repo.ingest import ingest
from mlflow_server.registry import Registry
from training.chain import train
from training.lineage import code_hash

settings, now = load_settings(), datetime.now(UTC)
for name in ("orders", "visits"):
    print(ingest(settings, name, now).summary())
    report = train(settings, load_spec(name), now, key="a", reason="b", who="c")
    print(f"{name}: {report.outcome}")
print(json.dumps({"tags": Registry(settings).version("visits", "1").tags,
                  "code": code_hash(load_spec("visits"))}))
"""
"""What `gyre ingest` and `gyre train` do, importing all of it once."""
CODE = "from core.spec import load_spec; from training.lineage import code_hash as h\n"
CODE += "print(h(load_spec('visits')))"


def run(command, folder, environment, code=0):
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == code, (
        f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


def bare():
    """The environment of a shell that belongs to no stack."""
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("GYRE_", "PROMETHEUS_"))
    }
    return own | {"PATH": f"{commands_folder()}:{BIN}:{os.environ['PATH']}"}


def write_visits(path):
    """A CSV of 300 visitors over 400 days, half of whom stay away for long."""
    chance, lines = np.random.default_rng(7), []
    start = np.datetime64("now", "s") - np.timedelta64(400, "D")
    for number in range(300):
        days = chance.exponential(8 if number % 2 else 45, 80).cumsum()
        for at in start + (days[days < 400] * 86_400).astype("timedelta64[s]"):
            minutes, page = (
                chance.integers(1, 100) / 4,
                chance.choice(["home", "shop", ""]),
            )
            lines.append(f"{len(lines)},v-{number:03},{at}Z,{minutes},{page}\n")
    path.write_text("visit_no,visitor_id,seen_at,minutes,page\n" + "".join(lines))
    return len(lines)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder, settings and environment of a project as `gyre init` writes it, its package used."""
    folder = tmp_path_factory.mktemp("teams") / "shop-models"
    said = run(f"gyre init {folder.name}", folder.parent, bare())
    assert f"cd {folder}\n" in said
    (folder / "shop_models" / "limits.py").write_text(
        f"from datetime import timedelta\n\n{OWN}\n"
    )
    rows = pq.read_table(folder / "data" / "orders.parquet")  # an eighth, for speed
    pq.write_table(
        rows.filter(pc.field("customer_id") < 3000), folder / "data" / "orders.parquet"
    )
    orders = folder / "feature_repo" / "datasets" / "orders.py"
    text = orders.read_text().replace("silence=timedelta(hours=48)", "silence=SILENCE")
    imported = "from feature_repo.definition import Dataset, Label\n"
    orders.write_text(
        text.replace(imported, f"{imported}from shop_models.limits import SILENCE\n")
    )
    git = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm first"
    run(git, folder, bare())
    settings = new_settings(folder / ".gyre", demo_start=None)
    outer = bare()
    environment = outer | child_environment(settings) | {"GYRE_PROJECT": str(folder)}
    environment["PATH"] = outer["PATH"]
    mlflow = mlflow_server(settings, commands_folder() / "python")
    with mlflow, redis_server(settings.redis_port, settings.home):
        write_feast_config(settings)
        yield folder, settings, environment


@pytest.fixture(scope="module")
def chain(project, tmp_path_factory):
    """What each command said, on the way from a CSV to versions of both models."""
    folder, _, environment = project
    rows = write_visits(folder.parent / "visits.csv")
    said = {"new": run(NEW, folder, environment)}
    said["check"] = run("gyre check", folder, environment)
    said["apply"] = run("cd feature_repo && feast apply", folder, environment)
    said["learn"] = run(
        'python -c "$LEARN"', folder.parent, environment | {"LEARN": LEARN}
    )
    return said, rows


def test_a_csv_never_seen_before_becomes_three_files(chain, project):
    said, _ = chain
    folder, settings, _ = project
    for line in ("key: visit_no", "entity: visitor_id", "added up: minutes"):
        assert line in said["new"].splitlines()
    line = f"GYRE_SOURCES__VISITS={folder.parent}/visits.csv"
    assert line in (settings.home / "gyre.env").read_text().splitlines()
    assert (settings.home / "gyre.env").stat().st_mode & 0o777 == 0o600


def test_both_models_pass_every_check_and_the_example_of_the_clone_is_not_there(chain):
    said, _ = chain
    lines = [line for line in said["check"].splitlines() if ": ok; " in line]
    assert [line.split(":")[0] for line in lines] == ["orders", "visits"]
    assert "customer_churn" not in said["check"] + said["apply"]


def test_both_learn_and_lineage_names_the_project(chain, project):
    said, rows = chain
    folder, _, environment = project
    assert f"{rows} new" in said["learn"].replace(",", "")
    for model in ("orders", "visits"):
        assert f"{model}: version 1 is in production" in said["learn"]
    *_, last = (
        line for line in said["learn"].splitlines() if line.startswith('{"tags"')
    )
    tags = json.loads(last)["tags"]
    head = run("git rev-parse HEAD", folder, environment).strip()
    assert (tags["git_commit"], tags["git_clean"]) == (
        head,
        "false",
    )  # visits is not committed
    assert tags["gyre_commit"] == run("git rev-parse HEAD", CLONE, bare()).strip()
    assert tags["code_sha256"] == json.loads(last)["code"]
    (folder / "shop_models" / "limits.py").write_text(
        f"from datetime import timedelta\n{OWN}\n"
    )
    changed = run(f'python -c "{CODE}"', folder, environment).strip()
    assert changed != tags["code_sha256"]


def test_serving_answers_for_both(chain, project):
    _, settings, environment = project
    address = settings.serving_address
    asked = {"orders": {"customer_id": 2049}, "visits": {"visitor_id": "v-007"}}
    found = {}

    def is_online(model):
        answer = httpx.post(
            f"{address}/models/{model}/predict", json=asked[model], timeout=60
        )
        found[model] = answer.json()
        return answer.is_success and found[model]["features_from"] == "online"

    log = settings.home / "serving.log"
    with running([sys.executable, "-m", "serving"], log, **environment):
        wait("serving", lambda: answers(f"{address}/health/live"))
        for model in asked:
            wait(model, partial(is_online, model))
            assert found[model]["model_version"] == "1"
            assert 0 <= found[model]["probability"] <= 1
        assert "customer_churn" not in httpx.get(f"{address}/openapi.json").text
    written = run(
        "find serving/models -name serving.json", settings.home, environment
    ).split()
    contracts = [json.loads((settings.home / path).read_text()) for path in written]
    assert [each["lookup"]["unsupported"] for each in contracts] == [None, None]


def test_airflow_has_dags_of_the_project_alone(chain, project, tmp_path):
    _, _, environment = project
    dags = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    dags["AIRFLOW__CORE__DAGS_FOLDER"] = str(CLONE / "dags")
    script = f'python -c "$READ" {CLONE}/dags 2> /dev/null | tail -1'
    bag = json.loads(run(script, tmp_path, environment | dags | {"READ": READ}))
    assert bag["errors"] == {}
    assert {"train_orders", "train_visits", "ingest"} <= set(bag["dags"])
    assert not [name for name in bag["dags"] if "customer_churn" in name]
    assert {"ingest_orders", "ingest_visits"} <= set(bag["dags"]["ingest"]["tasks"])


def test_a_second_time_and_in_a_folder_that_is_not_empty_nothing_is_written(
    chain, project
):
    folder, _, environment = project
    assert "there already" in run(NEW, folder, environment, 2)
    before = sorted(folder.rglob("*"))
    said = run(f"gyre init {folder}", folder, environment, 2)
    assert (
        f"gyre: {folder}: expected a new or an empty folder; nothing was written\n"
        in said
    )
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["json", "9lives", "class", "models"])
def test_a_project_whose_package_could_not_be_imported_is_refused(tmp_path, name):
    said = run(f"gyre init {name}", tmp_path, bare(), 2)
    assert (
        "expected a name that a new Python package can have, such as shop_models"
        in said
    )
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled_also_from_inside_it(tmp_path):
    folder = tmp_path / "team_a"
    folder.mkdir()
    run(
        "gyre init . && test -f README.md",
        folder,
        bare() | {"GYRE_PROJECT": str(folder)},
    )
    expected = [".gitignore", "README.md", "data", "feature_repo", "models", "team_a"]
    assert sorted(path.name for path in folder.iterdir()) == expected


def test_what_is_no_project_is_one_line_with_the_remedy(tmp_path):
    for name, found in (
        ("none", "no models"),
        ("half", "no feature_repo/feature_store.yaml"),
    ):
        (tmp_path / "half" / "models").mkdir(parents=True, exist_ok=True)
        said = run("gyre env", tmp_path, bare() | {"GYRE_PROJECT": name}, 2)
        expected = f"expected a project, and {tmp_path}/{name} has {found}; make one: gyre init DIR"
        assert said.strip() == f"gyre: GYRE_PROJECT: {expected} (found '{name}')"


def test_it_is_named_by_the_environment_alone(tmp_path):
    (tmp_path / "gyre.env").write_text("GYRE_PROJECT=/elsewhere\n")
    said = run("gyre env", tmp_path, bare() | {"GYRE_HOME": str(tmp_path)}, 2)
    assert "GYRE_PROJECT: set it in the environment, not in gyre.env" in said
    assert f"there it is {CLONE}" in said


def test_processes_get_the_whole_path_and_the_home_lies_in_the_project(tmp_path):
    run("gyre init team_b", tmp_path, bare())
    said = run("gyre env", tmp_path, bare() | {"GYRE_PROJECT": "team_b"})
    assert f"export GYRE_PROJECT={tmp_path}/team_b\n" in said
    assert f"export GYRE_HOME={tmp_path}/team_b/.gyre\n" in said
