"""What a stack must hold after some steps, in plain Python.

How contents of one key come to the row that counts, `Sayings` knows. Where nobody can know whether
something was taken (a request without an answer, an ingest that was killed), a key has several
possible pasts, until a comparison tells which of them it was.
"""

from collections import defaultdict
from copy import deepcopy

from tests.faults.histories.steps import RELAXED, is_good
from tests.support.feature_engine.sayings import Sayings

LAG = 1_000_000
"""Steps within which the source may catch up: more than a history has."""


class Model:
    def __init__(self):
        self.pasts = defaultdict(lambda: [Sayings(LAG)])
        self.quarantine = {}
        """Rows set aside: True; False, perhaps."""
        self.forgotten = set()
        self.time = 0

    def sends(self, rows, *, is_sure=True):
        """Take the events of a request: sure, or perhaps, as there was no answer."""
        for key, of_key in self._by_key(rows, is_sure=is_sure).items():
            self._learn(key, "event", of_key, is_sure=is_sure)

    def delivers(self, rows, *, is_sure=True):
        """Take a delivery, as of the beginning of its reading."""
        last_rows = {row[0]: row for row in rows if row[1] not in self.forgotten}
        for key, row in [*last_rows.items()]:
            # A row that was released breaks the rule, and is no news.
            if not is_good(row) and any(map(_has_said(row[1:]), self.pasts[key])):
                del last_rows[key]
        for key, of_key in self._by_key(last_rows.values(), is_sure=is_sure).items():
            self._learn(key, "deliver", of_key, is_sure=is_sure)

    def source_wins(self, rows):
        """Take a delivery each of whose rows counts, whatever events have said."""
        self.delivers(rows)
        last_rows = {row[0]: row for row in rows}
        for key, *content in last_rows.values():
            if is_good([key, *content]) and content[0] not in self.forgotten:
                self.pasts[key] = [Sayings(LAG)]
                self._learn(key, "deliver", [tuple(content)], is_sure=True)
            elif any(map(_has_said(content), self.pasts[key])):
                self.quarantine.setdefault((key, *content), False)

    def _by_key(self, rows, *, is_sure):
        """Set bad rows aside; return the contents of others by key, in their order."""
        contents = defaultdict(list)
        for row in rows:
            key, *content = row
            if row[1] in self.forgotten:
                continue
            if is_good(row):
                contents[key].append(tuple(content))
            else:
                self.quarantine[tuple(row)] = is_sure or self.quarantine.get(
                    tuple(row), False
                )
        return contents

    def _learn(self, key, how, contents, *, is_sure):
        pasts = [] if is_sure else deepcopy(self.pasts[key])
        for past in self.pasts[key]:
            for content in contents:
                self.time += 1
                getattr(past, how)(self.time, content)
            pasts.append(past)
        unique_pasts = {
            (tuple(content for _, content in past.facts), past.finger): past
            for past in pasts
        }
        self.pasts[key] = [*unique_pasts.values()]

    def releases(self):
        """Take what a release under the relaxed rule lets in: a delivery, never over another row.

        Of several rows of one key the newest gets in, which may be either where they came at once.
        """
        rows_by_key = defaultdict(list)
        for row in self.quarantine:
            if is_good(row, RELAXED) and self.pasts[row[0]][0].counts is None:
                rows_by_key[row[0]].append(row)
        for key, rows in rows_by_key.items():
            former_pasts = self.pasts[key]
            self.pasts[key] = []
            for row in rows:
                pasts = deepcopy(former_pasts)
                self.time += 1
                for past in pasts:
                    past.deliver(self.time, row[1:])
                self.pasts[key] += pasts
                self.quarantine[row] = False
            if len(rows) == 1:
                del self.quarantine[rows[0]]

    def forgets(self, person):
        self.forgotten.add(person)
        for key, pasts in [*self.pasts.items()]:
            if any(past.counts and past.counts[0] == person for past in pasts):
                del self.pasts[key]
        self.quarantine = {
            row: is_sure for row, is_sure in self.quarantine.items() if row[1] != person
        }

    def compare(self, rows):
        """Compare the rows of the table with what is possible; go on from what was.

        Args:
            rows: The table's content, (person, paid), by key.

        Returns:
            A text for each key that differs.

        """
        problems = []
        for key in sorted({*self.pasts, *rows}):
            content = rows.get(key)
            pasts = [past for past in self.pasts[key] if past.counts == content]
            if pasts:
                self.pasts[key] = pasts
                continue
            expected = " or ".join(str(past.counts) for past in self.pasts[key])
            problems.append(f"key {key}: expected {expected}, found {content}")
        return problems

    def compare_quarantine(self, rows):
        """Compare the rows of quarantine, as tuples; go on from what was."""
        problems = []
        for row in sorted({*self.quarantine, *rows}):
            count = rows.count(row)
            if row not in self.quarantine:
                problems.append(f"{row}: never set aside, found {count} times")
            elif count > 1 or (count == 0 and self.quarantine[row]):
                problems.append(f"{row}: expected once, found {count} times")
            elif count == 0:
                del self.quarantine[row]
            else:
                self.quarantine[row] = True
        return problems

    @staticmethod
    def totals(rows):
        """Return the features of each person, (count, sum), that rows of the table come to."""
        totals = {}
        for person, paid in rows.values():
            count, total = totals.get(person, (0, 0.0))
            totals[person] = (count + 1, total + paid)
        return totals


def _has_said(content):
    """Return a function that says whether the source has said a content last."""

    def is_said(past):
        return past.finger >= 0 and past.facts[past.finger][1] == tuple(content)

    return is_said
