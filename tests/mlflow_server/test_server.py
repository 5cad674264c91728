"""How the server is started: one process, on loopback, for browsers of this machine only."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import httpx
import psutil

from core.settings import Settings
from mlflow_server import server

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_one_process_that_listens_on_loopback(settings: Settings) -> None:
    children = psutil.Process(os.getpid()).children(recursive=True)
    living = [p for p in children if p.status() != psutil.STATUS_ZOMBIE]  # of other tests
    named = {"mlflow_server.app:app", str(settings.mlflow_port)}  # others have their own
    (ours,) = [p for p in living if named <= {*p.cmdline()}]
    assert ours.children(recursive=True) == []
    assert {c.laddr.ip for c in ours.net_connections() if c.status == "LISTEN"} == {"127.0.0.1"}
    megabytes = ours.memory_full_info().pss / 2**20
    assert megabytes < 300


def test_foreign_hosts_and_origins_are_refused(settings: Settings) -> None:
    ask = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/get?experiment_id=0"
    make = f"{settings.mlflow_address}/api/2.0/mlflow/experiments/create"
    here = f"localhost:{settings.mlflow_port}"
    for name, status in ((here, 200), ("evil.example", 403)):
        assert httpx.get(ask, headers={"host": name}).status_code == status
        origin = {"origin": f"http://{name}"}
        assert httpx.post(make, json={"name": name}, headers=origin).status_code == status
    assert httpx.get(settings.mlflow_address).status_code == 200


def test_database_and_artifacts_can_be_somebody_elses(tmp_path: Path) -> None:
    urls = {"database_url": "postgresql://db/mlflow", "artifacts_url": "s3://bucket/models"}
    told = server.environment(Settings(home=tmp_path, **urls))
    assert told["_MLFLOW_SERVER_FILE_STORE"] == told["_MLFLOW_SERVER_REGISTRY_STORE"]
    address = "postgresql+psycopg2://db/mlflow?options=-csearch_path%3Dmlflow"
    assert told["_MLFLOW_SERVER_FILE_STORE"] == address
    assert told["_MLFLOW_SERVER_ARTIFACT_DESTINATION"] == urls["artifacts_url"]
    assert told["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
