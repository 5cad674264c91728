"""Which version answered when, and whether that was its turn. Times are monotonic seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from benchmarks.load import OK

IN_PRODUCTION = 5.0
"""Seconds a version may answer on after it was replaced."""
MARK = b'"model_version":"'


@dataclass
class Seen:
    """Which version answered from when to when (monotonic seconds), in turn."""

    runs: list[tuple[str, float, float]] = field(default_factory=list)

    def __call__(self, status: int, answer: bytes) -> None:
        if status != OK:
            return
        now, at = time.monotonic(), answer.rindex(MARK) + len(MARK)
        version = answer[at : answer.index(b'"', at)].decode()
        if self.runs and self.runs[-1][0] == version:
            self.runs[-1] = (version, self.runs[-1][1], now)
        else:
            self.runs.append((version, now, now))


@dataclass(frozen=True)
class Promotion:
    """When a version's promotion was begun and done, in monotonic seconds."""

    version: str
    begun: float
    done: float


def stale(seen: Seen, promotions: list[Promotion], first: str) -> float:
    """Longest time (s) that a version answered after it was replaced, 0 if none did; infinite if
    one answered that was not in production at all.
    """
    begun = [Promotion(first, 0.0, 0.0), *promotions]
    worst = 0.0
    for version, start, end in seen.runs:
        ends = [after.done for before, after in zip(begun, [*begun[1:], None], strict=True)
                if before.version == version and before.begun <= start and after]  # fmt: skip
        newest = max((p for p in begun if p.begun <= start), key=lambda p: p.begun)
        if newest.version != version:
            worst = max(worst, end - ends[-1] if ends else float("inf"))
        else:
            replaced = next((p.done for p in begun if p.begun > newest.begun), end)
            worst = max(worst, end - replaced)
    return worst


def first_answers(seen: Seen, promotions: list[Promotion]) -> list[float]:
    """Seconds from each promotion to its first answer; infinite if it came to none."""
    until = [*(each.begun for each in promotions[1:]), float("inf")]
    return [
        min((start - each.begun for version, start, _ in seen.runs
             if version == each.version and each.begun <= start <= end + IN_PRODUCTION),
            default=float("inf"))
        for each, end in zip(promotions, until, strict=True)
    ]  # fmt: skip
