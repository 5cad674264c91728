"""Requests that schemathesis makes up from a server's own OpenAPI document, and what came back.

    python -m benchmarks.generated_requests [REQUESTS] [--address ADDRESS] [--skip PATTERN]

Sends at least REQUESTS (10,000) to ADDRESS, by default this stack's serving (`make up`), and prints
answers by status and every violation: a 5xx, a status, content type or body that the document does
not tell of, bad data accepted, good data refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema
from schemathesis.engine.events import NonFatalError, ScenarioFinished

from stack.settings import load_settings
from stack.tokens import serving_headers

UNTYPED = "(/invocations|/infer)$"
"""Paths of bodies whose parts must fit each other (a shape and its values, columns and cells),
which no schema tells: what is made up by schema is mostly refused there."""
FIRST = 7
"""The seed of the first round."""


@dataclass
class Outcome:
    statuses: Counter[int] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong, each kind and route once, and how to see it."""


def generate(address: str, examples: int, seed: int, skip: str, headers: dict[str, str]) -> Outcome:
    """Send up to `examples` to each route but those that match `skip`, and the first time what
    lies at the bounds of every field.
    """
    settings: dict[str, Any] = {
        "seed": seed,
        "cache": {"enabled": False},
        "headers": headers,
        "parameters": {"merge": False},  # true: `features` need not be complete, as the text says
        "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
        "phases": {
            "coverage": {"enabled": seed == FIRST}, "examples": {"enabled": False},
            "stateful": {"enabled": False},
        },
        "operations": [{
            "include-path-regex": UNTYPED,
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }],
    }  # fmt: skip
    if skip:
        settings["operations"].append({"include-path-regex": skip, "enabled": False})
    config = SchemathesisConfig.from_dict(settings)
    document = f"{address}/openapi.json"
    schema = schemathesis.openapi.from_url(document, config=config, headers=headers)
    outcome = Outcome()
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            outcome.problems[f"{event.label}: cannot be tested"] = str(event.info)
        if isinstance(event, ScenarioFinished):
            _count(event, outcome)
    return outcome


def _count(event: ScenarioFinished, outcome: Outcome) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        outcome.statuses[interaction.response.status_code if interaction.response else 0] += 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info is not None:
                failure = check.failure_info.failure
                said = f"{failure.message}\n{check.failure_info.code_sample}"
                outcome.problems.setdefault(f"{recorder.label}: {failure.title}", said)


def main(requests: int, address: str, skip: str, headers: dict[str, str]) -> int:
    start, outcome, seed = time.perf_counter(), Outcome(), FIRST
    while outcome.statuses.total() < requests:
        examples = max(5, (requests - outcome.statuses.total()) // 100)
        found = generate(address, examples, seed, skip, headers)
        outcome.statuses += found.statuses
        outcome.problems |= found.problems
        seed += 1
    for what, shown in sorted(outcome.problems.items()):
        print(f"- {what}\n    {shown.replace(chr(10), chr(10) + '    ')}")
    took = time.perf_counter() - start
    print(f"{outcome.statuses.total()} requests in {took:.0f} s, {len(outcome.problems)} problems")
    print(json.dumps(dict(sorted(outcome.statuses.items()))))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    settings, parser = load_settings(), argparse.ArgumentParser()
    parser.add_argument("requests", nargs="?", type=int, default=10_000)
    parser.add_argument("--address", default=settings.serving_address)
    parser.add_argument("--skip", default="", help="a pattern of paths that are left out")
    asked = parser.parse_args()
    sys.exit(main(asked.requests, asked.address, asked.skip, serving_headers(settings)))
