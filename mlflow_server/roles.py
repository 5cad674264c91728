"""Roles of versions, and which version of a model is in which role."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

PRODUCTION = "production"
CHALLENGER = "challenger"
SHADOW = "shadow"
ROLES = (PRODUCTION, CHALLENGER, SHADOW)
PRODUCTION_STAGE = "Production"
"""Stage of the version in role production."""
TRAFFIC_TAG = "challenger_traffic"
WHOLE = 100


@dataclass(frozen=True)
class RoleAssignment:
    """A registered model, with its version in each role.

    A model that was deleted and made anew is another model: its versions count from 1 again.

    Attributes:
        name: Name of the model.
        created: Time of its registration, in milliseconds since 1970; 0: there is no such model.
        aliases: Versions by alias.
        tags: Tags of the model.
        updated: Time of the last change of it or of a version, such as of a stage, in milliseconds.

    """

    name: str
    created: int = 0
    aliases: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    updated: int = field(default=0, compare=False)

    @property
    def versions(self) -> dict[str, str]:
        """Versions by role, production first."""
        return {role: self.aliases[role] for role in ROLES if role in self.aliases}

    def percent(self, role: str) -> int:
        """Return the percent of requests that the role's version answers; 0 without a version.

        A shadow scores all of them. A challenger has 0 if the tag is absent, malformed or names
        another version.
        """
        version = self.aliases.get(role)
        if version is None:
            return 0
        if role != CHALLENGER:
            return WHOLE
        tag = self.tags.get(TRAFFIC_TAG, "")
        match = re.fullmatch(r"([0-9]+):([1-9][0-9]?|100)", tag)
        return int(match[2]) if match and match[1] == version else 0


def traffic_text(version: str | None, percent: int) -> str | None:
    """Return the value of TRAFFIC_TAG for a challenger; None: the model has no such tag."""
    return f"{version}:{percent}" if percent else None


def version_text(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"
