"""A program that sends requests which schemathesis makes up from a server's own OpenAPI document.

    python -m tests.serving.generated_requests REQUESTS ADDRESS SKIP

Sends at least REQUESTS to ADDRESS, none to paths that match SKIP; prints every violation (a 5xx, a
status, content type or body that the document does not tell of, bad data accepted, good data
refused) and, as its last line, how many answers had each status.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished

UNTYPED = "(/invocations|/infer|:predict)$"
"""Paths of bodies whose parts must fit each other (a shape and its values, a key or all features),
which no schema tells: what is made up by schema is mostly refused there."""
REFUSED = ["400", "404", "405", "413", "415", "422"]
"""Statuses that bad data may get: what has too many rows may be too long, too."""
FIRST = 7
"""The seed of the first round."""


@dataclass
class Outcome:
    statuses: Counter[int] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong, each kind and route once, and how to see it."""


def generate(address: str, examples: int, seed: int, skip: str) -> Outcome:
    """Send up to `examples` to each route but those that match `skip`, and the first time what
    lies at the bounds of every field.
    """
    settings: dict[str, Any] = {
        "seed": seed,
        "checks": {"negative_data_rejection": {"expected-statuses": REFUSED}},
        "cache": {"enabled": False},
        "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
        "phases": {
            "coverage": {"enabled": seed == FIRST},
            "examples": {"enabled": False},
            "stateful": {"enabled": False},
        },
        "operations": [
            {
                "include-path-regex": UNTYPED,
                "checks": {"positive_data_acceptance": {"enabled": False}},
            },
            {"include-path-regex": skip, "enabled": False},
        ],
    }
    config = SchemathesisConfig.from_dict(settings)
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json", config=config)
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            outcome.problems[f"{event.label}: cannot be tested"] = str(event.info)
        if isinstance(event, ScenarioFinished):
            count(event, outcome)
    return outcome


def count(event: ScenarioFinished, outcome: Outcome) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        outcome.statuses[
            interaction.response.status_code if interaction.response else 0
        ] += 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                message = f"{failure.message}\n{check.failure_info.code_sample}"
                outcome.problems.setdefault(
                    f"{recorder.label}: {failure.title}", message
                )


def main(requests: int, address: str, skip: str) -> int:
    outcome = Outcome()
    seed = FIRST
    while outcome.statuses.total() < requests:
        examples = max(5, (requests - outcome.statuses.total()) // 100)
        result = generate(address, examples, seed, skip)
        outcome.statuses += result.statuses
        outcome.problems |= result.problems
        seed += 1
    for problem, example in sorted(outcome.problems.items()):
        print(f"- {problem}\n{example}")  # noqa: T201
    print(json.dumps(outcome.statuses))  # noqa: T201
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
