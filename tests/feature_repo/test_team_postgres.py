"""A team's Feast on PostgreSQL, as its template has it: offline, online, registry and labels."""

import gc
import subprocess
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import feast
import numpy as np
import pandas as pd
import psycopg
import pytest
from feast.driver_test_data import create_driver_hourly_stats_df
from feast.repo_config import load_repo_config

from core.spec import load_spec
from feature_repo.labels import label_source
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.service import PublishedService
from feature_repo.published.specification import look_up_specification
from feature_repo.views import entities, late_features
from tests.conftest import BIN, mlflow_server, new_settings
from tests.support.feature_repo.team import (
    MODEL,
    REQUEST,
    SERVICE,
    SPEC,
    VIEW,
    by_hand,
    labels_of,
)
from tests.support.feature_repo.team import feast as run_feast
from tests.support.stores.postgres import postgres_server
from training.chain import train

# Feast never closes the connections of its pools.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
DAY = timedelta(days=1)
NAMES = ["conv_rate", "conv_rate_plus_val1"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    with postgres_server(folder / "postgres.log") as server:
        yield server
        gc.collect()  # what Feast left open, while this module's filters hold


def load_example(address):
    """Load Feast's example, as its template should: it fails on the columns of maps."""
    end = datetime.now().replace(microsecond=0, second=0, minute=0)  # noqa: DTZ005
    start = end - timedelta(days=15)
    rows = create_driver_hourly_stats_df([1001, 1002, 1003, 1004, 1005], start, end)
    columns = {
        "event_timestamp": "timestamptz",
        "driver_id": "bigint",
        "conv_rate": "real",
        "acc_rate": "real",
        "avg_daily_trips": "int",
        "created": "timestamp",
    }
    fields = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    marks = ", ".join(["%s"] * len(columns))
    table = "feast_driver_hourly_stats"
    values = rows[[*columns]].astype(object).itertuples(index=False)
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} ({fields})")
        statement = f"INSERT INTO {table} VALUES ({marks})"
        cursor.executemany(statement, [tuple(row) for row in values])


@pytest.fixture(scope="module")
def repository(server, tmp_path_factory):
    """What `feast init -t postgres` writes, applied and materialised by Feast."""
    folder = tmp_path_factory.mktemp("team")
    port = urlsplit(server.address).port
    lines = [
        "127.0.0.1",
        str(port),
        "postgres",
        "public",
        "gyre",
        "secret",
        "disable",
        "n",
    ]
    subprocess.run(
        [BIN / "feast", "init", "-t", "postgres", "team"], cwd=folder,
        input="\n".join([*lines, ""]), text=True, check=True, capture_output=True,
    )  # fmt: skip
    load_example(server.address)
    repository = folder / "team" / "feature_repo"
    run_feast(repository, "apply")
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    run_feast(repository, "materialize-incremental", now)
    return repository


@pytest.fixture(scope="module")
def rows(server):
    with psycopg.connect(server.address) as connection:
        cursor = connection.execute("SELECT * FROM feast_driver_hourly_stats")
        names = [column.name for column in cursor.description]
        rows = pd.DataFrame(cursor.fetchall(), columns=names)
    rows["event_timestamp"] = pd.to_datetime(rows["event_timestamp"], utc=True)
    return rows


@pytest.fixture(scope="module")
def settings(repository, tmp_path_factory):
    return new_settings(tmp_path_factory.mktemp("home"), feast_repo=repository)


@pytest.mark.nightly
def test_frame_and_online_values_are_those_of_feast_and_of_a_search_by_hand(
    repository, settings, rows
):
    questions = labels_of(rows).rename(
        columns={"Driver ID": "driver_id", "asked": "event_timestamp"}
    )
    questions = questions[["driver_id", "event_timestamp", *REQUEST]]
    late = questions.assign(event_timestamp=questions["event_timestamp"] + 40 * DAY)
    frame = pd.concat([questions, late]).sample(400, random_state=1)
    frame = frame.drop_duplicates(["driver_id", "event_timestamp"], ignore_index=True)
    service = PublishedService(settings, SERVICE)
    own = service.historical(frame.assign(as_of=0)).to_pandas()
    order = ["event_timestamp", "driver_id"]
    own = own.sort_values(order, ignore_index=True)
    frame = frame.sort_values(order, ignore_index=True)
    expected = by_hand(rows, frame)
    assert 0 < np.isnan(expected).sum() < len(frame)
    assert own["conv_rate"].to_numpy(np.float32) == pytest.approx(expected, nan_ok=True)

    config = load_repo_config(repository, repository / "feature_store.yaml")
    stock = feast.FeatureStore(repo_path=str(repository), config=config)
    keys = [{"driver_id": number, **REQUEST} for number in (1001, 1005, 77)]
    values = stock.get_online_features(stock.get_feature_service(SERVICE), keys)
    values = values.to_dict()
    now = rows["event_timestamp"].max().to_pydatetime()
    online = OnlineFeatures(settings, SERVICE, NAMES).read(keys, now)
    assert online[2] is None
    for position in (0, 1):
        assert online[position] == {name: values[name][position] for name in NAMES}
    found = entities(service, ["driver_id"])["driver_id"].to_pylist()
    assert sorted(found) == [1001, 1002, 1003, 1004, 1005]
    until = stock.get_feature_view(VIEW).most_recent_end_time
    assert not list(late_features(settings, service, (), until, timedelta(hours=1)))
    assert "not one Redis" in look_up_specification(settings, SERVICE).unsupported


@pytest.mark.nightly
def test_a_model_is_trained_on_it_and_on_labels_of_the_same_database(
    server, settings, rows, tmp_path
):
    table = labels_of(rows)
    with psycopg.connect(server.address, autocommit=True) as connection:
        connection.execute(
            'CREATE TABLE outcomes ("Driver ID" bigint, asked timestamptz, "reached goal" int, '
            '"known at" timestamptz, val_to_add bigint, val_to_add_2 bigint)'
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO outcomes VALUES (%s, %s, %s, %s, %s, %s)",
                [tuple(row) for row in table.astype(object).itertuples(index=False)],
            )
    (tmp_path / f"{MODEL}.toml").write_text(SPEC)
    spec = load_spec(MODEL, tmp_path)
    address = server.address.replace("postgres://", "postgresql://").replace(
        "gyre@", "gyre:secret@"
    )
    label = spec.label.model_copy(update={"source": f"{address}#outcomes"})
    spec = spec.model_copy(update={"label": label})
    assert "secret" not in label_source(settings, spec).name
    with mlflow_server(settings):
        report = train(settings, spec, datetime.now(UTC), key="k", reason="r", who="t")
    assert "version 1 is in production" in report.outcome
