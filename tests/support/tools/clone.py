"""The project as git has it, in a folder of its own, to be edited and run."""

import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.project import PROJECT
from feature_repo.published.config import write_feast_config
from stack.environment import child_environment
from tests.conftest import (
    BIN,
    answers,
    mlflow_server,
    redis_server,
    running,
    wait_until,
)
from tests.support.tools.preloaded import commands_folder


def outer_environment():
    """The environment of a shell that belongs to no stack."""
    path = f"{commands_folder()}:{BIN}:{os.environ['PATH']}"
    hindering = ("GYRE_", "PROMETHEUS_")
    outer = {k: v for k, v in os.environ.items() if not k.startswith(hindering)}
    return outer | {"PATH": path}


def stack_environment(settings):
    """The environment of a shell of a stack."""
    outer = outer_environment()
    return outer | child_environment(settings) | {"PATH": outer["PATH"]}


def finished(command, folder, environment, code=0, timeout=900):
    """Return the finished process of a shell's command, and require its exit code."""
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=timeout,
    )  # fmt: skip
    output = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert done.returncode == code, f"{command}\n{output}"
    return done


def run(*arguments):
    """Return what a command of the shell prints, errors last; arguments are of `finished`."""
    done = finished(*arguments)
    return done.stdout + done.stderr


def gyre(settings, arguments, code=0):
    """Return the finished process of a command of Gyre."""
    return finished(f"gyre {arguments}", PROJECT, stack_environment(settings), code)


def online_answer(url, body):
    """Return the first answer that is of online features: on a busy machine a look-up is late."""
    answers = []

    def is_online():
        response = httpx.post(url, json=body, timeout=60)
        answers.append(response.json())
        return response.is_success and answers[-1]["features_from"] == "online"

    wait_until("an answer", is_online)
    return answers[-1]


@contextmanager
def mlflow_and_redis(settings):
    """The servers that a training and an ingest need."""
    with mlflow_server(settings), redis_server(settings.redis_port, settings.home):
        write_feast_config(settings)
        yield


@contextmanager
def serving(settings, health="ready", **environment):
    """Serving, once the page of its health answers."""
    command = [sys.executable, "-m", "serving"]
    address = f"{settings.serving_address}/health/{health}"
    with running(command, settings.home / "serving.log", **environment):
        wait_until("serving", lambda: answers(address))
        yield


class Copy:
    """The project as git has it, in a folder of its own; the packages are this environment's."""

    def __init__(self, folder, settings):
        self.folder = folder
        self.settings = settings
        files = "git ls-files -z --cached --others --exclude-standard"
        copy = f"{files} | xargs -0 cp --parents --target-directory={folder}"
        # A file that is deleted and still of git's index is named on stderr.
        subprocess.run(copy, shell=True, cwd=PROJECT, check=False)
        self.environment = stack_environment(settings) | {
            "PYTHONPATH": str(folder),
            "GYRE_PROJECT": str(folder),
        }

    def run(self, command, code=0, timeout=900, **more):
        environment = self.environment | more
        return run(command, self.folder, environment, code, timeout)


def events():
    """Number, entity, time and amount of events in 400 days; half of 300 entities are rare."""
    random = np.random.default_rng(7)
    start = datetime.now(UTC) - timedelta(days=400)
    rows = []
    for entity in range(300):
        days = random.exponential(8 if entity % 2 else 45, 80).cumsum()
        for day in days[days < 400]:
            amount = random.integers(1, 100) / 4
            rows.append((len(rows), entity, start + timedelta(days=day), amount))
    return rows


def few_orders(file):
    """Leave a fifteenth of the customers in a file of the shipped orders."""
    pq.write_table(pq.read_table(file, filters=pc.field("customer_id") < 1500), file)


def fewer_trees(file):
    """Leave a tenth of the trees in a spec."""
    text = file.read_text()
    for name in ("n_estimators", "max_iter"):
        text = text.replace(f"{name} = 100,", f"{name} = 10,")
    file.write_text(text)
