"""What the benchmarks share: measurements in processes of their own, medians, ratios, limits."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from redis import Redis

from core.project import PROJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    Values = dict[str, float]
    Peers = Mapping[str, Callable[..., Values]]
    Rounds = list[dict[str, Values]]

ROUNDS = 3


def child(benchmark: str, peer: str, *arguments: object, **environment: str) -> Values:
    """Measure a peer in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{benchmark}", peer]
    command += map(str, arguments)
    done = subprocess.run(
        command,
        env=os.environ | environment,
        cwd=PROJECT,
        check=False,
        capture_output=True,
    )
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr.decode()}")
    return dict[str, float](json.loads(done.stdout.splitlines()[-1]))


def peak_mb(process: int | str = "self") -> float:
    """Peak resident memory of a process. Not getrusage, which inherits the parent's peak."""
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(peak[1]) / 1024 if peak else float("nan")


def rounds_of(peers: Iterable[str], measured: Callable[[str], Values]) -> Rounds:
    """Measure the peers in turn, in several rounds; print the medians."""
    rounds = [{peer: measured(peer) for peer in peers} for _ in range(ROUNDS)]
    for peer in peers:
        print(
            f"{peer:10}{median(rounds, peer):8.2f} s{median(rounds, peer, 'mb'):8.0f} MB"
        )
    return rounds


def median(rounds: Rounds, peer: str, name: str = "seconds") -> float:
    return statistics.median(values[peer][name] for values in rounds)


def ratio(rounds: Rounds, peer: str, other: str) -> float:
    """Return the median, over the rounds, of the seconds of `peer` divided by those of `other`."""
    return statistics.median(v[peer]["seconds"] / v[other]["seconds"] for v in rounds)


def promised(
    what: str, value: float, limit: float, unit: str, *, least: bool = False
) -> None:
    """Print `value` beside its limit, and MISSED where the limit is not kept."""
    kept = value >= limit if least else value <= limit
    rule = "at least" if least else "at most"
    print(
        f"{what:58}{value:10.2f} {unit:4}{rule:>9} {limit:g}{'' if kept else '   MISSED'}"
    )


def title(what: str) -> None:
    print(
        f"\n{what}; {os.cpu_count()} cores, load of the machine {os.getloadavg()[0]:.1f}"
    )


def start(main: Callable[[int], None], default: int, peers: Peers) -> None:
    """What `python -m` does: measure one peer where arguments name it, else all of them."""
    if sys.argv[2:]:
        print_peer(peers)
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else default)


def print_peer(peers: Peers) -> None:
    """Measure the peer that the arguments name; print its values."""
    with redirect_stdout(sys.stderr):
        values = peers[sys.argv[1]](*sys.argv[2:])
    print(json.dumps(values | {"mb": peak_mb()}))


@contextmanager
def redis_in_memory(folder: Path) -> Iterator[int]:
    """Run a Redis without its append-only file (the disk is not measured); yield its port."""
    from tests.conftest import redis_server, unused_port  # noqa: PLC0415  (not in what is measured)

    port = unused_port()
    with redis_server(port, folder), Redis(port=port) as redis:
        redis.config_set("appendonly", "no")
        yield port
