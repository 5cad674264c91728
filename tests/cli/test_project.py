"""A project of a team's own, from `gyre init` to predictions, and the errors of a wrong one."""

import json

import pytest

from core.project import CLONE
from tests.conftest import new_settings
from tests.support.tools.clone import (
    events,
    few_orders,
    fewer_trees,
    mlflow_and_redis,
    outer_environment,
    run,
    stack_environment,
)
from tests.support.tools.dag_reader import READ

pytestmark = pytest.mark.journey

NEW = (
    "gyre new visits --from ../visits.csv --label silence "
    "--key visit_no --entity visitor_id --time seen_at"
)
SILENCE = "from datetime import timedelta\n\nSILENCE = timedelta(hours=24)\n"
LEARN = """
import json
from datetime import UTC, datetime
from core.settings import load_settings
from core.spec import load_spec
from feature_engine.ingest.pipeline import ingest
from mlflow_server.api.registry import Registry
from training.chain import train
from training.code_hash import code_hash

settings, now = load_settings(), datetime.now(UTC)
for name in ("orders", "visits"):
    print(ingest(settings, name, now).summary())
    report = train(settings, load_spec(name), now, key="a", reason="b", who="c")
    print(f"{name}: {report.outcome}")
print(json.dumps([Registry(settings).version("visits", "1").tags, code_hash(load_spec("visits"))]))
"""
"""What `gyre ingest` and `gyre train` do, importing all of it once."""
CODE = (
    "from core.spec import load_spec; from training.code_hash import code_hash as h\n"
)
CODE += "print(h(load_spec('visits')))"


PAGES = ("home", "shop", "")
VISITS = [
    f"{number},v-{visitor:03},{time.isoformat()},{minutes},{PAGES[number % 3]}\n"
    for number, visitor, time, minutes in events()
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Folder, settings and environment of a project as `gyre init` writes it, its package used."""
    folder = tmp_path_factory.mktemp("teams") / "shop-models"
    outer = outer_environment()
    output = run(f"gyre init {folder.name}", folder.parent, outer)
    assert f"cd {folder}\n" in output
    few_orders(folder / "data" / "orders.parquet")
    fewer_trees(folder / "models" / "orders.toml")
    (folder / "shop_models" / "limits.py").write_text(SILENCE)
    orders = folder / "feature_repo" / "datasets" / "orders.py"
    text = orders.read_text().replace("silence=timedelta(hours=48)", "silence=SILENCE")
    first = "from __future__ import annotations\n"
    imported = f"{first}from shop_models.limits import SILENCE\n"
    orders.write_text(text.replace(first, imported))
    git = "git init -q . && git add . && git -c user.name=a -c user.email=a@b commit -qm first"
    run(git, folder, outer)
    settings = new_settings(folder / ".gyre", demo_start=None)
    environment = stack_environment(settings) | {"GYRE_PROJECT": str(folder)}
    with mlflow_and_redis(settings):
        yield folder, settings, environment


@pytest.fixture(scope="module")
def outputs(project):
    """What each command prints, on the way from a CSV to versions of both models."""
    folder, _, environment = project
    header = "visit_no,visitor_id,seen_at,minutes,page\n"
    (folder.parent / "visits.csv").write_text("".join([header, *VISITS]))
    outputs = {"new": run(NEW, folder, environment)}
    fewer_trees(folder / "models" / "visits.toml")
    run("cd feature_repo && feast apply", folder, environment)
    outputs["monitor"] = run("gyre monitor orders", folder, environment)
    learn = environment | {"LEARN": LEARN}
    outputs["learn"] = run('python -c "$LEARN"', folder.parent, learn)
    return outputs


def test_a_csv_becomes_three_files_and_a_source(outputs, project):
    folder, settings, environment = project
    for line in ("key: visit_no", "entity: visitor_id", "added up: minutes"):
        assert line in outputs["new"].splitlines()
    file = settings.home / "gyre.env"
    line = f"GYRE_SOURCES__VISITS={folder.parent}/visits.csv"
    assert line in file.read_text().splitlines()
    assert file.stat().st_mode & 0o777 == 0o600
    assert "there already" in run(NEW, folder, environment, 2)


def test_monitoring_without_a_production_version_reports_insufficient_data(outputs):
    words = "nothing is in production; nothing (insufficient_data)"
    assert words in outputs["monitor"]


def test_both_models_are_trained_and_lineage_names_the_project(outputs, project):
    folder, _, environment = project
    lines = outputs["learn"].splitlines()
    assert f"{len(VISITS)} new" in outputs["learn"]
    for model in ("orders", "visits"):
        assert f"{model}: version 1 is in production, the first one" in lines
    (line,) = (line for line in lines if line.startswith("[{"))
    tags, code = json.loads(line)
    heads = f"git rev-parse HEAD; git -C {CLONE} rev-parse HEAD"
    commits = run(heads, folder, environment).split()
    assert [tags["git_commit"], tags["gyre_commit"]] == commits
    assert tags["git_clean"] == "false"  # visits is not committed
    assert tags["code_sha256"] == code
    (folder / "shop_models" / "limits.py").write_text(f"{SILENCE}\n")
    changed = run(f'python -c "{CODE}"', folder, environment).strip()
    assert changed != code


def test_airflow_has_only_dags_of_the_project(outputs, project, tmp_path):
    _, _, environment = project
    dags = {"AIRFLOW_HOME": str(tmp_path), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    dags["AIRFLOW__CORE__DAGS_FOLDER"] = str(CLONE / "dags")
    script = f'python -c "$READ" {CLONE}/dags 2> /dev/null | tail -1'
    bag = json.loads(run(script, tmp_path, environment | dags | {"READ": READ}))
    assert bag["errors"] == {}
    assert {"train_orders", "train_visits", "ingest"} <= set(bag["dags"])
    assert not [name for name in bag["dags"] if "customer_churn" in name]
    assert {"ingest_orders", "ingest_visits"} <= set(bag["dags"]["ingest"]["tasks"])


def test_init_fills_an_empty_folder_once_and_puts_the_home_into_it(tmp_path):
    folder = tmp_path / "team_a"
    folder.mkdir()
    environment = outer_environment() | {"GYRE_PROJECT": str(folder)}
    run("gyre init .", folder, environment)
    names = {path.name for path in folder.iterdir()}
    folders = {"data", "feature_repo", "models", "team_a"}
    assert names == folders | {".gitignore", "README.md"}
    output = run("gyre env", tmp_path, environment | {"GYRE_PROJECT": "team_a"})
    assert f"export GYRE_PROJECT={folder}\n" in output
    assert f"export GYRE_HOME={folder}/.gyre\n" in output
    before = sorted(folder.rglob("*"))
    output = run(f"gyre init {folder}", tmp_path, outer_environment(), 2)
    refusal = f"{folder}: expected a new or an empty folder; nothing was written\n"
    assert f"gyre: {refusal}" in output
    assert sorted(folder.rglob("*")) == before


def test_a_folder_without_a_project_is_reported_in_one_line_with_the_remedy(tmp_path):
    environment = outer_environment() | {"GYRE_PROJECT": "none"}
    output = run("gyre env", tmp_path, environment, 2)
    expected = (
        f"expected a project, and {tmp_path}/none has no models; make one: gyre init DIR, or name "
        "your Feast repository: GYRE_FEAST_REPO"
    )
    assert output.strip() == f"gyre: GYRE_PROJECT: {expected} (found 'none')"


def test_a_folder_with_models_and_a_feast_repository_elsewhere_is_a_project(tmp_path):
    folder = tmp_path / "shop"
    (folder / "models").mkdir(parents=True)
    (folder / ".gyre").mkdir()
    repository = tmp_path / "features"
    repository.mkdir()
    (repository / "feature_store.yaml").write_text(
        "project: theirs\nregistry: data/registry.db\nprovider: local\n"
    )
    environment = outer_environment()
    outside = run("gyre env", folder, environment)
    assert f"export GYRE_PROJECT={folder}\n" not in outside
    (folder / ".gyre" / "gyre.env").write_text(f"GYRE_FEAST_REPO={repository}\n")
    inside = run("gyre env", folder, environment)
    assert f"export GYRE_PROJECT={folder}\n" in inside
