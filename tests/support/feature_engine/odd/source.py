"""An odd source: drawn columns, values, histories and layouts, and what must come of them.

`Source` draws, `Layouts` writes what a source holds, and `Expected` says what must come of it, in
plain Python without Gyre. A time is a number of microseconds since 1970 UTC: Python ends at 9999.
"""

import csv
import gzip
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from itertools import product
from math import isfinite
from random import Random
from statistics import multimode

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from tests.support.feature_engine.sayings import Sayings

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TYPES = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "bool": pa.bool_(),
    "time": pa.timestamp("us", "UTC"),
}
OTHER_TYPES = {
    "int": (pa.int8(), pa.int32(), pa.uint64(), pa.decimal128(38, 0)),
    "float": (pa.float32(),),
    "text": (
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
    ),
    "bool": (),
    "time": (
        pa.date32(),
        pa.timestamp("s", "Asia/Kolkata"),
        pa.timestamp("ms", "America/New_York"),
        pa.timestamp("ns", "+05:30"),
    ),
}
"""Types of Arrow that a column may have where they hold its values."""
SQL_TYPES = {
    "int": "BIGINT",
    "float": "DOUBLE",
    "text": "TEXT",
    "bool": "BOOLEAN",
    "time": "TIMESTAMPTZ",
}
LARGEST = 10**12
"""decimal(18, 6), as which amounts are added, holds what is below."""
# fmt: off
NAMES = (
    "Order ID", "ev.id", "it's", 'say "x"', "a%", "_id", "_batch", "_position", "_copies", "_at",
    "_age", "_text", "_contents", "_order", "_is_last", "Period", "file_row_number", "filename",
    "created", "event_timestamp", "select", "Größe", "数量", "c;d", "x--y", "label", "score", "rules",
    "as_of", "old.x", "{}", "${HOME}", "a\\b", "a,b", "1st", "true", "null", "schema", "dict",
    "copy", "json", "days", "events", "(x)", "a=b", "/x", "#", "$1", "?",
)
ENTITIES = (
    "who", "value", "group", "Customer", "order", "rows", "key", "old", "new", "row", "user", "period",
)
INTS = (
    0, -1, 7, 2**31, 2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 1 - 2**63, -(2**63), 10**18 + 1,
)
TEXTS = (
    "007", "7", "0007", "7.0", "12345678901234567891", "12345678901234567892", "9007199254740993",
    "1e5", "NaN", "null", "None", "true", "2026-11-20", "it's", 'a "b"', "line\nend", "tab\t.",
    " pad ", "\u00e9", "e\u0301", "数", "🙂", "Z", "z", "x" * 300, "a,b;c|d", "\\N", "%s{}", "-0",
    "A_1:B", "",
)
AMOUNTS = (
    0.0, -0.0, 0.01, 0.1, 14.96, -3.25, 1e-7, 5e-324, 2.5e-6, 123456.789, 999999999999.25,
    -999999999999.5, 0.1 + 0.2,
)
BANNED = 5e7
"""An amount that a rule forbids until it is relaxed."""
FOLDERS = (
    "we[ird]", "a b", "hash#1", "who=99", "batch=7", "100%", "it's", "{x}", "Größe", "${HOME}",
    "a&b", "x*",
)
STEPS = (0, 1, HOUR, DAY, 3 * DAY, 7 * DAY, 7 * DAY - 1, 30 * DAY, 40 * DAY)
PERIODS = (None, 1, HOUR, DAY, 7 * DAY, 30 * DAY)
# fmt: on
PLAIN = ("at_ts", "tag", "amount", "big", "pieces", "flag", "note", "ev", "line")


class Source:
    """The columns of a source, and the rows that it comes to hold.

    Args:
        seed: Draws everything.
        off: Names of what is not drawn.

    Attributes:
        kinds: Kind of each column, in order.
        windows: Column, function and period (microseconds) of each feature.
        rows: What the source holds now, in its order.

    """

    def __init__(self, seed, off=()):
        self.chance = Random(seed)
        self.seed = seed
        self.off = set(off)
        # Only a CSV has texts for numbers, and no CSV has empty texts beside nulls.
        self.off.add("" if self.draws("text", 0.5) else "text")
        self.style = self.chance.choice(["whole", "growing", "newest"])
        self.truths = (True, False, None)
        self.now = micros(datetime(2099, 11, 20, 12, tzinfo=UTC))
        self.entity = self.chance.choice(self.allowed(ENTITIES))
        self.time, self.tag, self.amount, self.big, self.pieces, *names = self._names()
        self.flag, self.note, *names = names
        self.key = tuple(names[: self.chance.choice([1, 1, 2])])
        kinds = {self.time: "time", self.amount: "float", self.flag: "bool"}
        kinds |= dict.fromkeys([self.tag, self.note], "text")
        kinds |= dict.fromkeys([self.big, self.pieces], "int")
        for name in (*self.key, self.entity):
            kinds[name] = self.chance.choice(["int", "text"])
        if self.draws("wide", 0.15):
            kinds |= {f"more {number}": "int" for number in range(30)}
        self.kinds = dict(self.chance.sample([*kinds.items()], len(kinds)))
        self.keys = self._keys()
        self.entities = self._values(self.entity)[: self.chance.randint(2, 5)]
        self.windows = {
            "events_7d": (None, "count", 7 * DAY),
            "events_ever": (None, "count", None),
            "w0": (self.amount, "sum", self.chance.choice(PERIODS)),
        }
        for number in range(1, 7):
            self.windows[f"w{number}"] = self._window()
        self.count = 0
        self.rows = []
        self.sent = []
        self.versions = {}
        self.broken = []
        self.banned = {BANNED}
        self.earliest = FIRST_TIME

    def draws(self, what, share):
        return what not in self.off and self.chance.random() < share

    def allowed(self, values):
        return [value for value in values if value not in self.off]

    def _names(self):
        """Draw names that differ by more than capitals."""
        names = {name.lower(): name for name in self.allowed(NAMES)}
        names.pop(self.entity.lower(), None)
        odd = self.chance.sample([*names.values()], len(PLAIN))
        pairs = zip(odd, PLAIN, strict=True)
        return [pair[not self.draws("names", 0.6)] for pair in pairs]

    def _values(self, name):
        """Return values of a key or an entity; one of the first two shows that texts are texts."""
        is_text = self.kinds[name] == "text"
        odd = self.allowed(TEXTS if is_text else INTS)
        self.chance.shuffle(odd)
        more = [10**6 + number for number in range(99)]
        codes = ["A_1:B", "007", "12345678901234567891"] if is_text else [7]
        first = self.chance.choice(self.allowed(codes))
        values = [first, *odd, *(f"k{n}" if is_text else n for n in more)]
        return [*dict.fromkeys(values)]

    def _keys(self):
        """Yield keys, each once."""
        values = [self._values(name)[:40] for name in self.key]
        first, *others = product(*values)
        yield first
        yield from self.chance.sample(others, len(others))

    def _window(self):
        column = self.chance.choice(
            [self.amount, self.pieces, self.big, self.flag, self.note]
        )
        functions = ["count", "min", "max", "first", "last"]
        if column in {self.amount, self.pieces}:
            functions += ["sum", "mean"]
        if column != self.amount:
            functions.append("mode")
        return column, self.chance.choice(functions), self.chance.choice(PERIODS)

    def key_of(self, row):
        return tuple(row[name] for name in self.key)

    def begin(self):
        """Draw the first rows, which `gyre new` reads: all are good, and say what is never null."""
        rows = [self._new_row() for _ in range(self.chance.randint(4, 15))]
        rows[0] |= {self.entity: self.entities[0], self.big: 2**53 + 1}
        rows[0] |= {self.note: "a word", self.flag: self.truths[0], self.amount: 0.5}
        self._deliver(rows)
        self.filled = set(self.kinds)
        for row in rows:
            self.filled -= {name for name, value in row.items() if value is None}
        year = min(1990, *(moment(row[self.time]).year for row in rows))
        self.earliest = micros(datetime(year, 1, 1, tzinfo=UTC))

    def go_on(self, later):
        """Draw what the source holds some time later."""
        self.now += later
        self._deliver(self._changes())

    def _changes(self):
        chance = self.chance
        changes = [row for row in self.sent if chance.random() < 0.7]
        self.sent = []
        changes += [self._new_row() for _ in range(chance.randint(0, 6))]
        is_whole = self.style == "whole"
        good_rows = [row for row in self.versions.values() if self.is_good(row)]
        for row in chance.sample(good_rows, min(len(good_rows), chance.randint(0, 6))):
            if is_whole and self.draws("future", 0.1):
                changes.append(self._ahead(self._corrected(row)))
            elif is_whole and self.draws("broken", 0.1):
                changes.append(self._broken(self._corrected(row)))
            else:
                corrections = [
                    self._corrected(row) for _ in chance.choice(["", "a", "ab"])
                ]
                changes += [row, *corrections]
        if self.draws("future", 0.6):
            changes.append(self._ahead(self._new_row()))
        if self.draws("broken", 0.7):
            changes += [
                self._broken(self._new_row()) for _ in chance.choice(["a", "abc"])
            ]
        mended = [row for row in self.broken if self.draws("mended", 0.3)]
        self.broken = [row for row in self.broken if row not in mended]
        return changes + [self._new_row(self.key_of(row)) for row in mended]

    def events(self, received):
        """Draw events: new rows, repeats, corrections, and what breaks a rule of single rows."""
        chance = self.chance
        rows = [self._new_row() for _ in range(chance.randint(1, 4))]
        good_rows = [row for row in self.versions.values() if self.is_good(row)]
        for row in chance.sample(good_rows, min(len(good_rows), 3)):
            rows += chance.choice(
                [[row], [self._corrected(row)], [self._corrected(row)] * 2]
            )
        rows = [row | {self.time: min(row[self.time], received)} for row in rows]
        rows = [row for row in rows if self.is_good(row)]
        self.sent += rows
        return [
            *rows,
            *(
                row | {self.amount: BANNED, self.tag: row[self.tag] + "!"}
                for row in rows[:1]
            ),
        ]

    def _corrected(self, row):
        """Draw another content of a row: a value, the entity or the time is another."""
        new = self._new_row(self.key_of(row))
        column = self.chance.choice([self.amount, self.entity, self.time, self.big])
        return row | {column: new[column], self.tag: new[self.tag]}

    def _ahead(self, row):
        ahead = self.chance.choice([1, SECOND, HOUR, DAY, 40 * DAY])
        return row | {self.time: self.now + ahead}

    def _broken(self, row):
        """Make a row one that must be set aside."""
        chance = self.chance
        years = [
            np.datetime64(f"{year}-03-01", "us").astype(int).item()
            for year in (10_001, 20_000, -5)
        ]
        faults = {
            "null": (
                chance.choice([*self.key, self.entity, self.time, self.amount]),
                None,
            ),
            "nan": (self.amount, float("nan")),
            "inf": (self.amount, chance.choice([float("inf"), float("-inf")])),
            "large": (self.amount, chance.choice([1e13, -1e12, 1e300])),
            "year": (self.time, chance.choice(years)),
            "banned": (self.amount, BANNED),
            "early": (self.time, self.earliest - 1),
            "text": (
                self.pieces,
                chance.choice(["ten", "1.5", "12345678901234567891"]),
            ),
        }
        name, value = faults[chance.choice(self.allowed(faults))]
        row = row | {name: value}
        self.broken.append(row)
        return row

    def is_good(self, row):
        """Whether a row can be read and computed from, and breaks no rule of `gyre new`."""
        for name, kind in self.kinds.items():
            value = row[name]
            if value is None:
                is_fit = name not in self.filled
            elif kind == "time":
                is_fit = self.earliest <= value <= LAST_TIME
            elif kind == "float":
                is_fit = abs(value) < LARGEST and value not in self.banned
            else:
                is_fit = isinstance(value, str) == (kind == "text")
            if not is_fit:
                return False
        return True

    def take_back(self, rows):
        """Hold some rows no longer."""
        self.rows = [row for row in self.rows if row not in rows]
        self.broken = [row for row in self.broken if row not in rows]
        self.versions = {
            key: row for key, row in self.versions.items() if row not in rows
        }

    def _deliver(self, rows):
        for row in rows:
            key = self.key_of(row)
            self.versions[row[self.tag] if None in key else key] = row
        if self.style == "whole":
            self.rows = [*self.versions.values()]
        else:
            self.rows = rows if self.style == "newest" else [*self.rows, *rows]

    def _new_row(self, key=(None,)):
        """Draw a row that is due and breaks no rule; of a new key unless one is given."""
        chance = self.chance
        self.count += 1
        key = next(self.keys) if None in key else key
        row = dict.fromkeys(self.kinds, 0) | dict(zip(self.key, key, strict=True))
        row[self.entity] = chance.choice(self.entities)
        row[self.time] = self._due_time()
        row[self.tag] = f"v{self.count}{chance.choice(['', ' é', chr(34), ',', '|'])}"
        row[self.amount] = chance.choice(self.allowed(AMOUNTS))
        row[self.big] = chance.choice(self.allowed(INTS))
        row[self.pieces] = chance.choice([0, 1, 2, -5, 10**9])
        row[self.flag] = chance.choice(self.truths)
        row[self.note] = chance.choice([None, *self.allowed(TEXTS)])
        return row

    def _due_time(self):
        chance = self.chance
        if self.draws("ancient", 0.04):
            year = chance.choice([2, 1582, 1677, 1900, 1969])
            time = micros(datetime(year, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
            return max(time, self.earliest)
        time = (
            self.now
            - chance.choice(STEPS)
            - chance.choice([0, 0, 1, chance.randrange(DAY)])
        )
        return time // DAY * DAY if chance.random() < 0.2 else time


class Layouts:
    """Writes the rows of a source in a form that is drawn each time.

    Args:
        source: Whose rows they are, and what draws.
        folder: An empty one.

    Attributes:
        misfits: Rows of the files written last in which no number of pieces is one.

    """

    time_zone = None
    """Zone of times that have none."""

    def __init__(self, source, folder):
        self.source = source
        self.chance = source.chance
        self.folder = folder
        self.number = 0
        self.misfits = []
        folder.mkdir()

    def write(self, rows):
        """Write rows; return the address of a source that holds them in this order."""
        self.number += 1
        self.misfits = []
        source = self.source
        cells = [
            value
            for row in rows
            for name, value in row.items()
            if source.kinds[name] != "text"
        ]
        texts = [
            value
            for row in rows
            for name, value in row.items()
            if source.kinds[name] == "text"
        ]
        has_texts = any(isinstance(value, str) for value in cells)
        endings = [] if "" in texts else [".csv", ".csv.gz"]
        if has_texts:
            return self._files(rows, endings)
        endings += [".parquet"] * 2
        forms = [self._files] * 3
        has_different_keys = self.has_different_keys(rows)
        forms += [self._duckdb] * has_different_keys
        times = [row[source.time] or 0 for row in rows]
        if min(times, default=0) >= FIRST_TIME and max(times, default=0) <= LAST_TIME:
            are_finite = all(isfinite(value or 0) for value in cells)
            forms += [self._delta] * has_different_keys
            forms += [self._sqlite] * (has_different_keys and are_finite)
        form = self.chance.choice(
            [form for form in forms if form.__name__ not in source.off]
        )
        return form(rows, [ending for ending in endings if ending not in source.off])

    def has_different_keys(self, rows):
        """Whether no order of rows has to be told: a database has none."""
        keys = [self.source.key_of(row) for row in rows]
        return len({*keys}) == len(keys)

    def _table(self, rows):
        kinds = self.source.kinds
        columns = {}
        for name, kind in kinds.items():
            values = [row[name] for row in rows]
            columns[name] = pa.array(
                values, pa.int64() if kind == "time" else TYPES[kind]
            )
            columns[name] = columns[name].cast(TYPES[kind])
        return pa.table(columns)

    def _files(self, rows, endings):
        chance = self.chance
        folders = self.source.allowed(FOLDERS)
        base = self.folder / f"{self.number}{chance.choice(folders)}"
        is_one = self.number == 1 and "files of gyre new" in self.source.off
        cut_count = 0 if is_one else chance.choice([0, 0, 1, 3])
        cuts = sorted(chance.choices(range(len(rows) + 1), k=cut_count))
        for number, (start, end) in enumerate(
            zip([0, *cuts], [*cuts, None], strict=True)
        ):
            folder = base / f"{number}{chance.choice(folders)}"
            folder.mkdir(parents=True)
            ending = chance.choice(endings)
            file = folder / f"{chance.choice(folders)}{ending}"
            write = self._parquet if ending == ".parquet" else self._csv
            write(rows[start:end], file)
        (base / "README.txt").write_text("no rows")
        return str(base if cuts or chance.random() < 0.5 else file)

    def _parquet(self, rows, file):
        table = self._table(rows)
        names = table.column_names
        if "types" not in self.source.off:
            columns = [
                self._retyped(table[name], self.source.kinds[name]) for name in names
            ]
            table = pa.table(columns, names)
        table = table.select(self.chance.sample(names, len(names)))
        pq.write_table(table, file, row_group_size=self.chance.choice([1, 3, 1000]))

    def _retyped(self, column, kind):
        """Return a column in another type that holds its values, where there is one."""
        others = self.chance.sample(OTHER_TYPES[kind], len(OTHER_TYPES[kind]))
        for other in others[: self.chance.randint(0, len(others))]:
            try:
                retyped = column.cast(other)
                if retyped.cast(column.type).equals(column):
                    return retyped
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                continue
        return column

    def _csv(self, rows, file):
        pieces = [row[self.source.pieces] for row in rows]
        if {"ten", "1.5"} & {*pieces} and all(isinstance(text, str) for text in pieces):
            self.misfits += rows
        names = self.chance.sample([*self.source.kinds], len(self.source.kinds))
        is_packed = file.suffix == ".gz"
        opened = gzip.open if is_packed else open
        with opened(file, "wt", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator=self.chance.choice(["\n", "\r\n"]))
            writer.writerow(names)
            for row in rows:
                writer.writerow([self._cell(row[name], name) for name in names])

    def _cell(self, value, name):
        kind = self.source.kinds[name]
        if kind == "bool" and value is not None:
            return str(value).lower()
        if kind != "time" or value is None:
            return value
        if not FIRST_TIME < value < LAST_TIME - DAY:
            return f"{np.datetime64(value, 'us')}Z"
        if value % DAY == 0 and self.source.draws("days", 0.5):
            return moment(value).date().isoformat()
        hours = self.chance.choice([0, 0, 5.5, -3, 14])
        return moment(value).astimezone(timezone(timedelta(hours=hours))).isoformat()

    def _delta(self, rows, _):
        """Write a table with a past: rows that were deleted, older versions, a checkpoint."""
        chance = self.chance
        folder = self.folder / "delta"
        ghosts = [
            row | {self.source.pieces: -777} for row in rows[: chance.randint(0, 3)]
        ]
        partition = chance.choice([None, [self.source.flag]])
        write_deltalake(
            folder,
            self._table([*rows, *ghosts]),
            mode="overwrite",
            schema_mode="overwrite",
            partition_by=partition if not folder.exists() else None,
        )
        table = DeltaTable(folder)
        if ghosts:
            table.delete(f"{quoted(self.source.pieces)} = -777")
        if chance.random() < 0.4:
            table.create_checkpoint()
        return str(folder)

    def _duckdb(self, rows, _):
        file = self.folder / f"{self.number}.duckdb"
        with duckdb.connect(file) as connection:
            connection.register("drawn", self._table(rows))
            connection.execute('CREATE TABLE "Order Lines" AS SELECT * FROM drawn')
        return f"duckdb://{file}#Order Lines"

    def _sqlite(self, rows, _):
        file = self.folder / f"{self.number}.db"
        columns = ", ".join(
            f"{quoted(name)} {SQL_TYPES[kind]}"
            for name, kind in self.source.kinds.items()
        )
        marks = ", ".join("?" * len(self.source.kinds))
        records = []
        for row in rows:
            time = row[self.source.time]
            text = None if time is None else moment(time).isoformat()
            record = row | {self.source.time: text}
            records.append([record[name] for name in self.source.kinds])
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f'CREATE TABLE "Order Lines" ({columns})')
            connection.executemany(
                f'INSERT INTO "Order Lines" VALUES ({marks})', records
            )
        return f"sqlite://{file}#Order Lines"


class Expected:
    """What must come of a source's rows.

    Attributes:
        table: Row and arrival, by key.
        refused: Rows that are set aside, by tag.
        left: Tags of rows that were set aside before another row of their key came.

    """

    def __init__(self, source):
        self.source = source
        self.table = {}
        self.sayings = {}
        self.refused_at = {}
        self.refused = {}
        self.left = set()

    def ingest(self, as_of, *, full):
        source = self.source
        # Those dated later wait, good or bad.
        rows = [row for row in source.rows if (row[source.time] or as_of) <= as_of]
        is_first = not self.table
        if not full and not is_first:
            newest = max(row[source.time] for row, _ in self.table.values())
            since = min(newest // 1000 * 1000, as_of) - 7 * DAY
            rows = [row for row in rows if (row[source.time] or as_of) > since]
        last_rows = {}
        for row in rows:
            key = source.key_of(row)
            self._leave(last_rows.get(key))
            last_rows[row[source.tag] if None in key else key] = row
        for key, row in last_rows.items():
            sayings = self._sayings(key)
            if self._is_corrected(row, sayings) or not self._is_good(row, as_of):
                continue
            before = sayings.counts
            sayings.deliver(as_of, row)
            if sayings.counts != before:
                self.table[key] = (row, row[source.time] if is_first else as_of)

    def receive(self, rows, arrival):
        """Take events; return the entities whose rows they change."""
        source = self.source
        changed = set()
        for row in rows:
            key = source.key_of(row)
            stored, _ = self.table.get(key, (None, 0))
            if self._is_good(row, arrival):
                self._sayings(key).event(arrival, row)
                if row != stored:
                    if stored:
                        changed.add(stored[source.entity])
                    self.table[key] = (row, arrival)
                    changed.add(row[source.entity])
        return changed

    def _sayings(self, key):
        return self.sayings.setdefault(key, Sayings(DAY))

    def _is_corrected(self, row, sayings):
        """Whether a row was set aside, and an event has said something of its key since."""
        refused_at = self.refused_at.get(row[self.source.tag])
        if refused_at is None or self.refused.get(row[self.source.tag]) != row:
            return False
        is_event = sayings.facts and sayings.finger < len(sayings.facts) - 1
        return bool(is_event) and sayings.facts[-1][0] > refused_at

    def _is_good(self, row, at):
        tag = row[self.source.tag]
        before = self.refused.pop(tag, None)
        is_good = self.source.is_good(row)
        if not is_good:
            self.refused[tag] = row
            if before != row:
                self.refused_at[tag] = at
        return is_good

    def _leave(self, row):
        if row and self.refused.pop(row[self.source.tag], None):
            self.left.add(row[self.source.tag])

    def features(self, entity, at):
        """Return every feature of an entity at a moment; None where it has no row yet."""
        source = self.source
        rows = [
            (row[source.time], arrival, row)
            for row, arrival in self.table.values()
            if row[source.entity] == entity and row[source.time] <= at
        ]
        if not rows:
            return None
        newest = max(time for time, *_ in rows)
        features = {"days_since_last_event": (at - newest) // DAY}
        for name, (column, function, period) in source.windows.items():
            values = [
                (time, arrival, 1 if column is None else row[column])
                for time, arrival, row in rows
                if period is None or time > at - period
            ]
            features[name] = window_value(function, values)
        return features


def window_value(function, values):
    """Return a function of (time, arrival, value)."""
    values = [value for value in values if value[2] is not None]
    plain = [value for *_, value in values]
    if function == "count":
        return len(plain)
    if function == "sum":
        return sum(map(_added, plain))
    if not plain:
        return None
    if function == "mean":
        return sum(map(_added, plain)) / len(plain)
    if function in {"first", "last"}:
        return (min if function == "first" else max)(values)[2]
    candidates = multimode(plain) if function == "mode" else plain
    return (max if function == "max" else min)(candidates)


def _added(value):
    """Return what a value adds to a sum: of a float, six places."""
    if isinstance(value, float):
        return Decimal(value).quantize(Decimal("0.000001"), ROUND_HALF_UP)
    return Decimal(value)


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def micros(time):
    return (time - EPOCH) // timedelta(microseconds=1)


def moment(value):
    return EPOCH + timedelta(microseconds=value)


FIRST_TIME = micros(datetime(2, 1, 1, tzinfo=UTC))
LAST_TIME = micros(datetime(9999, 1, 1, tzinfo=UTC)) - 1
