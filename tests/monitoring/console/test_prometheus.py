"""What is shipped for Prometheus and Grafana, on a real Prometheus that scrapes both programs."""

import json
import os
import re
import subprocess
from contextlib import closing
from dataclasses import dataclass

import httpx
import pytest
import yaml

from core.project import PROJECT
from feature_engine.events.broker import show_life
from feature_engine.events.redis_broker import RedisStream
from feature_repo.datasets import load_dataset
from feature_repo.event_schema import event_schema
from feature_repo.online_store import redis_client
from stack.supervisor import Program, end_stack, start, start_supervisor
from tests.conftest import wait_until
from tests.support.tools.prometheus import SHIPPED, programs, prometheus_server

pytestmark = pytest.mark.journey

EXPRESSION = r'"expr": ("(?:[^"\\]|\\.)*")'


def rules():
    groups = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_the_configuration_is_valid_and_each_rule_fires_in_its_test():
    bin_folder = programs("prometheus", "promtool")
    for words in (
        ["check", "config", "--lint-fatal", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        command = [bin_folder / "promtool", *words]
        # What does not hold is in the report of the test.
        subprocess.run(command, cwd=SHIPPED, check=True)
    tried = (SHIPPED / "alerts_test.yml").read_text()
    names = {rule["alert"] for rule in rules()}
    assert {name for name in names if f'alertname="{name}"' not in tried} == set()


@dataclass
class Prometheus:
    client: httpx.Client

    def get(self, path, **query):
        answer = self.client.get(f"/api/v1/{path}", params=query).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def has_samples(self, query):
        return self.get("query", query=query)["result"] != []


@pytest.fixture(scope="module")
def supervised(rig):
    """A supervisor of the rig's home, with a program that does nothing."""
    for name in ("run", "logs"):
        (rig.settings.home / name).mkdir(exist_ok=True)
    asleep = Program("asleep", "sleep 600", lambda _: None)
    start_supervisor(rig.settings, [asleep], os.environ)
    start(rig.settings, [asleep])
    yield
    end_stack(rig.settings)


@pytest.fixture(scope="module")
def prometheus(rig, served, console, monitored, supervised, tmp_path_factory):
    """A real one with the shipped configuration, but for the addresses and how often it looks."""
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        closing(RedisStream(rig.settings, "orders", "test")) as stream,
        redis_client(rig.settings) as redis,
    ):
        show_life(redis, [event_schema(load_dataset("orders"), set())])
        stream.declare()
    ports = {8000: rig.settings.serving_port, 8001: rig.settings.console_port}
    with (
        prometheus_server(folder, ports) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        server = Prometheus(client)
        for _ in range(3):
            rig.predict(served.client)
        rate = "rate(gyre_requests_total[1m])"
        wait_until("scrapes", lambda: server.has_samples(rate))
        trained = "gyre_last_training_timestamp_seconds{status='FINISHED'}"
        wait_until("what MLflow says of runs", lambda: server.has_samples(trained))
        yield server


def expressions():
    """Of every panel and annotation, as Grafana asks them."""
    (file,) = PROJECT.glob("deploy/grafana/dashboards/*.json")
    text = file.read_text().replace("$model", ".*").replace("$__rate_interval", "1m")
    return [json.loads(query) for query in re.findall(EXPRESSION, text)]


def test_every_metric_of_a_rule_exists_and_every_panel_has_data(prometheus):
    queries = expressions()
    texts = [*queries, *(rule["expr"] for rule in rules())]
    metrics = set(re.findall(r"\bgyre_\w+", "\n".join(texts)))

    def are_exported():
        return metrics <= {*prometheus.get("label/__name__/values")}

    wait_until("all metrics", are_exported)
    assert len(queries) > 20
    for query in queries:
        if "changes(gyre_last_promotion" in query:  # an annotation
            assert not prometheus.has_samples(query), "production did not change now"
            continue
        # A scrape that took too long leaves it empty until the next.
        wait_until(query, lambda: prometheus.has_samples(query))  # noqa: B023
