"""A person is forgotten of datasets of other entities, and of one that cannot be imported."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from redis import Redis

from gyre import PROJECT
from tests.conftest import new_settings
from tests.support.tools.clone import mlflow_and_redis, run, stack_environment

pytestmark = pytest.mark.journey

PERSON = 'N\'7 "é"'
MODULE = """
from datetime import timedelta

import pyarrow as pa
from feast import Entity, FeatureService, ValueType

from gyre import Dataset, Window, Windows, feature_view

DATASET = Dataset(
    name="{name}",
    schema=pa.schema(
        {{"flight": pa.int64(), "tailnum": pa.string(), "origin": pa.string(),
          "at": pa.timestamp("us", "UTC")}}
    ),
    key=("flight",),
    event_time="at",
    entity="{entity}",
    look_back=timedelta(days=7),
    silence=timedelta(days=7),
    views={{
        "{name}_view": Windows(
            entity="{entity}", time="at", windows=[Window(None, "count", None, name="{name}_n")]
        )
    }},
    labels={{}},
)
entity = Entity(name="{name}", join_keys=["{entity}"], value_type=ValueType.STRING)
view = feature_view(DATASET, "{name}_view", [entity], owner="a")
service = FeatureService(name="{name}_v1", features=[view], owner="a")
"""
ENTITIES = {"airports": "origin", "planes": "tailnum", "repairs": "tailnum"}
RULE = {"column": "flight", "min_value": 0, "mostly": 0.5}
SUITE = {
    "name": "flights",
    "expectations": [{"type": "expect_column_values_to_be_between", "kwargs": RULE}],
}
INGEST = """
import sys
from datetime import UTC, datetime
from core.settings import load_settings
from feature_engine.ingest.pipeline import ingest
for name in sys.argv[1:]:
    print(ingest(load_settings(), name, datetime.now(UTC)).summary())
"""


@pytest.fixture
def project(tmp_path):
    """Three datasets of the same rows: one is of the airports, two are of the aircraft."""
    folder = tmp_path / "team"
    for name in ("models", "feature_repo"):
        shutil.copytree(PROJECT / name, folder / name)
    for file in (folder / "models").iterdir():
        file.unlink()
    (folder / "feature_repo" / "datasets" / "orders.py").unlink()
    settings = new_settings(folder / ".gyre", demo_start=None)
    now = datetime.now(UTC).replace(microsecond=0)
    rows = [
        {
            "flight": number if number != 8 else -8,
            "tailnum": PERSON if number % 4 == 0 else f"N{number % 9}",
            "origin": "JFK" if number % 3 else "LGA",
            "at": now - timedelta(days=1, hours=number),
        }
        for number in range(60)
    ]
    file = tmp_path / "flights.parquet"
    pq.write_table(pa_table(rows), file)
    environment = stack_environment(settings) | {"GYRE_PROJECT": str(folder)}
    for name, entity in ENTITIES.items():
        (folder / f"feature_repo/datasets/{name}.py").write_text(
            MODULE.format(name=name, entity=entity)
        )
        (folder / f"feature_repo/expectations/{name}.json").write_text(
            json.dumps(SUITE)
        )
        environment[f"GYRE_SOURCES__{name.upper()}"] = str(file)
    with mlflow_and_redis(settings):
        run("cd feature_repo && feast apply", folder, environment)
        run(
            'python -c "$INGEST" airports planes repairs',
            folder,
            environment | {"INGEST": INGEST},
        )
        yield folder, settings, environment


def pa_table(rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return pa.table(
        columns | {"at": pa.array(columns["at"], pa.timestamp("us", "UTC"))}
    )


def mentions(settings):
    """Return the tables whose files, of any version, and the hashes that hold the person."""
    names = []
    for file in settings.data.rglob("*.parquet"):
        rows = json.dumps(
            pq.read_table(file).to_pylist(), default=str, ensure_ascii=False
        )
        if "N'7" in rows:
            names.append("/".join(file.relative_to(settings.data).parts[:2]))
    with Redis.from_url(settings.redis_address) as redis:
        names += ["online" for key in redis.scan_iter() if b"N'7" in key]
    return sorted(set(names))


def counts(settings, name):
    """Return the newest count of each entity of a view."""
    rows = (
        DeltaTable(settings.data / f"features/{name}_view")
        .to_pyarrow_table()
        .to_pylist()
    )
    rows.sort(key=lambda row: row["event_timestamp"])
    return {row[ENTITIES[name]]: row[f"{name}_n"] for row in rows}


def test_what_a_broken_dataset_leaves_is_named_and_goes_once_it_is_mended(project):
    folder, settings, environment = project
    tables = [f"{kind}/{name}" for name in ENTITIES for kind in ("quarantine", "raw")]
    views = ["features/planes_view", "features/repairs_view", "online"]
    assert mentions(settings) == sorted([*tables, *views])
    assert sum(counts(settings, "airports").values()) == 59
    module = folder / "feature_repo/datasets/repairs.py"
    text = module.read_text()
    module.write_text("import nothing_of_this_name\n" + text)
    environment = environment | {"PERSON": PERSON}

    def forget(code, words='--tailnum "$PERSON"', name="planes"):
        return run(f"gyre forget {name} {words}", folder, environment, code)

    assert "expected one key" in forget(2, "--tailnum")
    assert "nothing_of_this_name" in forget(2, name="repairs")
    assert "raw rows: 42 rows" in forget(1, '--tailnum "$PERSON" --dry-run')
    assert mentions(settings) == sorted([*tables, *views])
    for _ in range(2):  # again it says the same
        output = forget(1)
        assert "not forgotten yet" in output
        assert "feature_repo/datasets/repairs.py:1" in output
        assert mentions(settings) == []
        assert sum(counts(settings, "airports").values()) == 45
    module.write_text(text)
    forget(0)
    assert counts(settings, "repairs") == counts(settings, "planes")
    ingest = 'python -c "$INGEST" airports planes repairs'
    run(ingest, folder, environment | {"INGEST": INGEST})
    assert mentions(settings) == []
    assert sum(counts(settings, "airports").values()) == 45
