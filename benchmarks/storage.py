"""What tables and MLflow's files on S3 cost, beside the same on a disk.

    python -m benchmarks.storage

`gyre ingest`, `gyre train` and `gyre monitor` as a person starts them, imports included, on the
orders of a quarter of the customers, each time in a home of its own. S3 is moto's server on this
machine: it answers slower than S3 does, and there is no network, which is in S3's favour. Three
rounds, S3 and disk in turn.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from benchmarks.support import measure
from benchmarks.support.measure import ROUNDS, promised, ratio
from core.project import PROJECT
from stack.environment import process_environment
from tests.conftest import feast_apply, mlflow_server, new_settings, redis_server
from tests.support.feature_engine.delivered_source import deliver, source
from tests.support.stores.s3 import BUCKET, s3_server

MODEL = "customer_churn_model"
COMMANDS = (("ingest", "orders"), ("train", MODEL), ("monitor", MODEL))
URLS = {
    "data_url": f"s3://{BUCKET}/team/data",
    "artifacts_url": f"s3://{BUCKET}/team/artifacts",
}


def run_commands(place: str) -> dict[str, float]:
    """Return the seconds of each command in a new home, and of all of them."""
    gyre = str(Path(sys.executable).with_name("gyre"))
    with ExitStack() as opened:
        name = opened.enter_context(tempfile.TemporaryDirectory(prefix="gyre-bench-"))
        variables = opened.enter_context(pytest.MonkeyPatch.context())
        folder = Path(name)
        deliver(folder, datetime.now(UTC), demo_start=None)
        urls = {}
        if place == "S3":
            urls = URLS
            opened.enter_context(s3_server(folder, variables))
        sources = {"orders": source(folder)}
        settings = new_settings(
            folder / "home", demo_start=None, sources=sources, **urls
        )
        settings.home.mkdir()
        for setting, url in urls.items():
            variables.setenv(f"GYRE_{setting.upper()}", url)
        variables.setenv("GYRE_SOURCES__ORDERS", sources["orders"])
        opened.enter_context(redis_server(settings.redis_port, settings.home))
        opened.enter_context(mlflow_server(settings))
        feast_apply(settings)
        environment = process_environment(settings)
        seconds = {}
        for command in COMMANDS:
            began = time.perf_counter()
            subprocess.run(
                [gyre, *command],
                cwd=PROJECT,
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            seconds[command[0]] = time.perf_counter() - began
        return seconds | {"seconds": sum(seconds.values())}


def main() -> None:
    measure.title("ingest, training and monitoring with everything on S3, and on disk")
    rounds = []
    for number in range(1, ROUNDS + 1):
        values = {place: run_commands(place) for place in ("S3", "disk")}
        rounds.append(values)
        for place, seconds in values.items():
            parts = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())
            print(f"round {number}, {place}: {parts}")
    promised("S3 to disk", ratio(rounds, "S3", "disk"), 1.2, "x")


if __name__ == "__main__":
    main()
