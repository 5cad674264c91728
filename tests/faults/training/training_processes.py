"""A program that runs stages of training in processes of its own, which may be killed on the way.

A job has settings, spec, as_of, key, stage, run_id, version, and dies: the effect after which the
process is killed, or null. An effect is a request that changes something in MLflow, or a
transaction of the ledger. Its answer is what the stage returned and how many effects it had.
"""

import os
import signal
from datetime import datetime
from importlib import import_module

import httpx
import requests
import sqlalchemy as sql

from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.datasets import load_dataset
from mlflow_server.api.tracking import Tracking
from tests.faults.jobs import serve
from training.runs import open_run
from training.stages import STAGES
from training.stages.register import promote_challenger

WARM = (
    "great_expectations", "ibis.backends.duckdb", "mlflow.onnx", "mlflow.pyfunc.scoring_server",
    "feature_repo.datasets.orders", "feature_repo.extensions.offline", "matplotlib.pyplot",
)  # fmt: skip
"""What stages import late."""


class Effects:
    """Counts them, and ends its process by SIGKILL after a given one."""

    def __init__(self, dies):
        self.count = 0
        self._dies = dies
        for client in (requests.Session, httpx.Client):  # MLflow's client, and ours
            client.send = self._counted(client.send)
        sql.event.listen(sql.Engine, "commit", lambda _: self.add())

    def _counted(self, send):
        def send_and_count(client, request, **options):
            answer = send(client, request, **options)
            if request.method != "GET" and "search" not in str(request.url):
                self.add()
            return answer

        return send_and_count

    def add(self):
        self.count += 1
        if self.count == self._dies:
            os.kill(os.getpid(), signal.SIGKILL)


def run_stage(job):
    settings = Settings.model_validate(job["settings"])
    spec = ModelSpec(**job["spec"])
    run_id = job["run_id"]
    key = job["key"]
    reasons = {"reason": f"test {key}", "who": key}
    if job["stage"] == "open_run":
        as_of = datetime.fromisoformat(job["as_of"])
        return open_run(settings, spec, as_of, key=key, force=True, **reasons)
    if job["stage"] == "promote":
        with Tracking(settings).on_record(run_id):  # as chain and DAG do
            return promote_challenger(settings, spec, run_id, job["version"], **reasons)
    stages = {stage.name: stage for stage in STAGES}
    return stages[job["stage"]].run(settings, spec, run_id)


def run(job, _begin):
    effects = Effects(job["dies"])
    value = run_stage(job)
    return value, effects.count


if __name__ == "__main__":
    for name in WARM:
        import_module(name)
    load_dataset("orders")
    serve(run)
