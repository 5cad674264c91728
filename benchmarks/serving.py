"""Requests per second and latency of one serving worker, beside its peers and its limits.

    python -m benchmarks.serving [seconds per measurement, 3 if not given]
    python -m benchmarks.serving --million

Servers and Redis on the first core, the load generator on the last (`benchmarks.servers` says how
each runs, `benchmarks.load` what a generator can send); `make up` first: model, features and plans
are the stack's. `empty` is an empty FastAPI route that validates the same body. Rounds are
interleaved, medians of three are printed; below them what the project promises, and what was found.
`cpu us` is the processor time of the whole server (of ours: worker and Redis) per answer.
Where others use the core too it is the column to trust: a crowded core is shared among processes,
and we have three of them.

What is unfair, in the peers' favour: the features come with the request, they look nothing up, and
write nothing down, while Redis shares our worker's core and each of our answers is on file before
it is given. Against them: theirs is one row, always the same; their bodies are longer (ten
features); BentoML and MLServer validate by their own means. Of the empty route: its body is
validated by FastAPI's own machinery, ours by the same pydantic model on the raw bytes; so above 1
it is FastAPI's machinery that is passed by. The worker asks an MLflow that is down every 2 s
(and serves the verified local copy); all share one machine's caches and whatever else runs on it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import load as generator
from benchmarks.load import Load, load, post
from benchmarks.promised import promised
from benchmarks.servers import (
    CORES,
    Server,
    paused_stack,
    peers,
    production,
    start_empty,
    start_ours,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROUNDS, CONNECTIONS, MANY = 3, (1, 16), 1000
OVERLOADED = {429, 503}
TIMES = {
    "empty": {1: 0.9, 16: 1.5}, "forest": {1: 20.0, 16: 20.0}, "ONNX": {1: 3.5, 16: 8.0},
}  # fmt: skip
"""How many times the requests/s of each our worker is to answer, by connections."""
LEAST = {1: 1.2, 16: 3.2}
"""The same for MLServer with the ONNX file: what the one path of a request has to reach."""
FLOAT = re.compile(rb"\d\.\d+(?:e-\d+)?")


class Found(NamedTuple):
    """Medians of the rounds; `times`: our requests/s to theirs."""

    rate: float
    p50: float
    p99: float
    cpu: float
    busy: float
    times: float


def answer_of(server: Server, request: bytes) -> bytes:
    """The body of one good answer."""
    found: list[tuple[int, bytes]] = []
    load(server.port, [request], 1, count=1, seen=lambda *answer: found.append(answer))
    if [status for status, _ in found] != [200]:
        raise SystemExit(f"{request!r}: {found}")
    return found[0][1].partition(b"\r\n\r\n")[2]


def check(servers: Mapping[str, Server], row: Mapping[str, object]) -> None:
    """See that ours looks features up, and that all peers answer `row` as ours does."""
    ours = servers["gyre"]
    if (origin := json.loads(answer_of(ours, ours.requests[0]))["features_from"]) != "online":
        raise SystemExit(f"features are from {origin!r}, not online: make up first")
    given = post("/predict", json.dumps({"customer_id": 1, "features": row}).encode())
    expected = json.loads(answer_of(ours, given))["probability"]
    for name in servers.keys() - {"gyre", "empty"}:
        answer = answer_of(servers[name], servers[name].requests[0])
        if abs(float(FLOAT.findall(answer)[-1]) - expected) > 1e-5:
            raise SystemExit(f"{name} answers {answer!r}, gyre {expected}")


def measure(servers: Mapping[str, Server], seconds: float) -> dict[tuple[str, int], Found]:
    """Closed loops, interleaved; print the medians."""
    pairs = [(name, connections) for connections in CONNECTIONS for name in servers]
    rounds = [{(name, n): closed(servers[name], n, seconds) for name, n in pairs}
              for _ in range(ROUNDS)]  # fmt: skip
    found = {}
    print(f"{'':17}{'connections':>12}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>8}"
          f"{'load core':>11}{'failed':>8}{'gyre is':>10}")  # fmt: skip
    for name, n in pairs:
        median = found[name, n] = medians([each[name, n] for each in rounds],
                                          [each["gyre", n] for each in rounds])  # fmt: skip
        failed = sum(each[name, n].failed for each in rounds)
        print(f"{name:17}{n:12}{median.rate:9,.0f}{median.p50:9.2f}{median.p99:9.2f}"
              f"{median.cpu:8.0f}{median.busy:11.0%}{failed:8}{median.times:9.2f}x")  # fmt: skip
    return found


def medians(loads: Sequence[Load], ours: Sequence[Load]) -> Found:
    rows = [(each.rate, each.ms(50), each.ms(99), each.cpu / len(each.took) * 1e6, each.busy,
             own.rate / each.rate) for each, own in zip(loads, ours, strict=True)]  # fmt: skip
    return Found(*(statistics.median(column) for column in zip(*rows, strict=True)))


def closed(server: Server, connections: int, seconds: float) -> Load:
    load(server.port, server.requests, connections, seconds=seconds / 10)
    before = server.cpu()
    found = load(server.port, server.requests, connections, seconds=seconds)
    found.cpu = server.cpu() - before
    return found


def beside_peers(found: Mapping[tuple[str, int], Found]) -> None:
    for (name, connections), median in found.items():
        least = TIMES.get(name, TIMES.get(name.split()[-1]))
        if least is not None:
            what = f"times {name} at {connections} connections"
            promised(what, median.times, least[connections], "x", least=True)
    for connections, fewest in LEAST.items():
        what = f"times MLServer ONNX at {connections} connections, one path"
        promised(what, found["MLServer ONNX", connections].times, fewest, "x", least=True)
    p99 = found["gyre", 16].p99 / found["empty", 16].p99
    promised("p99 at 16 connections to the empty route's", p99, 2, "x")


def limits(ours: Server, empty: Server, best: Mapping[str, float], seconds: float) -> None:
    keys = [{"customer_id": key} for key in range(1, 501)]
    batch = replace(ours, requests=[post("/predict/batch", json.dumps(keys).encode())])
    promised("500 rows in one request, p50", closed(batch, 1, seconds).ms(50), 10, "ms")
    half = at_half(ours, best["gyre"], seconds)
    promised(f"p99 at {half.rate:,.0f} requests/s (half, open loop)", half.ms(99), 1, "ms")
    print(f"  (p50 {half.ms(50):.2f}, p99.9 {half.ms(99.9):.2f}, slowest {half.ms(100):.1f} ms, "
          f"{half.failed} failed)")  # fmt: skip
    beside = at_half(empty, best["empty"], seconds)
    print(f"  empty at half of its own, {beside.rate:,.0f} requests/s: p50 {beside.ms(50):.2f}, "
          f"p99 {beside.ms(99):.2f}, p99.9 {beside.ms(99.9):.2f} ms")  # fmt: skip
    for worker in ours.workers():
        promised("memory of the worker (PSS)", worker.memory_full_info().pss / 1e6, 130, "MB")


def at_half(server: Server, best: float, seconds: float) -> Load:
    """Half of what it can bear, at random moments; the connections are open and known before."""
    load(server.port, server.requests, 256, seconds=seconds, rate=best / 2)
    return load(server.port, server.requests, 256, seconds=3 * seconds, rate=best / 2)


def overload(ours: Server, best: float, before: float, seconds: float) -> None:
    """Three times the load it can bear, from many connections. before: requests/s from 16."""
    found = load(ours.port, ours.requests, MANY, seconds=2 * seconds, rate=3 * best)
    refused = sum(found.statuses[status] for status in OVERLOADED)
    share, offered = found.rate / best, (len(found.status) + found.unsent) / found.seconds
    promised(f"at {offered:,.0f} requests/s: good answers to the best rate", share, 0.8, "x",
             least=True)  # fmt: skip
    promised("  neither answered well nor refused", found.failed - refused, 0, "")
    print(f"  good: p50 {found.ms(50):.1f}, p99 {found.ms(99):.1f} ms; refused (429 or 503): "
          f"{refused}, p50 {found.ms(50, good=False):.1f}, p99 {found.ms(99, good=False):.1f} ms; "
          f"never sent, as all {MANY} connections waited: {found.unsent}")  # fmt: skip
    again = closed(ours, 16, seconds)
    promised("  requests/s afterwards to those before", again.rate / before, 0.9, "x", least=True)


def million(ours: Server) -> None:
    found = load(ours.port, ours.requests, 16, count=1_000_000)
    promised("the slowest of a million requests, 16 connections", found.ms(100), 100, "ms")
    print(f"  {found.rate:,.0f} requests/s, {found.failed} failed, p99 {found.ms(99):.2f}, "
          f"p99.9 {found.ms(99.9):.2f}, p99.99 {found.ms(99.99):.1f} ms")  # fmt: skip


def main(seconds: float, *, only_million: bool = False) -> None:
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name, ExitStack() as opened:
        folder = Path(name)
        opened.callback(os.sched_setaffinity, 0, CORES)  # other benchmarks follow
        generator.main()
        ours = start_ours(opened, folder)
        if only_million:
            with paused_stack():
                million(ours)
            return
        files = production(folder)
        servers = {"gyre": ours, "empty": start_empty(opened, folder, ours)}
        servers |= {peer: begin(opened) for peer, begin in peers(files).items()}
        check(servers, files.contract.defaults)
        cores = f"servers and Redis on core {CORES[0]}, load on core {CORES[-1]}"
        print(f"{cores}, {seconds:g} s each, median of {ROUNDS}; "
              f"load of the machine {os.getloadavg()[0]:.1f}")  # fmt: skip
        with paused_stack():
            found = measure(servers, seconds)
            print()
            beside_peers(found)
            promised("p99 at 16 connections", found["gyre", 16].p99, 3, "ms")
            best = max(found["gyre", 16].rate, closed(ours, 64, seconds).rate)
            limits(
                ours, servers["empty"], {"gyre": best, "empty": found["empty", 16].rate}, seconds
            )
            overload(ours, best, found["gyre", 16].rate, seconds)


if __name__ == "__main__":
    if sys.argv[1:] == ["--million"]:
        main(0, only_million=True)
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 3.0)
