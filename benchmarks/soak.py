"""Half of what a worker can bear, for long, while versions are promoted and rolled back.

    python -m benchmarks.soak [minutes, 30 if not given]

Redis and server on the first core; load, MLflow and promotions on the last; all of its own,
in a temporary folder, with the shipped orders' features and two tiny versions that take turns in
production: 100 times, but no more often than every 6 s. Prints what failed; how long a promotion
took until its first answer, from when it was begun; whether each answer's version was in production
within the last 5 s before it; and the worker's memory every 10 s, which must stay within 5 % of
what it was after the warm-up: each customer asked for once, which also tells what the worker can
bear (it keeps the last known features of 50,000), and then the first fifth of the time. Prediction
logs that are closed are deleted, as the monitor takes them away. Exit code 1 where one of these
does not hold.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load import Load, load, post
from benchmarks.promised import promised
from benchmarks.servers import CORES, Server
from benchmarks.turns import IN_PRODUCTION, Promotion, Seen, first_answers, stale
from stack.errors import PromotionRefusedError, RegistryError
from tests.conftest import new_settings
from tests.serving.conftest import Rig

if TYPE_CHECKING:
    from concurrent.futures import Future

    import psutil

PROMOTIONS, APART, SAMPLE, WARM_UP = 100, 6.0, 10.0, 0.2
FLAT = 5.0
"""Percent that memory may move."""
CUSTOMERS = range(1, 23_001)


@dataclass(frozen=True)
class Memory:
    at: float
    pss: float
    rss: float


def ask(port: int, rate: float | None, seconds: float) -> tuple[Load, Seen]:
    """Run in a process of its own: who promotes must not hold up who asks. No rate: every customer
    once, as fast as it goes.
    """
    requests = [post("/predict", json.dumps({"customer_id": n}).encode()) for n in CUSTOMERS]
    seen, count = Seen(), None if rate else len(requests)
    connections = 64 if rate else 16
    return load(port, requests, connections, seconds=seconds, count=count, rate=rate,
                seen=seen), seen  # fmt: skip


def pinned(core: int) -> None:
    os.sched_setaffinity(0, {core})


def prepare(folder: Path, opened: ExitStack) -> tuple[Rig, list[str]]:
    """Redis with features on the first core, MLflow with two versions on the last."""
    rig = Rig(new_settings(folder / "home", demo_start=None), folder, opened)
    pinned(CORES[0])
    rig.start_redis()
    pinned(CORES[-1])
    rig.fill_features()
    rig.start_mlflow()
    versions = [rig.register(bias).version for bias in (-1.0, 0.5)]
    rig.promote(versions[0])
    return rig, versions


def turns(
    rig: Rig, versions: list[str], worker: psutil.Process, under_way: Future[tuple[Load, Seen]],
    seconds: float,
) -> tuple[list[Promotion], list[Memory]]:  # fmt: skip
    """Promote one and the other, and look at the worker's memory, for as long as it is asked."""
    promotions, memory, begin = list[Promotion](), list[Memory](), time.monotonic()
    every, last = max(APART, seconds / (PROMOTIONS + 1)), begin + seconds - 2 * IN_PRODUCTION
    while not under_way.done():
        now = time.monotonic()
        if now >= begin + SAMPLE * len(memory):
            found = worker.memory_full_info()
            memory.append(Memory(now - begin, found.pss / 1e6, found.rss / 1e6))
            tidy(rig.settings.home / "serving" / "log")
        if begin + every * (len(promotions) + 1) <= now <= last:
            version = versions[(len(promotions) + 1) % 2]
            promote(rig, version)
            promotions.append(Promotion(version, now, time.monotonic()))
        time.sleep(0.05)
    return promotions, memory


def promote(rig: Rig, version: str) -> None:
    """Promote it; again where MLflow closed the connection just as it was asked."""
    for again in range(10):
        try:
            rig.promote(version)
        except RegistryError as exc:
            print(f"promoted again: {str(exc)[:200]}")
        except PromotionRefusedError:
            if not again:
                raise
            return
        else:
            return


def tidy(folder: Path) -> None:
    """Delete all but the newest log: the worker writes to that one."""
    for path in sorted(folder.glob("predictions-*.jsonl"), key=lambda p: p.stat().st_mtime)[:-1]:
        path.unlink()


def spread(values: list[float]) -> float:
    """Most that any of `values` differs from the first, in percent."""
    return max(abs(value / values[0] - 1) for value in values) * 100


def report(
    found: Load, seen: Seen, promotions: list[Promotion], memory: list[Memory], first: str
) -> bool:
    late, old = max(first_answers(seen, promotions)), stale(seen, promotions, first)
    warm = [each for each in memory if each.at >= WARM_UP * memory[-1].at]
    samples = " ".join(f"{each.pss:.0f}/{each.rss:.0f}" for each in memory)
    print(f"PSS/RSS of the worker, MB, every {SAMPLE:g} s: {samples}")
    print(f"{len(found.took):,} requests, {found.rate:,.0f}/s; p50 {found.ms(50):.2f}, "
          f"p99 {found.ms(99):.2f}, slowest {found.ms(100):.0f} ms")  # fmt: skip
    print(f"{len(promotions)} promotions, versions seen: {sorted({run[0] for run in seen.runs})}, "
          f"{len(seen.runs) - 1} changes of the version that answers")  # fmt: skip
    kept = [
        promised("failed requests", found.failed, 0, ""),
        promised("from a promotion to its first answer, longest", late, IN_PRODUCTION, "s"),
        promised("a version answered after it was replaced, longest", old, IN_PRODUCTION, "s"),
        promised("PSS moved after the warm-up", spread([m.pss for m in warm]), FLAT, "%"),
        promised("RSS moved after the warm-up", spread([m.rss for m in warm]), FLAT, "%"),
    ]
    return all(kept)


def main(minutes: float) -> int:
    with tempfile.TemporaryDirectory(prefix="gyre-soak-") as name, ExitStack() as opened:
        pool = opened.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        rig, versions = prepare(Path(name), opened)
        pinned(CORES[0])
        client, process = opened.enter_context(rig.serving(serving_workers=1))
        pinned(CORES[-1])
        rig.known_to_be_ready(client)
        rig.answers_as(client, versions[0])
        port = rig.settings.serving_port
        (worker,) = Server(port, (), (process,)).workers()
        best = pool.submit(ask, port, None, 120.0).result()[0].rate
        print(f"{best:,.0f} requests/s at 16 connections, so {best / 2:,.0f}/s for {minutes:g} min")
        under_way = pool.submit(ask, port, best / 2, minutes * 60)
        promotions, memory = turns(rig, versions, worker, under_way, minutes * 60)
        found, seen = under_way.result()
        return 0 if report(found, seen, promotions, memory, versions[0]) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 30.0))
