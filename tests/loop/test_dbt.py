"""The commands of "You have dbt", by a real dbt on DuckDB and on PostgreSQL."""

import csv
import re
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx
import pytest

from core.project import CLONE
from tests.conftest import BIN, new_settings, redis_server
from tests.support.feature_repo.team import SPEC
from tests.support.stores.postgres import postgres_server
from tests.support.tools.clone import events, finished
from tests.support.tools.dag_reader import read as read_dags
from tests.support.tools.pages import read_page
from tests.support.tools.stack import Stack

PAGE = read_page("how-to/dbt.md")
SEED = "warehouse/seeds/raw_visits.csv"
INSTALL, SOURCE, IMPORT, VERSIONS = PAGE.commands
DBT_PROJECT = """
name: warehouse
profile: warehouse
flags:
  send_anonymous_usage_stats: false
"""
FEATURE_STORE = """
project: team
provider: local
registry: data/registry.db
online_store:
  type: sqlite
  path: data/online_store.db
entity_key_serialization_version: 3
"""
SPEC_OF_TEAM = {
    'name = "driver_trips"': 'name = "returning"',
    "driver_activity_v1": "visitor_activity_v1",
    'entity_key = "driver_id"': 'entity_key = "visitor_id"',
    "labels.parquet": "returned.parquet",
    'name = "reached goal"': 'name = "returned"',
    'event_time = "asked"': 'event_time = "asked_at"',
    'known_at = "known at"': 'known_at = "known_at"',
    'entity = { driver_id = "Driver ID" }\n': "",
    "horizon_days = 0.1": "horizon_days = 7",
    'conv_rate = "float32"': 'visits_30d = "int64"',
    'conv_rate_plus_val1 = "double"': 'spent_30d = "double"',
    "train = 10": "train = 100\ntest = 30",
}
"""What the spec of another repository is called here."""


def append_to_seed(folder, rows):
    """Append rows to those that dbt's models are made of; their times have no zone."""
    with (folder / SEED).open("a") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, visitor, time, amount in rows:
            text = time.strftime("%Y-%m-%d %H:%M:%S")
            writer.writerow([number, visitor, text, amount])


@pytest.fixture
def folder(tmp_path):
    """A folder with a dbt project, a team's Feast repository, and dbt's environment."""
    for name in ("warehouse/models", "warehouse/seeds", "team/models"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "team" / "feature_repo" / "data").mkdir(parents=True)
    (tmp_path / ".venv-dbt").symlink_to(CLONE / ".venv-dbt")
    (tmp_path / "warehouse" / "dbt_project.yml").write_text(DBT_PROJECT)
    for name, text in PAGE.files.items():
        if not name.startswith("dags/"):
            (tmp_path / name).write_text(text)
    store = tmp_path / "team" / "feature_repo" / "feature_store.yaml"
    store.write_text(FEATURE_STORE)
    spec = SPEC
    for words, instead in SPEC_OF_TEAM.items():
        assert words in spec
        spec = spec.replace(words, instead)
    spec = spec.replace('experiment = "driver_trips"', 'experiment = "returning"')
    (tmp_path / "team" / "models" / "returning.toml").write_text(spec)
    (tmp_path / SEED).write_text("visit_no,visitor_id,seen_at,spent\n")
    append_to_seed(tmp_path, events())
    return tmp_path


@pytest.fixture
def stack(tmp_path):
    stack = Stack(new_settings(tmp_path / "home", demo_start=None))
    stack.environment["PATH"] = f"{BIN}:{stack.environment['PATH']}"
    # They name the project of the clone, and Gyre's own configuration of Feast.
    for name in ("GYRE_PROJECT", "FEAST_FS_YAML_FILE_PATH"):
        stack.environment.pop(name, None)
    return stack


def predict(stack, model, visitor):
    address = f"{stack.settings.serving_address}/models/{model}/predict"
    return httpx.post(address, json={"visitor_id": visitor}, timeout=30).json()


def test_the_page_names_the_versions_of_the_lock():
    locked = (CLONE / "tests" / "dbt.lock").read_text()
    pins = re.findall(r"([\w-]+)(?:\[dbt\])?(==[\d.]+)", INSTALL)
    assert len(pins) == 4
    for name, version in pins:
        assert f"\n{name}{version} " in locked
    ours = (CLONE / "requirements.lock").read_text()
    for name in ("duckdb", "feast"):
        (version,) = re.findall(rf"^{name}(==[\d.]+) ", ours, re.MULTILINE)
        assert (name, version) in pins


def test_the_dag_of_the_page_starts_the_ingest(tmp_path):
    (tmp_path / "dags").mkdir()
    name = "dags/warehouse.py"
    (tmp_path / name).write_text(PAGE.files[name])
    bag = read_dags(tmp_path / "airflow", tmp_path)
    assert bag["errors"] == {}
    tasks = bag["dags"]["warehouse"]["tasks"]
    assert tasks == {"dbt_build": ["ingest"], "ingest": []}


@pytest.mark.nightly
def test_a_table_of_dbt_is_the_source_of_a_dataset(folder, stack):
    try:
        done = finished(SOURCE, folder, stack.environment, 0, 900)
        assert "visits: version 1 is in production" in done.stdout
        assert predict(stack, "visits", 5)["features_from"] == "online"
        done = finished(VERSIONS, folder, stack.environment, 0, 900)
        assert f"[{len(events())} rows" in done.stdout
        # The stack is up, and holds the file of dbt no longer.
        append_to_seed(folder, [(900_000, 5, datetime.now(UTC), 12.5)])
        again = (
            "(cd warehouse && ../.venv-dbt/bin/dbt build); cd shop; gyre ingest visits"
        )
        done = finished(again, folder, stack.environment, 0, 300)
        assert "1 new, 0 corrected, 0 quarantined" in done.stdout
    finally:
        finished("cd shop; gyre down", folder, stack.environment, 0, 300)


@pytest.mark.nightly
def test_a_table_of_dbt_on_postgresql_is_ingested(folder, stack, tmp_path):
    with (
        postgres_server(tmp_path / "postgres.log") as server,
        redis_server(stack.settings.redis_port, tmp_path),
    ):
        parts = urlsplit(server.address)
        stack.environment |= {
            "SHOP_HOST": str(parts.hostname),
            "SHOP_PORT": str(parts.port),
            "SHOP_USER": str(parts.username),
            "SHOP_DATABASE": "postgres",
        }
        build, *commands = SOURCE.replace("\\\n", "").splitlines()
        # Feast's files need dbt-duckdb.
        build = build.replace("build", "build --target server --select +visits")
        commands[2] = re.sub(
            '"duckdb:.*"', f"{server.address}#marts.visits", commands[2]
        )
        publish = '(eval "$(gyre env)"; cd feature_repo && feast apply)'
        commands[-1:] = [publish, "gyre ingest visits --json"]
        script = "\n".join([build, *commands])
        done = finished(script, folder, stack.environment, 0, 600)
        assert f'"inserted": {len(events())}' in done.stdout


@pytest.mark.nightly
def test_feast_imports_a_model_of_dbt_that_gyre_trains_on(folder, stack):
    try:
        done = finished(IMPORT, folder, stack.environment, 0, 900)
        assert "returning: version 1 is in production" in done.stdout
        answer = predict(stack, "returning", 5)
        assert (answer["model_version"], answer["features_from"]) == ("1", "online")
    finally:
        finished("cd team; gyre down", folder, stack.environment, 0, 300)
