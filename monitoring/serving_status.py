"""What serving says of itself and has counted, read over HTTP like anybody else does."""

import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any
from urllib.parse import urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import TypeAdapter

from core.settings import Settings
from mlflow_server.rest import TLS
from mlflow_server.roles import PRODUCTION

PATIENCE = 5
"""Seconds."""
FAILURES, ANSWERS = "gyre_prediction_failures_total", "gyre_predictions_total"
SECONDS = "gyre_prediction_seconds_bucket"


@dataclass(frozen=True)
class ServingStatus:
    """ready: the answer of /health/ready, of the first replica that is not, if any is not.

    samples: those of every replica's /metrics. replicas: the same, by address.
    """

    ready: Mapping[str, Any]
    samples: Sequence[Sample]
    replicas: Mapping[str, Sequence[Sample]] = field(default_factory=dict)

    def sums(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums of the samples `name` with these labels, by the value of one more label."""
        sums: defaultdict[str, float] = defaultdict(float)
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                sums[sample.labels[label]] += sample.value
        return dict(sums)

    def versions(self, model: str, role: str) -> list[str]:
        """Versions that workers hold in a role; two while one of them loads."""
        held = self.sums("gyre_model_info", "version", model=model, role=role)
        return sorted(version for version, value in held.items() if value)


@dataclass(frozen=True)
class Counted:
    """What one version in one role did since serving started.

    failed, answered: rows. timed: how many requests were timed. within: how many of them took at
    most so many seconds, by bound, rising.
    """

    failed: int = 0
    timed: int = 0
    within: tuple[tuple[float, float], ...] = ()
    answered: int = 0

    def since(self, earlier: "Counted") -> "Counted":
        """What came after `earlier`; all of it where serving has begun anew since."""
        before = dict(earlier.within)
        rows = tuple((bound, n - before.get(bound, 0)) for bound, n in self.within)
        failed, timed = self.failed - earlier.failed, self.timed - earlier.timed
        new = Counted(failed, timed, rows, self.answered - earlier.answered)
        anew = min(new.failed, new.timed, new.answered, *(n for _, n in rows)) < 0
        return self if anew else new

    def quantile(self, share: float) -> float | None:
        """Seconds within which `share` was done, on a line within its bucket; None without any.

        As Prometheus's histogram_quantile: beyond the last bound, that bound.
        """
        if not self.timed:
            return None
        below, done, wanted = 0.0, 0.0, share * self.timed
        for bound, count in self.within:
            if count >= wanted:
                return below + (bound - below) * (wanted - done) / (count - done)
            below, done = bound, count
        return below


Counters = dict[str, dict[str, Counted]]
"""By "role version", then by the replica's address."""
COUNTS = TypeAdapter(Counters)


def did(key: str, now: Counters, earlier: Counters) -> Counted:
    """Sum what the replicas did of "role version" since `earlier`: each may have begun anew."""
    then, total = earlier.get(key, {}), Counted()
    for address, counted in now.get(key, {}).items():
        new = counted.since(then.get(address, Counted()))
        so_far = dict(total.within)
        within = tuple((bound, n + so_far.get(bound, 0)) for bound, n in new.within)
        failed, timed = total.failed + new.failed, total.timed + new.timed
        total = Counted(failed, timed, within, total.answered + new.answered)
    return total


def replicas_of(settings: Settings) -> dict[str, str]:
    """Return where each replica is asked, by its own address: a name may have several of IPv4."""
    return {
        own: at
        for each in settings.serving_addresses
        for own, at in _behind(each).items()
    }


def _behind(address: str) -> dict[str, str]:
    url = urlsplit(address)
    with suppress(OSError):  # whoever asks the address says so
        hosts = socket.gethostbyname_ex(url.hostname or "")[2]
        own = [
            url._replace(netloc=f"{host}:{url.port or 80}").geturl()
            for host in sorted(hosts)
        ]
        if url.scheme == "http":  # a certificate is of the name
            keys = [f"{address} at {each}" for each in own]
            return dict(zip(keys, own if own[1:] else [address], strict=True))
    return {address: address}


def read_serving(settings: Settings) -> ServingStatus:
    """Return both; raises httpx.HTTPError or ValueError where serving does not answer."""
    addresses = replicas_of(settings)
    urls = (f"{address}/health/ready" for address in addresses.values())
    ready = [httpx.get(url, timeout=PATIENCE, verify=TLS).json() for url in urls]
    replicas = {own: _samples(address) for own, address in addresses.items()}
    samples = [sample for of_replica in replicas.values() for sample in of_replica]
    return ServingStatus(
        min(ready, key=lambda answer: bool(answer["ready"])), samples, replicas
    )


def counts(settings: Settings, model: str) -> Counters | None:
    """Return what every replica counted of `model`; None where one does not answer."""
    try:
        replicas = {
            own: _samples(address) for own, address in replicas_of(settings).items()
        }
    except httpx.HTTPError:
        return None
    return counters_of(replicas, model)


def counters_of(replicas: Mapping[str, Sequence[Sample]], model: str) -> Counters:
    """Return what the samples of each replica, by its address, say of `model`."""
    counters: Counters = defaultdict(dict)
    for address, samples in replicas.items():
        found: defaultdict[str, defaultdict[tuple[str, float], float]]
        found = defaultdict(lambda: defaultdict(float))
        for name, labels, value, *_ in samples:
            if labels.get("model") == model and name in {FAILURES, ANSWERS, SECONDS}:
                key = f"{labels.get('role', PRODUCTION)} {labels.get('version')}"
                found[key][name, float(labels.get("le", inf))] += value
        for key, sums in found.items():
            counters[key][address] = _counted(sums)
    return counters


def _samples(address: str) -> list[Sample]:
    """Return the samples of all workers of a replica."""
    answer = httpx.get(
        f"{address}/metrics", timeout=PATIENCE, verify=TLS
    ).raise_for_status()
    families = text_string_to_metric_families(answer.text)
    return [sample for family in families for sample in family.samples]


def _counted(sums: Mapping[tuple[str, float], float]) -> Counted:
    """sums: by name and bound, which is infinite of what is no bucket."""
    within = sorted((bound, n) for (_, bound), n in sums.items() if isfinite(bound))
    totals = (int(sums.get((name, inf), 0)) for name in (FAILURES, SECONDS, ANSWERS))
    failed, timed, answered = totals
    return Counted(failed, timed, tuple(within), answered)
