"""What is shipped for Prometheus and Grafana, on a real Prometheus that scrapes both programs."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import yaml

from core.settings import PROJECT
from feature_repo.broker import Stream, event_schema
from feature_repo.datasets import load_dataset
from stack.processes import Program, end_stack, start, start_supervisor
from tests.conftest import answers, running, unused_port, wait_until

SHIPPED = PROJECT / "deploy" / "prometheus"
KEPT = Path(sys.prefix) / "debian"
"""Where the package lies once fetched: it goes with the environment."""


@pytest.fixture(scope="module")
def bin_folder():
    """Prometheus of the system, else of Debian's package, unpacked and never installed."""
    promtool_path = shutil.which("promtool")
    if promtool_path:
        return Path(promtool_path).parent
    if not KEPT.exists():
        with TemporaryDirectory(dir=KEPT.parent) as name:
            fetch = "apt-get download prometheus || { apt-get update && apt-get download prometheus; }"
            unpack = "dpkg -x prometheus_*.deb here"
            done = subprocess.run(
                ["sh", "-c", f"{{ {fetch}; }} && {unpack}"], cwd=name, capture_output=True,
                text=True, timeout=900, check=False,
            )  # fmt: skip
            if done.returncode:
                errors = done.stderr.strip().splitlines()[-3:]
                pytest.fail(
                    f"no Prometheus: apt-get install prometheus, then again: {errors}"
                )
            (Path(name) / "here").rename(KEPT)
    return KEPT / "usr" / "bin"


def test_the_configuration_is_valid_and_each_rule_fires_in_its_test(bin_folder):
    for words in (
        ["check", "config", "--lint-fatal", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        command = [bin_folder / "promtool", *words]
        # What does not hold is in the report of the test.
        subprocess.run(command, cwd=SHIPPED, check=True)
    rules = {rule["alert"] for group in _rules() for rule in group["rules"]}
    tried = (SHIPPED / "alerts_test.yml").read_text()
    assert {name for name in rules if f'alertname="{name}"' not in tried} == set()


def _rules():
    return yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]


@dataclass
class Prometheus:
    client: httpx.Client

    def get(self, path, **query):
        answer = self.client.get(f"/api/v1/{path}", params=query).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def ask(self, query):
        samples = self.get("query", query=query)["result"]
        return {
            json.dumps(sample["metric"]): float(sample["value"][1])
            for sample in samples
        }


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
def prometheus(
    rig, served, console, monitored, supervised, bin_folder, tmp_path_factory
):
    """A real one with the shipped configuration, but for the addresses and how often it looks."""
    folder = tmp_path_factory.mktemp("prometheus")
    port = unused_port()
    with closing(Stream(rig.settings, "test")) as stream:
        stream.declare(event_schema(load_dataset("orders"), set()))
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "evaluation_interval"), "2s")
    (scrape,) = config["scrape_configs"]
    (targets,) = scrape["static_configs"]
    assert targets["targets"] == ["127.0.0.1:8000", "127.0.0.1:8001"]
    ports = (rig.settings.serving_port, rig.settings.console_port)
    targets["targets"] = [f"127.0.0.1:{own_port}" for own_port in ports]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(SHIPPED / "alerts.yml", folder)
    command = [
        str(bin_folder / "prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    address = f"http://127.0.0.1:{port}"
    with (
        running(command, folder / "log"),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        server = Prometheus(client)
        wait_until("Prometheus", lambda: answers(f"{address}/-/ready"))
        for _ in range(3):
            rig.predict(served.client)
        wait_until("scrapes", lambda: bool(server.ask("rate(gyre_requests_total[1m])")))
        trained = "gyre_last_training_timestamp_seconds{status='FINISHED'}"
        wait_until("what MLflow says of runs", lambda: bool(server.ask(trained)))
        yield server


def _expressions():
    """Of every panel and annotation, as Grafana asks them."""
    (file,) = PROJECT.glob("deploy/grafana/dashboards/*.json")
    strings = re.findall(r'"expr": ("(?:[^"\\]|\\.)*")', file.read_text())
    queries = [json.loads(text) for text in strings]
    return [
        text.replace("$model", ".*").replace("$__rate_interval", "1m")
        for text in queries
    ]


def test_every_metric_of_a_rule_exists_and_every_panel_has_data(prometheus):
    queries = _expressions()
    rules = [rule["expr"] for group in _rules() for rule in group["rules"]]
    metrics = set(re.findall(r"\bgyre_\w+", "\n".join([*rules, *queries])))

    def are_exported():
        return metrics <= {*prometheus.get("label/__name__/values")}

    wait_until("all metrics", are_exported)
    assert len(queries) > 20
    for query in queries:
        if "changes(gyre_last_promotion" in query:  # an annotation
            assert prometheus.ask(query) == {}, "production did not change now"
            continue
        # A scrape that took too long leaves it empty until the next.
        wait_until(query, lambda: prometheus.ask(query) != {})  # noqa: B023
