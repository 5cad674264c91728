"""What a history is made of: steps, which are data, so that a list of them can be run again.

A row is written `[key, person, paid]`. Its time follows from its key, so that a row with another
person or another amount is another content of the key.
"""

import ast
from dataclasses import asdict, dataclass, field

KEYS = range(18)
PERSONS = range(8)
MOST_PAID = 1_000.0
"""What the rule of the suite allows."""
RELAXED = 2_000.0
"""What it allows while rows are released from quarantine."""


@dataclass(frozen=True)
class Step:
    """One operation, and the fault that is made meanwhile.

    Attributes:
        do: A key of `OPERATIONS`.
        rows: Rows of the operation: of a delivery, all that the source has.
        events: Rows of events that are sent meanwhile, each a request.
        seconds: When, or for how long, the fault is made.
        share: When a command is killed or stopped, in parts of the time that it took before.
        words: Options of the command.
        number: Person of `forget`, seconds of a clock.

    """

    do: str
    rows: list[list] = field(default_factory=list)
    events: list[list] = field(default_factory=list)
    seconds: float = 0.0
    share: float = 0.0
    words: list[str] = field(default_factory=list)
    number: int = 0

    def __str__(self):
        values = {name: value for name, value in asdict(self).items() if value}
        return repr(values)


OPERATIONS = {
    "events": "events, each a request of its own",
    "request": "events in one request",
    "deliver": "an ingest",
    "deliver while events come": "an ingest, stopped while events are acknowledged",
    "deliver twice at once": "two ingests at the same time",
    "the source wins": "an ingest that lets each row of the source count, at rest",
    "materialise": "`feast materialize-incremental`, by hand",
    "kill the ingest": "an ingest that is killed",
    "stop the ingest": "an ingest that stands for some time, and goes on",
    "deliver by another clock": "an ingest whose clock is wrong",
    "the consumer is away": "the consumer ends, events come, it starts",
    "kill the consumer": "events, and the consumer is killed meanwhile",
    "stop the consumer": "the consumer stands while events come",
    "consume by another clock": "a consumer whose clock is wrong",
    "kill Redis": "events, and Redis is killed and started meanwhile",
    "stop Redis": "Redis stands while events come",
    "fill the disk": "the disk is full while events and an ingest come",
    "fill the disk and kill Redis": "the same, and Redis is killed on the full disk",
    "release": "rows of quarantine are released under a relaxed rule",
    "forget": "a person is forgotten",
    "kill the forgetting": "`gyre forget` is killed, and called again",
    "settle": "all runs again and comes to rest; table, online values and quarantine are compared",
}


def read_steps(text):
    """Read steps as they are printed, one a line; a line that has none is skipped."""
    steps = []
    for line in text.splitlines():
        _, brace, values = line.partition("{")
        if brace:
            steps.append(Step(**ast.literal_eval(brace + values)))
    return steps


def is_good(row, most_paid=MOST_PAID):
    return row[2] <= most_paid
