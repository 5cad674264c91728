"""What serving says of itself and has counted, read over HTTP like anybody else does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from stack.settings import Settings

SECONDS = 5


@dataclass(frozen=True)
class ServingStatus:
    """ready: the answer of /health/ready. samples: those of /metrics."""

    ready: Mapping[str, Any]
    samples: Sequence[Sample]

    def sums(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Sums of the samples `name` with these labels, by the value of one more label."""
        sums: dict[str, float] = {}
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                value = sample.labels[label]
                sums[value] = sums.get(value, 0.0) + sample.value
        return sums

    def versions(self, model: str, role: str) -> list[str]:
        """Versions that workers hold in a role; two while one of them loads."""
        held = self.sums("gyre_model_info", "version", model=model, role=role)
        return sorted(version for version, value in held.items() if value)


def read_serving(settings: Settings) -> ServingStatus:
    """Return both; raises httpx.HTTPError or ValueError where serving does not answer."""
    ready = httpx.get(f"{settings.serving_address}/health/ready", timeout=SECONDS)
    return ServingStatus(ready.json(), read_samples(settings))


def read_samples(settings: Settings) -> list[Sample]:
    """Return the samples of all workers; raises httpx.HTTPError where serving does not answer."""
    answer = httpx.get(f"{settings.serving_address}/metrics", timeout=SECONDS).raise_for_status()
    families = text_string_to_metric_families(answer.text)
    return [sample for family in families for sample in family.samples]
