"""What the processes of serving counted, by the value of a label, for the status pages."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample


class Counted:
    """Samples of one moment."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples = [each for family in registry.collect() for each in family.samples]

    def sums(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """Sums of the samples called `name` with these labels, by the value of the label `by`."""
        found: dict[str, float] = {}
        for sample in self._of(name, labels):
            value = sample.labels[by]
            found[value] = found.get(value, 0) + sample.value
        return found

    def answering(self, model: str) -> list[str]:
        """Versions that workers say they have in production; two while one of them loads."""
        held = self.sums("gyre_model_info", "version", model=model, role="production")
        return [version for version, value in held.items() if value]

    def _of(self, name: str, labels: Mapping[str, str]) -> Iterator[Sample]:
        for sample in self._samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample
