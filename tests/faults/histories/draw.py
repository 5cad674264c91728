"""Draws steps from a seed. Few values are drawn often, so that contents repeat and come back."""

from random import Random

from tests.faults.histories.steps import KEYS, Step

MOVING = KEYS[:12]
"""Keys whose rows change between persons 0 to 4; any other is of one person, who may be forgotten."""
FORGETTABLE = {key: 5 + (key - 12) // 2 for key in KEYS[12:]}
AMOUNTS = [10.0, 12.5, 20.0, 57.5, 75.0]
BAD_AMOUNTS = [1_500.0, 9_000.0]
"""The first is released under the relaxed rule."""
CLOCKS = [-3_600, 30, 7_200, 172_800]
"""Seconds by which a clock is wrong."""
WEIGHTS = {
    "events": 6,
    "request": 6,
    "deliver": 8,
    "deliver while events come": 5,
    "deliver twice at once": 3,
    "the source wins": 2,
    "materialise": 2,
    "kill the ingest": 6,
    "stop the ingest": 3,
    "deliver by another clock": 3,
    "the consumer is away": 4,
    "kill the consumer": 5,
    "stop the consumer": 4,
    "consume by another clock": 3,
    "kill Redis": 5,
    "stop Redis": 4,
    "fill the disk": 4,
    "fill the disk and kill Redis": 4,
    "release": 3,
    "forget": 2,
    "kill the forgetting": 4,
    "settle": 3,
}
DELIVERIES = {
    name
    for name in WEIGHTS
    if any(word in name for word in ("deliver", "ingest", "disk", "away", "source"))
}
ODD_ENOUGH = 0.12
"""Share of events, and of deliveries, with a row that breaks the rule."""


class Draw:
    def __init__(self, seed):
        self.random = Random(seed)
        self.source = {}

    def steps(self, count):
        """Return the steps of a history, of which the last settles."""
        steps = [Step("deliver", rows=self.delivery())]
        names = [*WEIGHTS]
        weights = [*WEIGHTS.values()]
        while len(steps) < count:
            (name,) = self.random.choices(names, weights)
            steps.append(self.step(name))
        return [*steps, Step("settle")]

    def step(self, name):
        random = self.random
        if name in {"settle", "materialise"}:
            return Step(name)
        if name == "release":
            return Step(name, events=self.rows(2, bad_share=0.5))
        if name in {"forget", "kill the forgetting"}:
            key = random.choice([*FORGETTABLE])
            return Step(
                name,
                events=[self.row(key)],
                number=FORGETTABLE[key],
                share=round(random.uniform(0.05, 1), 2) if "kill" in name else 0.0,
            )
        has_delivery = name in DELIVERIES
        has_clock = "clock" in name
        return Step(
            name,
            rows=self.delivery() if has_delivery else [],
            events=self.rows(random.choice([1, 2, 3, 5])),
            seconds=round(random.uniform(0.05, 1.5), 2),
            share=round(random.uniform(0.05, 1), 2) if "ingest" in name else 0.0,
            words=["--full"] if has_delivery and random.random() < 0.4 else [],
            number=random.choice(CLOCKS) if has_clock else 0,
        )

    def row(self, key=None, bad_share=0.0):
        random = self.random
        if key is None:
            key = random.choice(KEYS)
        amounts = BAD_AMOUNTS if random.random() < bad_share else AMOUNTS
        person = FORGETTABLE.get(key)
        if person is None:
            person = random.choice([key % 5, key % 5, key % 5, (key + 1) % 5])
        return [key, person, random.choice(amounts)]

    def rows(self, count, bad_share=ODD_ENOUGH):
        """Draw rows; several are often of one key, or the same."""
        random = self.random
        rows = []
        for _ in range(count):
            if rows and random.random() < 0.15:
                rows.append(random.choice(rows))
            else:
                key = rows[-1][0] if rows and random.random() < 0.5 else None
                rows.append(self.row(key, bad_share))
        return rows

    def delivery(self):
        """Draw what the source has: rows as before, others changed, one perhaps absent or bad."""
        random = self.random
        for _ in range(random.randrange(1, 8)):
            row = self.row()
            self.source[row[0]] = row
        rows = [*self.source.values()]
        if random.random() < 0.2:
            rows.remove(random.choice(rows))
        if random.random() < ODD_ENOUGH and rows:
            place = random.randrange(len(rows))
            rows[place] = [*rows[place][:2], random.choice(BAD_AMOUNTS)]
        if random.random() < 0.2 and rows:
            rows.insert(0, self.row(rows[-1][0]))  # the later row of a key counts
        return rows


def draw(seed, count):
    return Draw(seed).steps(count)
