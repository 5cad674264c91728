"""The roles of a model's versions: which one answers whom."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from core.spec import Entity, entity_text
from serving.versions.model import LoadedModel

Role = Literal["production", "challenger", "shadow"]


@dataclass(frozen=True, slots=True)
class Roles:
    """The version in each role.

    Attributes:
        production: Answers all other entities.
        challenger: Answers `percent` of the entities.
        shadow: Scores the rows that production answers, and answers nobody.
        percent: Share of the challenger, from 0 to 100.

    """

    production: LoadedModel | None = None
    challenger: LoadedModel | None = None
    shadow: LoadedModel | None = None
    percent: int = 0

    def asks_challenger(self, key: Entity | None) -> bool:
        """Whether the challenger answers for `key`. One version always has the same entities."""
        if self.challenger is None or key is None:
            return False
        model = self.challenger.contract.model
        salted = f"{model}:{self.challenger.version}:{entity_text(key)}"
        digest = hashlib.blake2b(salted.encode(), digest_size=8).digest()
        return int.from_bytes(digest) * 100 / 2**64 < self.percent

    def by_name(self) -> dict[str, LoadedModel]:
        """Return the model in each role that is taken."""
        models = {
            "production": self.production,
            "challenger": self.challenger,
            "shadow": self.shadow,
        }
        return {role: model for role, model in models.items() if model is not None}
