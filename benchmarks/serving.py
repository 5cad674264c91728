"""Requests per second and latency of one serving worker, beside its peers and its limits.

    python -m benchmarks.serving [seconds per measurement, 3 if not given]

Servers and Redis on the first core, the load generator on the last (`benchmarks.support.servers`
says how each runs). Rounds are interleaved, medians of three are printed. `cpu us` is the
processor time of the whole server (of ours: worker and Redis) per answer: the column to trust
where others use the core too. `load core` is the share of its core that the generator used.

What is unfair, in MLServer's favour: the features come with the request, it looks nothing up and
writes nothing down, while Redis shares our worker's core and each of our answers is on file before
it is given. Against it: its row is always the same, and its body is longer. Of the empty route: its
body is validated by FastAPI's own machinery, ours by the same pydantic model on the raw bytes; so
above 1 it is FastAPI's machinery that is passed by.

LightGBM beside scikit-learn's histogram boosting: both have learnt the shipped orders with 100
trees of 15 leaves, and our worker serves them in turn, as ONNX.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import httpx

from benchmarks.support import servers
from benchmarks.support.measure import ROUNDS, promised, title
from core.spec.training import Estimator, Limit
from tests.serving.conftest import SPEC, Rig
from tests.support.serving import flood
from tests.support.serving.flood import load, post

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.support.servers import Server

# What has to be reached, and the aim.
TIMES = {
    "empty": {1: (0.42, 0.5), 16: (0.9, 1.05)},
    "MLServer ONNX": {1: (1.1, 1.3), 16: (3.4, 4.5)},
}
"""How many times the requests/s of each our worker is to answer, by connections."""
TREES = {
    "lightgbm": {"n_estimators": 100, "num_leaves": 15, "min_child_samples": 20},
    "hist_gradient_boosting": {
        "max_iter": 100,
        "max_leaf_nodes": 15,
        "min_samples_leaf": 20,
    },
}


class Found(NamedTuple):
    rate: float
    p50: float
    p99: float
    cpu: float
    busy: float
    failed: float
    times: float  # our requests/s to theirs


def measure(
    started: Mapping[str, Server], seconds: float
) -> dict[tuple[str, int], Found]:
    """Closed loops, interleaved; print the medians."""
    pairs = [(name, connections) for connections in (1, 16) for name in started]
    rounds: list[dict[tuple[str, int], Found]] = []
    for _ in range(ROUNDS):
        rounds.append({})
        for name, connections in pairs:
            result = closed(started[name], connections, seconds)
            ours = rounds[-1].get(("gyre", connections), result)
            rounds[-1][name, connections] = result._replace(
                times=ours.rate / result.rate
            )
    columns = (
        "connections",
        "req/s",
        "p50 ms",
        "p99 ms",
        "cpu us",
        "load core",
        "failed",
    )
    print(f"{'':15}{''.join(f'{column:>12}' for column in columns)}{'gyre is':>9}")
    found = {}
    for name, connections in pairs:
        results = [each[name, connections] for each in rounds]
        median = Found(
            *(statistics.median(column) for column in zip(*results, strict=True))
        )
        found[name, connections] = median
        print(
            f"{name:15}{connections:12}{median.rate:12,.0f}{median.p50:12.2f}{median.p99:12.2f}"
            f"{median.cpu:12.0f}{median.busy:12.0%}{median.failed:12.0f}{median.times:8.2f}x"
        )
    return found


def closed(server: Server, connections: int, seconds: float) -> Found:
    load(server.port, server.requests, connections, seconds / 10)
    before = server.cpu()
    result = load(server.port, server.requests, connections, seconds)
    cpu = (server.cpu() - before) / len(result.statuses) * 1e6
    return Found(
        result.rate, result.ms(50), result.ms(99), cpu, result.busy, result.failed, 1.0
    )


def beside_peers(found: Mapping[tuple[str, int], Found]) -> None:
    for name, limits_of in TIMES.items():
        for connections, fewest in limits_of.items():
            for least in fewest:
                what = f"times {name} at {connections} connections"
                promised(what, found[name, connections].times, least, "x", least=True)
    p99 = found["gyre", 16].p99 / found["empty", 16].p99
    promised("p99 at 16 connections to the empty route's", p99, 2, "x")
    promised("p99 at 16 connections", found["gyre", 16].p99, 3, "ms")


def limits(ours: Server, best: float, seconds: float) -> None:
    keys = [{"customer_id": key} for key in range(1, 501)]
    batch = replace(ours, requests=[post("/predict/batch", json.dumps(keys).encode())])
    promised("500 rows in one request, p50", closed(batch, 1, seconds).p50, 10, "ms")
    load(ours.port, ours.requests, 256, seconds, rate=best / 2)
    half = load(ours.port, ours.requests, 256, 3 * seconds, rate=best / 2)
    promised(
        f"p99 at {half.rate:,.0f} requests/s (half, open loop)", half.ms(99), 3.5, "ms"
    )
    for worker in ours.workers():
        promised(
            "memory of the worker (PSS)", worker.memory_full_info().pss / 1e6, 105, "MB"
        )


def explanations(ours: Server, seconds: float) -> None:
    """One at a time: how long each takes, and how long predictions take meanwhile."""
    keys = [
        post("/explain", b'{"customer_id":%d}' % number) for number in range(1, 501)
    ]
    asked = replace(ours, requests=keys)
    rounds = [closed(asked, 1, seconds) for _ in range(ROUNDS)]
    for percent in ("p50", "p99"):
        best = min(getattr(each, percent) for each in rounds)
        promised(f"/explain of the forest, {percent}, best of {ROUNDS}", best, 50, "ms")
    alone, beside = [], []
    again = [
        sys.executable,
        flood.__file__,
        str(ours.port),
        "1",
        str(2 * seconds + 1),
        "/explain",
    ]
    for _ in range(ROUNDS):
        alone.append(closed(ours, 1, seconds).p99)
        with subprocess.Popen(again, stdout=subprocess.DEVNULL):
            time.sleep(1)
            beside.append(closed(ours, 1, seconds).p99)
    promised("p99 of /predict, one connection", min(alone), 1, "ms")
    promised("the same while one explains without pause", min(beside), 5, "ms")


def boosting(rig: Rig, ours: Server, seconds: float) -> None:
    """Train and promote both, and compare the requests/s of the one with those of the other."""
    versions, ratios = [], {1: list[float](), 16: list[float]()}
    gate = Limit(metric="log_loss", rule="at_most", value=10)
    for kind, size in TREES.items():
        one = Estimator(
            name=kind, type=kind, parameters={**size, "learning_rate": 0.05}
        )
        spec = SPEC.model_copy(update={"estimators": (one,), "gates": (gate,)})
        versions.append(servers.train(rig, spec, force=True))
    with httpx.Client(base_url=rig.settings.serving_address) as client:
        for _ in range(ROUNDS):
            rates = []
            for version in versions:
                rig.promote(version)
                rig.answers_as(client, version)
                rates.append({n: closed(ours, n, seconds).rate for n in ratios})
            for n, found in ratios.items():
                found.append(rates[0][n] / rates[1][n])
    for n, found in ratios.items():
        what = f"times histogram boosting at {n} connections, LightGBM"
        promised(what, statistics.median(found), 0.8, "x", least=True)


def main(seconds: float) -> None:
    with servers.installed() as (opened, rig, ours):
        started = {
            "gyre": ours,
            "empty": servers.start_empty(opened, rig, ours),
            "MLServer ONNX": servers.start_mlserver(opened, rig),
        }
        title(f"servers on core {servers.CORES[0]}, load on core {servers.CORES[-1]}")
        found = measure(started, seconds)
        beside_peers(found)
        best = max(found["gyre", 16].rate, closed(ours, 64, seconds).rate)
        limits(ours, best, seconds)
        explanations(ours, seconds)
        boosting(rig, ours, seconds)


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 3.0)
