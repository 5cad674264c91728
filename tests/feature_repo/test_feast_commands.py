"""Feast as people use it: its commands, its registry, its file with this stack's addresses."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import feast
import pandas as pd
import pytest
from redis import Redis

from core.errors import DataError
from core.timestamps import microseconds
from feature_engine.ingest.pipeline import ingest
from feature_repo.datasets import load_dataset
from feature_repo.published.config import feast_config_path, write_feast_config
from feature_repo.published.service import PublishedService
from feature_repo.published.store import open_store, publish_beside
from tests.conftest import AS_OF, new_settings, redis_server, run_feast

ORDERS = load_dataset("orders")
SERVICE = "customer_churn_v1"
VIEW = "customer_features"


@pytest.mark.journey
def test_feast_materialize_writes_the_values_of_the_offline_join(small):
    ingest(small, "orders", AS_OF - timedelta(days=1))
    Redis(port=small.redis_port).flushall()
    until = AS_OF.replace(hour=2)  # the rows of this day are of another one in Kolkata
    interval = ("1990-01-01T00:00:00", until.replace(tzinfo=None).isoformat())
    run_feast(small, "materialize", *interval, TZ="Asia/Kolkata")
    service = PublishedService(small, SERVICE)
    customers = pd.DataFrame(
        {"customer_id": range(1, 1_001), "as_of": microseconds(until)}
    )
    offline = service.historical(customers.assign(event_timestamp=until))
    offline = offline.sort_by("customer_id")
    rows = customers.to_dict("records")
    store = open_store(small, 60)
    online = store.get_online_features(service.feast_service, rows).to_dict()
    assert offline.num_rows == 1_000
    for name in service.features:
        assert online[name] == offline[name].to_pylist(), name


@pytest.mark.journey
def test_each_command_of_feast_works_by_its_defaults(small):
    """But `registry-dump`, which fails in stock Feast where an on-demand view has mode python."""
    ingest(small, "orders", AS_OF)
    end = datetime.now(UTC).replace(tzinfo=None).isoformat()
    lifetime_orders = f"{VIEW}:lifetime_orders"
    entities = json.dumps([{"event_timestamp": end, "customer_id": 1}])
    for command in (
        ["plan"],
        ["configuration"],
        ["endpoint"],
        ["projects", "list"],
        ["data-sources", "list"],
        ["entities", "list"],
        ["entities", "describe", "customer"],
        ["feature-views", "list"],
        ["feature-views", "describe", VIEW],
        ["features", "list"],
        ["on-demand-feature-views", "list"],
        ["feature-services", "list"],
        ["feature-services", "describe", SERVICE],
        ["get-online-features", "-e", "customer_id=1", "-f", lifetime_orders],
        ["get-historical-features", "-d", entities, "-f", lifetime_orders],
        ["materialize-incremental", end],
        ["apply"],
    ):
        run_feast(small, *command)


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_every_object_of_feasts_registry_has_an_owner_a_description_and_tags(applied):
    store = open_store(applied)
    views = store.list_all_feature_views()
    own_objects = [*store.list_entities(), *views, *store.list_feature_services()]
    assert {VIEW, SERVICE, "customer"} <= {each.name for each in own_objects}
    for each in own_objects:
        assert (each.owner, each.tags["dataset"]) == ("shop", "orders"), each.name
        assert each.description, each.name


def test_unpublished_definitions_are_reported_in_one_line_with_the_remedy(tmp_path):
    with pytest.raises(
        DataError, match="not published: cd feature_repo && feast apply"
    ):
        open_store(new_settings(tmp_path))


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_many_threads_write_and_read_the_registry_at_once(applied):
    def publish():
        publish_beside(applied, ORDERS)

    def record():
        store = open_store(applied)
        view = store.get_feature_view(VIEW)
        store.registry.apply_materialization(
            view, store.project, AS_OF - timedelta(days=1), AS_OF
        )

    def read():
        assert PublishedService(applied, SERVICE).join_keys == {VIEW: ["customer_id"]}

    with ThreadPoolExecutor(6) as threads:
        for call in [threads.submit(work) for work in [publish, record, read] * 10]:
            call.result()


def test_any_password_of_redis_works_in_feasts_configuration(tmp_path):
    settings = new_settings(tmp_path)
    with redis_server(settings.redis_port, tmp_path):
        redis = Redis(port=settings.redis_port)
        for password in ("1e5", "true", "a,b=c$HOME\"ü'\\"):
            redis.config_set("requirepass", password)
            redis.auth(password)
            address = f"redis://:{quote(password)}@127.0.0.1:{settings.redis_port}/1"
            settings = settings.model_copy(update={"redis_url": address})
            write_feast_config(settings)
            publish_beside(settings, ORDERS)
            store = feast.FeatureStore(fs_yaml_file=feast_config_path(settings))
            values = store.get_online_features(
                [f"{VIEW}:lifetime_orders"], [{"customer_id": 1}]
            )
            assert values.to_dict()["lifetime_orders"] == [None]


def test_each_opened_registry_has_an_id_of_its_own(applied):
    """Feast keeps lists by this id and by an address in memory, which a closed store gives away."""
    stores = [open_store(applied) for _ in range(2)]
    ids = {store.registry.cached_registry_proto.version_id for store in stores}
    assert len(ids - {""}) == 2
