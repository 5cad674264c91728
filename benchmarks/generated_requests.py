"""Requests that schemathesis makes up from a server's own OpenAPI document, and what came back.

    python -m benchmarks.generated_requests [REQUESTS] [ADDRESS]

Sends about REQUESTS (10,000) to ADDRESS, by default this stack's serving (`make up`), and prints
answers by status and every violation: a 5xx, a status, content type or body that the document does
not tell of, bad data accepted, good data refused.
"""

from __future__ import annotations

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

UNTYPED = "(/invocations|/infer)$"
"""Paths of bodies whose parts must fit each other (a shape and its values, columns and cells),
which no schema tells: what is made up by schema is mostly refused there."""


@dataclass
class Outcome:
    statuses: Counter[int] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)
    """What is wrong, each kind and route once, and how to see it."""


def config(examples: int, *, thorough: bool) -> dict[str, Any]:
    """Up to `examples` requests a route; `thorough`: at every bound of every field too."""
    return {
        "seed": 7,
        "headers": {},
        "parameters": {"merge": False},  # true: `features` need not be complete, as the text says
        "generation": {"max-examples": examples, "database": "none", "no-shrink": True},
        "phases": {
            "coverage": {"enabled": thorough}, "examples": {"enabled": False},
            "stateful": {"enabled": False},
        },
        "operations": [{
            "include-path-regex": UNTYPED,
            "checks": {"positive_data_acceptance": {"enabled": False}},
        }],
    }  # fmt: skip


def generate(
    address: str, examples: int, *, thorough: bool = False, token: str | None = None
) -> Outcome:
    settings = config(examples, thorough=thorough)
    if token:
        settings["headers"] = {"Authorization": f"Bearer {token}"}
    schema = schemathesis.openapi.from_url(
        f"{address}/openapi.json", config=SchemathesisConfig.from_dict(settings),
        headers=settings["headers"],
    )  # fmt: skip
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


def main(requests: int, address: str) -> int:
    start = time.perf_counter()
    outcome = Outcome()
    round_of = 40
    while outcome.statuses.total() < requests:
        found = generate(address, round_of, thorough=not outcome.statuses)
        outcome.statuses += found.statuses
        outcome.problems |= found.problems
        rest = requests - outcome.statuses.total()
        round_of = max(10, round_of * rest // max(found.statuses.total(), 1))
    print(json.dumps(dict(sorted(outcome.statuses.items()))))
    for what, shown in sorted(outcome.problems.items()):
        print(f"- {what}\n    {shown.replace(chr(10), chr(10) + '    ')}")
    took = time.perf_counter() - start
    print(f"{outcome.statuses.total()} requests in {took:.0f} s, {len(outcome.problems)} problems")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    sys.exit(main(asked, sys.argv[2] if len(sys.argv) > 2 else load_settings().serving_address))
