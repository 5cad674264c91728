"""A model of how source and events meet, written in another way than the product."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sayings:
    """Contents of one key in their order, and a finger on the one that the source has said.

    Attributes:
        lag: How long after an event the source may say the same.

    """

    lag: Any
    facts: list[tuple[Any, Any]] = field(default_factory=list)
    finger: int = -1

    def event(self, at, content):
        self.facts.append((at, content))

    def deliver(self, at, content):
        if self.finger >= 0 and self.facts[self.finger][1] == content:
            return
        for place in range(self.finger + 1, len(self.facts)):
            fact_at, fact = self.facts[place]
            if fact == content and at - fact_at <= self.lag:
                self.finger = place
                return
        self.facts = [(at, content)]
        self.finger = 0

    @property
    def counts(self):
        """The content that counts; None before the first."""
        return self.facts[-1][1] if self.facts else None
