"""A team's Feast repository: values of Feast's own stores, and of a search by hand."""

import asyncio
from datetime import timedelta

import feast
import numpy as np
import pandas as pd
import pytest
from feast.repo_config import load_repo_config
from pandas.testing import assert_frame_equal

from feature_repo.published.config import online_redis
from feature_repo.published.feast_reader import OnlineFeatures
from feature_repo.published.service import PublishedService
from feature_repo.published.specification import look_up_specification
from feature_repo.published.store import open_store
from feature_repo.views import entities, late_features
from serving.features.feast_reader import FeastReader
from serving.features.redis_reader import RedisReader
from tests.conftest import new_settings, redis_server, unused_port
from tests.support.feature_repo.team import (
    REQUEST,
    SERVICE,
    VIEW,
    by_hand,
    labels,
    make_team,
    rows_of,
)
from tests.support.feature_repo.team import (
    feast as run_feast,
)

DAY = timedelta(days=1)
STORES = {
    "dask": "online_store:\n    type: sqlite\n    path: data/online_store.db",
    "duckdb": "online_store:\n    type: sqlite\n    path: data/online_store.db\n"
    "offline_store:\n    type: duckdb",
}


@pytest.fixture(scope="module", params=STORES)
def repository(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return make_team(folder, STORES[request.param]) / "feature_repo"


@pytest.fixture(scope="module")
def settings(repository, tmp_path_factory):
    return new_settings(tmp_path_factory.mktemp("home"), feast_repo=repository)


def questions(repository):
    """The rows of the label's table, and moments at, before and after rows of the view."""
    frame = labels(repository).rename(
        columns={"Driver ID": "driver_id", "asked": "event_timestamp"}
    )
    frame = frame[["driver_id", "event_timestamp", *REQUEST]]
    shifts = [
        timedelta(0),
        timedelta(minutes=-20),
        timedelta(minutes=-20, microseconds=-1),
        DAY - timedelta(minutes=20),
        DAY - timedelta(minutes=20) + timedelta(microseconds=1),
        40 * DAY,
    ]
    frames = [
        frame.assign(event_timestamp=frame["event_timestamp"] + shift)
        for shift in shifts
    ]
    nobody = frame.head(3).assign(driver_id=77)
    questions = pd.concat([*frames, nobody], ignore_index=True)
    # Feast's dask store leaves out repeated ones.
    return questions.drop_duplicates(["driver_id", "event_timestamp"])


def test_the_frame_has_the_values_of_feasts_own_store_and_of_a_search_by_hand(
    repository, settings, monkeypatch
):
    frame = questions(repository).sample(600, random_state=1, ignore_index=True)
    frame["number"] = range(600)
    service = PublishedService(settings, SERVICE)
    own = service.historical(frame.assign(as_of=0)).to_pandas().drop(columns="as_of")
    monkeypatch.chdir(repository)  # Feast's DuckDB store reads a relative path there
    file = repository / "feature_store.yaml"
    config = load_repo_config(repository, file)
    stock = feast.FeatureStore(repo_path=str(repository), config=config)
    assert config.offline_store.type != service.store.config.offline_store.type
    job = stock.get_historical_features(frame, stock.get_feature_service(SERVICE))
    names = ["number", "conv_rate", "conv_rate_plus_val1", "conv_rate_plus_val2"]
    stock_rows = job.to_df()[names].sort_values("number").set_index("number")
    own_rows = own[names].sort_values("number").set_index("number")
    assert len(own_rows) == len(frame)
    # Feast's dask store leaves out rows of which it knows no young value.
    lost_rows = own_rows.drop(index=stock_rows.index)
    assert lost_rows["conv_rate"].isna().all()
    same_rows = own_rows.loc[stock_rows.index]
    assert_frame_equal(same_rows, stock_rows, check_dtype=False, rtol=1e-6)
    expected = by_hand(rows_of(repository), frame)
    assert np.isnan(expected).sum() > 50
    own_values = own_rows["conv_rate"].to_numpy(np.float32)
    assert own_values == pytest.approx(expected, nan_ok=True)


def test_a_column_of_the_frame_takes_no_features_place(repository, settings, caplog):
    frame = questions(repository).head(40).assign(number=range(40), as_of=0)
    service = PublishedService(settings, SERVICE)
    plain = service.historical(frame.copy()).sort_by("number")
    names = service.features.keys()
    # Feast's on-demand views read `view__feature` first.
    full_names = {f"{VIEW}__conv_rate", f"{VIEW}__acc_rate"}
    for name in names | full_names:
        caplog.clear()
        rows = service.historical(frame.assign(**{name: 700.0})).sort_by("number")
        assert rows.select(plain.column_names).equals(plain), name
        assert caplog.messages[0].endswith(f"the feature counts: {name}")
        stock_calls = []
        for questioned in (frame, frame.assign(**{name: 700.0})):
            job = service.store.get_historical_features(
                questioned.copy(), service.feast_service, full_feature_names=True
            )
            stock_calls.append(job.to_arrow().sort_by("number"))
        plain_rows, rows = stock_calls
        assert rows.select(plain_rows.column_names).equals(plain_rows), name


def test_online_values_are_those_of_feasts_own_reader_where_they_are_young(
    repository, settings
):
    store = open_store(settings)
    keys = [{"driver_id": number, **REQUEST} for number in (1001, 1005, 77)]
    names = ["conv_rate", "conv_rate_plus_val1"]
    now = rows_of(repository)["event_timestamp"].max().to_pydatetime()
    online = OnlineFeatures(settings, SERVICE, names)
    rows = online.read(keys, now)
    service = store.get_feature_service(SERVICE)
    stock = store.get_online_features(service, keys).to_dict()
    assert rows[2] is None
    assert stock["conv_rate"][2] is None
    for position in (0, 1):
        assert rows[position] == {name: stock[name][position] for name in names}
        assert rows[position]["conv_rate"] is not None
    assert online.read(keys, now + 2 * DAY) == [None, None, None]


def test_entities_and_freshness_are_those_that_feast_knows(repository, settings):
    service = PublishedService(settings, SERVICE)
    found = entities(service, ["driver_id"])
    assert sorted(found["driver_id"].to_pylist()) == [1001, 1002, 1003, 1004, 1005]
    assert entities(service, ["driver_id"], limit=2).num_rows == 2
    assert entities(service, ["customer_id"]).num_rows == 0
    until = service.store.get_feature_view(VIEW).most_recent_end_time
    assert until is not None
    for age, is_late in (
        (timedelta(minutes=59), False),
        (2 * timedelta(hours=1), True),
    ):
        problems = list(
            late_features(settings, service, (), until + age, timedelta(hours=1))
        )
        assert bool(problems) == is_late
    assert problems[0].incident == f"{VIEW}: not materialised"
    assert "feast materialize-incremental" in problems[0].remedy


def test_the_definition_covers_schema_source_and_code(repository, settings):
    before = PublishedService(settings, SERVICE).definitions()
    assert before.keys() == {VIEW, "transformed_conv_rate", f"service.{SERVICE}"}
    file = repository / "feature_definitions.py"
    text = file.read_text()
    changes = {
        "transformed_conv_rate": ('inputs["conv_rate"] + inputs["val_to_add"]', "-"),
        VIEW: ('created_timestamp_column="created"', None),
        f"service.{SERVICE}": ("ttl=timedelta(days=1)", "2"),
    }
    try:
        for name, (part, _) in changes.items():
            changed = {
                "transformed_conv_rate": part.replace("+", "-"),
                VIEW: 'description="of the warehouse"',
                f"service.{SERVICE}": "ttl=timedelta(days=2)",
            }[name]
            file.write_text(text.replace(part, changed))
            run_feast(repository, "apply")
            after = PublishedService(settings, SERVICE).definitions()
            differing = {key for key in before if before[key] != after[key]}
            assert differing == {name}
    finally:
        file.write_text(text)
        run_feast(repository, "apply")
    assert PublishedService(settings, SERVICE).definitions() == before


PLAIN = """
driver_plain = FeatureService(name="driver_plain", features=[driver_stats_fv])
"""


def test_a_look_up_reads_a_teams_redis_by_the_bytes_of_feast(tmp_path):
    port = unused_port()
    store = (
        f"online_store:\n    type: redis\n    connection_string: 127.0.0.1:{port},db=2"
    )
    with redis_server(port, tmp_path):
        repository = make_team(tmp_path, store) / "feature_repo"
        with (repository / "feature_definitions.py").open("a") as file:
            file.write(PLAIN)
        run_feast(repository, "apply")
        settings = new_settings(tmp_path / "home", feast_repo=repository)
        assert online_redis(settings) == f"redis://127.0.0.1:{port}/2"
        assert look_up_specification(settings, SERVICE).unsupported
        lookup = look_up_specification(settings, "driver_plain")
        assert lookup.unsupported is None
        names = ["conv_rate", "acc_rate", "avg_daily_trips"]
        keys = [{"driver_id": number} for number in (1001, 1002, 1003, 1004, 1005, 77)]
        now = rows_of(repository)["event_timestamp"].max().to_pydatetime()
        with asyncio.Runner() as runner:
            reader = RedisReader(online_redis(settings), lookup, names)
            assert runner.run(reader.probe()) is None
            rows = runner.run(reader.read(keys, [now] * len(keys)))
            old_rows = runner.run(reader.read(keys, [now + 2 * DAY] * len(keys)))
            runner.run(reader.close())
        store = open_store(settings)
        service = store.get_feature_service("driver_plain")
        stock = store.get_online_features(service, keys).to_dict()
        by_feast = OnlineFeatures(settings, "driver_plain", names).read(keys, now)
    assert rows[-1] is None
    assert old_rows == [None] * len(keys)
    for position, row in enumerate(rows[:-1]):
        expected = {name: stock[name][position] for name in names}
        assert row.features == by_feast[position] == expected


NOTED = """
@on_demand_feature_view(sources=[driver_stats_fv], schema=[Field(name="noted", dtype=Float64)])
def noted(inputs: pd.DataFrame) -> pd.DataFrame:
    with open({calls!r}, "a") as file:
        file.write("called ")
    return pd.DataFrame({{"noted": inputs["conv_rate"] * 2}})

driver_noted = FeatureService(name="driver_noted", features=[driver_stats_fv, noted])
"""


def test_a_worker_calls_on_demand_views_before_it_is_asked(tmp_path):
    repository = make_team(tmp_path) / "feature_repo"
    calls = tmp_path / "calls"
    with (repository / "feature_definitions.py").open("a") as file:
        file.write(NOTED.format(calls=str(calls)))
    run_feast(repository, "apply")
    calls.unlink(missing_ok=True)  # Feast calls them, too, to learn their types
    settings = new_settings(tmp_path / "home", feast_repo=repository)
    with asyncio.Runner() as runner:
        reader = FeastReader(settings, "driver_noted", ["noted"])
        assert runner.run(reader.probe()) is not None
        assert calls.read_text() == "called "
        runner.run(reader.probe())
        assert calls.read_text() == "called "  # once is enough
        runner.run(reader.close())
