"""A team that follows docs/how-to/kubernetes.md: its stores, its manifests, its volumes."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml

from monitoring.log.collect import collect
from monitoring.log.tables import predictions
from stack.environment import LOGIN
from tests.conftest import new_settings, redis_server, unused_port
from tests.kubernetes.manifests import copy_with_kserve, page_commands
from tests.support.kubernetes.chart_repository import chart_repository
from tests.support.kubernetes.cluster import ADDRESS, Cluster
from tests.support.stores.postgres import postgres_server
from tests.support.stores.s3 import BUCKET, s3_server

PAGE = "kubernetes.md"
BEGIN = "From an empty namespace to a prediction"
VOLUMES = {"ReadWriteOnce": 4, "ReadWriteMany": 1}
"""Of serving's replicas, and of Airflow's logs. The node has no provisioner."""
SMALL = {"cpu": "10m"}
"""Requests of a pod: those of the manifests are more than one machine of two cores has."""
SMALL_PATCH = """
- op: replace
  path: /spec/template/spec/containers/0/resources/requests/cpu
  value: 10m
"""


@dataclass(frozen=True)
class Stores:
    """What the page asks for, and the process of S3, which a test may stop."""

    database: str
    redis: str
    s3: str
    key_id: str
    key: str
    s3_process: subprocess.Popen[bytes]


class Team:
    """Who has a clone, and a cluster with stores beside it."""

    def __init__(self, folder: Path, cluster: Cluster, stores: Stores) -> None:
        self.folder = folder
        self.cluster = cluster
        self.stores = stores
        self.manifests = copy_with_kserve(folder)
        self.settings = new_settings(folder / "home", data_url=f"s3://{BUCKET}/data")
        """Of somebody who reads the same bucket."""

    def run(self, commands: str) -> str:
        """Return what commands of the page print; each must succeed."""
        return self.cluster.run(
            "bash", "-euo", "pipefail", "-c", commands, folder=self.folder
        )

    def write_secrets(self) -> None:
        """Run the first commands of the page, with the team's addresses."""
        commands = page_commands(PAGE, BEGIN)[0]
        stores = self.stores
        values = {
            "postgresql://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full": stores.database,
            "rediss://:PASSWORD@HOST:6379/0": stores.redis,
            "echo KEY_ID >": f"echo {stores.key_id} >",
            "echo KEY >": f"echo {stores.key} >",
        }
        self.run(replaced(commands, values))

    def edit_manifests(self) -> None:
        """Write the team's values into `production`, as the page says."""
        file = self.manifests / "production" / "kustomization.yaml"
        text = file.read_text()
        values = {
            "s3://example-gyre": f"s3://{BUCKET}",
            "https://s3.eu-central-1.amazonaws.com": self.stores.s3,
            'AWS_ALLOW_HTTP: "false"': 'AWS_ALLOW_HTTP: "true"',
            "minReplicas: 3": "minReplicas: 1",
        }
        kustomization = yaml.safe_load(replaced(text, values))
        self._name_by_digest(kustomization)
        target = {"kind": "Deployment|StatefulSet|Job"}
        small = {"target": target, "patch": SMALL_PATCH}
        kustomization["patches"].append(small)
        file.write_text(yaml.safe_dump(kustomization))
        self._edit_values()
        file = self.manifests / "kserve" / "kustomization.yaml"
        kustomization = yaml.safe_load(file.read_text())
        self._name_by_digest(kustomization)
        file.write_text(yaml.safe_dump(kustomization))

    def _name_by_digest(self, kustomization: dict[str, Any]) -> None:
        for image in kustomization["images"]:
            name = f"{image['newName']}:{image.pop('newTag')}"
            image["digest"] = self.cluster.digests[name]

    def _edit_values(self) -> None:
        file = self.manifests / "production" / "airflow-values.yaml"
        values = yaml.safe_load(file.read_text())
        image = f"{values['defaultAirflowRepository']}:{values['defaultAirflowTag']}"
        values["defaultAirflowTag"] += f"@{self.cluster.digests[image]}"
        small = {"resources": {"requests": SMALL}}
        values |= {"apiServer": small, "scheduler": small, "dagProcessor": small}
        values["workers"] = {"kubernetes": small}
        file.write_text(yaml.safe_dump(values))

    def make_volumes(self) -> None:
        """Make folders of the node that claims are bound to."""
        for mode, count in VOLUMES.items():
            for number in range(count):
                name = f"{mode.lower()}-{number}"
                folder = self.folder / "volumes" / name
                folder.mkdir(parents=True)
                # Kubernetes gives no folder of a host to a pod's group.
                shutil.chown(folder, 1000, 1000)
                volume = {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": name},
                    "spec": {
                        "capacity": {"storage": "100Gi" if "Many" in mode else "4Gi"},
                        "accessModes": [mode],
                        "persistentVolumeReclaimPolicy": "Retain",
                        "hostPath": {"path": str(folder)},
                    },
                }
                self.cluster.apply(volume)

    def install(self) -> None:
        """Run the page's commands up to a job `init` that is complete."""
        charts = self.folder / "charts"
        charts.mkdir()
        commands = page_commands(PAGE, BEGIN)[1]
        with chart_repository(charts) as address:
            self.run(commands.replace("https://airflow.apache.org", address))

    def dag_state(self, dag: str) -> str | None:
        """Return the state of a DAG's last run, as Airflow's tables have it."""
        rows = self._query(
            "SELECT state FROM airflow.dag_run WHERE dag_id = %s ORDER BY id DESC LIMIT 1",
            dag,
        )
        return rows[0][0] if rows else None

    def dag_runs(self, dag: str) -> int:
        """Return the number of runs of a DAG."""
        query = "SELECT count(*) FROM airflow.dag_run WHERE dag_id = %s"
        return int(self._query(query, dag)[0][0])

    def tries(self, dag: str) -> set[int]:
        """Return how often tasks of a DAG's last run have begun."""
        query = (
            "SELECT DISTINCT try_number FROM airflow.task_instance WHERE state = 'success' AND "
            "run_id = (SELECT run_id FROM airflow.dag_run WHERE dag_id = %s ORDER BY id DESC LIMIT 1)"
        )
        return {row[0] for row in self._query(query, dag)}

    def _query(self, query: str, *values: str) -> list[Any]:
        with psycopg.connect(self.stores.database) as connection:
            return connection.execute(query, values).fetchall()

    def versions(self, model: str) -> set[str]:
        """Return the versions of a model."""
        query = "SELECT version FROM mlflow.model_versions WHERE name = %s"
        return {str(row[0]) for row in self._query(query, model)}

    def promote(self, model: str, version: str) -> None:
        """Give a version the alias `production`, as somebody does in the UI of MLflow."""
        address = self.cluster.get("service", "mlflow")["spec"]["clusterIP"]
        path = "api/2.0/mlflow/registered-models/alias"
        change = {"name": model, "alias": "production", "version": version}
        answer = httpx.post(
            f"http://{address}:5000/{path}",
            json=change,
            headers={"host": "mlflow:5000"},
        )
        answer.raise_for_status()

    def task_log(self, dag: str) -> str:
        """Return the log of the task of a DAG that runs, if one does, as Airflow's UI shows it."""
        query = (
            "SELECT run_id, task_id FROM airflow.task_instance WHERE dag_id = %s "
            "AND state = 'running'"
        )
        running = self._query(query, dag)
        if not running:
            return ""
        run, task = running[0]
        address = self.cluster.get("service", "airflow-api")["spec"]["clusterIP"]
        secrets = self.folder / "deploy" / "secrets"
        password = (secrets / "airflow_password").read_text().strip()
        with httpx.Client(base_url=f"http://{address}:8080", timeout=60) as client:
            login = {"username": LOGIN, "password": password}
            token = client.post("/auth/token", json=login).json()["access_token"]
            answer = client.get(
                f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances/{task}/logs/1",
                headers={"authorization": f"Bearer {token}"},
            )
        return answer.raise_for_status().text

    def requests_of_accounts(self) -> list[dict[str, Any]]:
        """Return what pods of the namespace have asked the API server."""
        entries = map(json.loads, self.cluster.audit_log.read_text().splitlines())
        prefix = "system:serviceaccount:gyre:"
        return [
            entry
            for entry in entries
            if entry["user"]["username"].startswith(prefix)
            and entry["stage"] == "ResponseComplete"
            and "objectRef" in entry
        ]

    def task_pods(self) -> int:
        """Return how many pods of tasks have been made."""
        entries = self.requests_of_accounts()
        return sum(entry["verb"] == "create" for entry in entries)

    def logged_requests(self) -> set[str]:
        """Return the ids of the requests whose rows are on S3, or in the table."""
        collect(self.settings)
        table = predictions(self.settings).read(columns=["request_id"])
        return set(table["request_id"].to_pylist())

    def token(self) -> str:
        """Return the token of serving's first client."""
        file = self.folder / "deploy" / "secrets" / "serving_tokens"
        return file.read_text().strip().partition(":")[2]

    def serving(self) -> httpx.Client:
        """Return a client of the Service `serving`, at the address that the cluster gave it."""
        address = self.cluster.get("service", "serving")["spec"]["clusterIP"]
        return httpx.Client(
            base_url=f"http://{address}:8000",
            headers={"authorization": f"Bearer {self.token()}"},
            timeout=30,
        )


def replaced(text: str, values: dict[str, str]) -> str:
    """Return a text with a team's values in the place of examples, each of which must be there."""
    for example, value in values.items():
        assert example in text
        text = text.replace(example, value)
    return text


@contextmanager
def stores(folder: Path) -> Iterator[Stores]:
    """PostgreSQL, Redis and S3 at the node's address."""
    redis_port = unused_port()
    with (
        pytest.MonkeyPatch.context() as environment,
        postgres_server(folder / "postgres.log", host=ADDRESS) as postgres,
        redis_server(redis_port, folder, host=ADDRESS),
        s3_server(folder, environment, host=ADDRESS) as s3_process,
    ):
        yield Stores(
            database=postgres.address,
            redis=f"redis://{ADDRESS}:{redis_port}/0",
            s3=os.environ["AWS_ENDPOINT_URL"],
            key_id=os.environ["AWS_ACCESS_KEY_ID"],
            key=os.environ["AWS_SECRET_ACCESS_KEY"],
            s3_process=s3_process,
        )
