"""Eight processes promote at once, again and again: is there ever more or less than one winner?

    python -m benchmarks.promotion_race [rounds]

Starts its own MLflow on a free port, in a temporary folder, with a ledger in SQLite. In each round
eight versions want to replace the one in production at the same moment, each from a process of its
own. Exit code 1 unless every round leaves one winner, one more row without a gap in the sequence,
all earlier rows as they were, and ledger, alias and stage in agreement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_server.ledger import Ledger
from mlflow_server.promotion import promote
from mlflow_server.registry import Registry
from tests.conftest import mlflow_server, new_settings
from tests.faults.promoting_processes import promoting_processes
from tests.mlflow_server.conftest import new_model, stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_server.ledger import LedgerRow

PROCESSES, ROUNDS = 8, 200


@dataclass(frozen=True)
class Round:
    """What a round began with and left; `said` is what each version's process answered."""

    before: Sequence[LedgerRow]
    after: Sequence[LedgerRow]
    alias: str | None
    stages: dict[str, str]
    said: dict[str, Any]

    def violations(self) -> list[str]:
        """Say what must not be; nothing of a good round."""
        winners = [version for version, (word, _) in self.said.items() if word == "won"]
        if len(winners) != 1:
            return [f"{len(winners)} winners: {self.said}"]
        (winner,), found = winners, []
        told = [word for version, (word, _) in self.said.items() if version != winner]
        if not all(f"version {winner} (by process {winner}" in word for word in told):
            found.append(f"a loser was not told that {winner} won: {told}")
        if list(self.after[: len(self.before)]) != list(self.before):
            found.append("an earlier row was changed or lost")
        if [row.sequence for row in self.after] != list(range(1, len(self.before) + 2)):
            found.append(f"the sequence after {len(self.before)} rows: {self.after[-2:]}")
        last = self.after[-1]
        expected = (self.before[-1].to_version, winner, True)
        if (last.from_version, last.to_version, bool(last.applied_at)) != expected:
            found.append(f"the last row is not {expected}: {last}")
        if self.alias != winner or self.stages.get(winner) != "Production":
            found.append(f"{winner} won, the alias is {self.alias}, stages are {self.stages}")
        return found


def main(rounds: int) -> int:
    began, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="gyre-race-") as name:
        settings = new_settings(Path(name))
        with mlflow_server(settings), promoting_processes(settings) as promoting:
            registry, ledger = Registry(settings), Ledger(settings)
            model = new_model(settings, PROCESSES + 1)
            promote(registry, ledger, model, "1", who="race", why="the first")
            everyone = [str(number) for number in range(1, PROCESSES + 2)]
            for number in range(1, rounds + 1):
                before = ledger.rows(model)
                current = before[-1].to_version
                said = promoting(model, [v for v in everyone if v != current], replaces=current)
                alias = registry.production(model)
                done = Round(before, ledger.rows(model), alias, stages(settings, model), said)
                for violation in done.violations():
                    bad += 1
                    print(f"round {number}: {violation}")
                if number % 20 == 0:
                    print(f"  {number} rounds, {time.monotonic() - began:.0f} s", file=sys.stderr)
            ledger.close()
    print(f"{rounds} rounds, {bad} violations")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS))
