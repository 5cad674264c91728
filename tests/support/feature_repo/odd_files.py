"""Drawn parquet files of a team's view, and in plain Python what must come of their rows."""

import re
from datetime import timedelta
from random import Random
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytz
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

from tests.support.feature_engine.odd.source import DAY, FOLDERS, NAMES, TEXTS, moment
from tests.support.feature_repo.odd_columns import (
    FAR,
    NEAR,
    NO_TIMES,
    TYPES,
    as_time,
    plain_values,
    time_in,
    types_of,
    values_of,
    whole_numbers,
    whole_seconds,
)
from tests.support.feature_repo.parquet_files import pull

FRAME_TIME = "event_timestamp"
PLAIN_NAMES = ("key", "at", "created_at", "value", "other", "more")
HELPER_NAMES = ("key_right", "at_right", "x_y", "rn", "entity_row_id", "__at", "value")
"""Names that Feast, Ibis or we might give a column of a join."""
VIEWS = ("view", "Order view", "größe", "a%b", "it's", 'say "x"', "x;--", "select")
FILES = (
    "a", "A", "n[1]", "n?", "n 1", "n%201", "nü", "n{1,a}", "n#1", "n'\"1", "n\\1", "n=1",
    "select", "--", ".a", "_b", "🙂", "~", "${HOME}", "x*",
)  # fmt: skip
ENDINGS = (".parquet", ".parq", ".pq")
NO_ROWS = {"_SUCCESS": b"", ".a.parquet.crc": b"crc", "notes.txt": b"-"}
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
FOLDER_VALUES = (
    "1", "-7", "0", "007", "2147483647", "2147483648", "1.5", "2026-01-01", "a b", "it's", "ü", "%",
    "a=[b]", "*", "true", NO_VALUE,
)  # fmt: skip
INT_KEYS = (0, 1, -1, 127, 2**31, 2**53 + 1, 2**63 - 1, -(2**63))
OTHER_KIND = {"int": "text", "text": "int"}
UNKNOWN_KEYS = {"int": 77, "text": "nobody"}
KEY_TYPES = {
    "int": (Int64, ValueType.INT64),
    "text": (String, ValueType.STRING),
}
TTLS = (timedelta(0), timedelta(0), timedelta(days=1), timedelta(days=400))
MICROSECOND = timedelta(microseconds=1)


class DrawnFile(NamedTuple):
    """A file.

    Attributes:
        rows: Its rows, without what its folders name.
        types: Type of each of its columns.
        folder_texts: What its folders name, by name.

    """

    rows: list
    types: dict
    folder_texts: dict


class OddFiles:
    """Parquet files with columns for a key, times and features, and a view of them.

    Args:
        seed: Draws everything.
        folder: An empty folder, for the files.

    Attributes:
        objects: Feast's objects: the entity and the view.
        view: Feast's view.
        features: Names of the columns with features.
        names: Names of all columns that the view reads.
        types: Types of each column in the files.
        rows: All rows: values by the names of their columns.
        frame: Entity frame.

    """

    def __init__(self, seed, folder):
        self.chance = Random(seed)
        chance = self.chance
        self.is_far = chance.random() < 0.12
        self.key_kind = chance.choice([*KEY_TYPES])
        self.key, self.time, self.created, *others = self._names()
        self.features = others[:2]
        self.names = [self.key, self.time, *self.features]
        self.names += [self.created] if self.created else []
        self.kinds = {name: chance.choice([*TYPES]) for name in others}
        self.kinds |= {self.time: "time", self.key: self.key_kind}
        if self.created:
            self.kinds[self.created] = "time"
        self.key_values = self._key_values()
        self.times = chance.sample([*NEAR, *(FAR if self.is_far else ())], 4)
        self.ttl = chance.choice(TTLS)
        self.folder = folder / chance.choice(["x", *FOLDERS])
        self.files = []
        self.path = self._write()
        self.types = self._types_of_files()
        self.rows = self._rows()
        other_keys = {*TYPES[OTHER_KIND[self.key_kind]]}
        self.is_of_other_key = bool(self.types.get(self.key, set()) & other_keys)
        self.view, *entities = self._define()
        self.objects = [*entities, self.view]
        self.has_full_names = chance.random() < 0.3
        self.frame = self._frame()

    def _names(self):
        chance = self.chance
        names = chance.sample([*NAMES, *HELPER_NAMES], len(PLAIN_NAMES))
        if chance.random() < 0.3:
            names = [*PLAIN_NAMES]
        if names[0] == FRAME_TIME:
            names[0] = "key"
        # Names that differ in case alone: of two features, or beside a feature or the key.
        for place, model in ((4, 3), (5, 3), (5, 0)):
            name = names[model].swapcase()
            if chance.random() < 0.04 and name not in names:
                names[place] = name
        if chance.random() < 0.5:
            names[2] = ""
        return names

    def _key_values(self):
        if self.key_kind == "int":
            return [7, *self.chance.sample(INT_KEYS, 2)]
        return ["A_1:B", *self.chance.sample(TEXTS, 2)]

    def _write(self):
        """Write all files; return the path of the source."""
        chance = self.chance
        layout = chance.choice(["file", "folder", "pattern", "folders", "folders"])
        count = 1 if layout == "file" else chance.choice([1, 2, 3, 3])
        types = {name: self._drawn_types(name, count) for name in self.kinds}
        folder_names = []
        if layout == "folders":
            pool = [*self.features, self.key, "y"]
            folder_names = chance.sample(pool, chance.randint(1, 2))
        ending = chance.choice(ENDINGS)
        for number, name in enumerate(chance.sample(FILES, count)):
            types_here = {column: types[column][number] for column in types}
            texts = {column: self._folder_text(column) for column in folder_names}
            for column in folder_names:
                if chance.random() < 0.9:
                    types_here.pop(column, None)
            place = self.folder
            for column, text in texts.items():
                place /= f"{quote(column, safe=' ')}={quote(text, safe=' ')}"
            is_plain = layout == "file" and chance.random() < 0.5
            path = place / (name if is_plain else name + ending)
            self._write_file(path, types_here, texts)
        if layout == "file":
            return path
        if layout == "pattern":
            return self.folder / chance.choice([f"*{ending}", "*"])
        for name in chance.sample([*NO_ROWS], chance.randint(0, 2)):
            (self.folder / name).write_bytes(NO_ROWS[name])
        return self.folder

    def _folder_text(self, name):
        if name != self.key:
            return self.chance.choice(FOLDER_VALUES)
        text = str(self.chance.choice(self.key_values))[:50]
        return text or "A_1:B"

    def _drawn_types(self, name, count):
        """Draw the type of a column in each file."""
        chance = self.chance
        kind = self.kinds[name]
        types = types_of(kind, is_far=self.is_far)
        if name in {self.time, self.created} and chance.random() < 0.5:
            return [types[0]] * count
        draw = chance.random()
        if draw < 0.6:
            return [chance.choice([types[0], chance.choice(types)])] * count
        if draw < 0.93:
            return chance.choices(types, k=count)
        if name == self.key:
            return chance.choices(TYPES[OTHER_KIND[kind]], k=count)
        if name in {self.time, self.created}:
            return [chance.choice(NO_TIMES)] * count
        others = types_of(chance.choice([*TYPES]), is_far=self.is_far)
        return chance.choices([*types, *others, pa.null()], k=count)

    def _write_file(self, path, types, folder_texts):
        chance = self.chance
        if chance.random() < 0.03:
            types.pop(chance.choice([*types]))
        count = chance.choice([0, 1, 2, 4, 6, 6])
        columns = {name: self._column(name, types[name], count) for name in types}
        names = chance.sample([*columns], len(columns))
        table = pa.table({name: columns[name] for name in names})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, **self._options())
        values = [plain_values(columns[name]) for name in names]
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        self.files.append(DrawnFile(rows, types, folder_texts))

    def _options(self):
        """Draw how a file is written."""
        choice = self.chance.choice
        # Nanoseconds, of another type of parquet.
        is_of_spark = not self.is_far and self.chance.random() < 0.1
        return {
            "compression": choice(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
            "row_group_size": choice([1, 2, 100]),
            "data_page_version": choice(["1.0", "2.0"]),
            "use_dictionary": choice([True, False]),
            "write_statistics": choice([True, False]),
            "version": choice(["1.0", "2.4", "2.6"]),
            "store_schema": choice([True, True, False]),
            "use_deprecated_int96_timestamps": is_of_spark,
        }

    def _column(self, name, kind, count):
        if name == self.key and pa.types.is_integer(kind):
            keys = [key if isinstance(key, int) else 7 for key in self.key_values]
            pool = [7, *whole_numbers(kind, keys)]
        elif name == self.key:
            pool = [str(key) for key in self.key_values]
        elif name in {self.time, self.created}:
            pool = [time_in(kind, time) for time in self.times]
        else:
            pool = values_of(kind, is_far=self.is_far)
        values = self.chance.choices(pool, k=count)
        if self.chance.random() < 0.3:
            for place in self.chance.sample(range(count), count // 3):
                values[place] = None
        return pa.array(values, kind)

    def _types_of_files(self):
        types = {}
        for file in self.files:
            for name, kind in file.types.items():
                types.setdefault(name, set()).add(kind)
        return types

    def _rows(self):
        """Return all rows, with what folders name: whole numbers if all are, as PyArrow says."""
        texts_of_files = [file.folder_texts for file in self.files]
        for name in texts_of_files[0]:
            texts = {texts[name] for texts in texts_of_files} - {NO_VALUE}
            are_numbers = all(map(_is_int32, texts))
            kind = pa.int32() if are_numbers else pa.string()
            self.types.setdefault(name, {kind})
            values = {text: int(text) if are_numbers else text for text in texts}
            for file in self.files:
                for row in file.rows:
                    row.setdefault(name, values.get(file.folder_texts[name]))
        return [row for file in self.files for row in file.rows]

    def _define(self):
        dtype, value_type = KEY_TYPES[self.key_kind]
        entity = Entity(name="entity", join_keys=[self.key], value_type=value_type)
        has_mapping = self.chance.random() < 0.15
        self.mapping = {self.features[0]: "renamed"} if has_mapping else {}
        source = FileSource(
            name="source",
            path=str(self.path),
            timestamp_field=self.time,
            created_timestamp_column=self.created,
            field_mapping=self.mapping,
        )
        names = [self.mapping.get(name, name) for name in self.features]
        schema = [Field(name=name, dtype=Float64) for name in names]
        schema.append(Field(name=self.key, dtype=dtype))
        view = FeatureView(
            name=self.chance.choice(VIEWS),
            entities=[entity],
            schema=schema,
            source=source,
            ttl=self.ttl,
        )
        return view, entity

    def _frame(self):
        chance = self.chance
        shifts = (-1, 0, 1, self.ttl // MICROSECOND, self.ttl // MICROSECOND + 1)
        times = sorted({time + shift for time in self.times for shift in shifts})
        times = [time for time in times if time <= FAR[-1] + DAY]
        keys = [*dict.fromkeys(self.key_values), UNKNOWN_KEYS[self.key_kind]]
        places = [(key, time) for key in keys for time in times]
        # The rows of a small frame are joined to those of its keys alone.
        places = chance.sample(places, min(len(places), chance.choice([1, 20, 20])))
        keys, times = zip(*places, strict=True)
        moments = pd.Series(np.array(times, "datetime64[us]")).dt.tz_localize(pytz.UTC)
        if not self.is_far and chance.random() < 0.5:
            moments = moments.dt.as_unit("ns")
        return pd.DataFrame({self.key: keys, FRAME_TIME: moments})

    def historical(self, store):
        """Return the features of the rows of the frame, by key and time."""
        names = [self.mapping.get(name, name) for name in self.features]
        job = store.get_historical_features(
            self.frame.copy(),
            [f"{self.view.name}:{name}" for name in names],
            full_feature_names=self.has_full_names,
        )
        if self.has_full_names:
            names = [f"{self.view.name}__{name}" for name in names]
        rows = self._by_place(job.to_arrow(), names, self.key, FRAME_TIME)
        return {place: self._stored(row) for place, row in rows.items()}

    def right_historical(self):
        """Return the features that may count, for each row of the frame, by key and time.

        None may where the key is of another kind than in the frame.
        """
        right = {}
        for key, time in self.frame.itertuples(index=False):
            place = (key, time.to_pydatetime())
            if self.is_of_other_key:
                right[place] = []
                continue
            rows = [
                row
                for row in self._newest(key, None, place[1])
                if not self.ttl or place[1] - as_time(row[self.time]) <= self.ttl
            ]
            right[place] = [self._stored(row) for row in rows] or [{}]
        return right

    def latest(self, store):
        """Return the newest features of each key."""
        table = pull(store, self.view.name, "latest", *self._period())
        return self._by_place(table, self.features, self.key)

    def right_latest(self):
        """Return the features that may count, for each key."""
        keys = {row.get(self.key) for row in self.rows} - {None}
        right = {(key,): self._newest(key, *self._period()) for key in keys}
        return {place: rows for place, rows in right.items() if rows}

    def _period(self):
        return moment(min(self.times) - DAY), moment(max(self.times))

    def _newest(self, key, begin, end):
        """Return the rows of a key of the newest time, of those the ones created last."""
        rows = [row for row in self.rows if row.get(self.key) == key]
        ordered = []
        for row in rows:
            time = as_time(row.get(self.time))
            if time is None or time > end or (begin and time < begin):
                continue
            created = as_time(row.get(self.created)) or moment(FAR[0] - DAY)
            ordered.append(((time, created), row))
        last = max((order for order, _ in ordered), default=None)
        return [row for order, row in ordered if order == last]

    def _stored(self, row):
        return {name: whole_seconds(row.get(name)) for name in self.features}

    def _by_place(self, table, names, *place_names):
        """Return the values of features, by key (and time); a null is no key."""
        places = zip(*(plain_values(table[name]) for name in place_names), strict=True)
        columns = [plain_values(table[name]) for name in names]
        rows = {}
        for place, values in zip(places, zip(*columns, strict=True), strict=True):
            if None not in place:
                rows[place] = dict(zip(self.features, values, strict=True))
        return rows


def _is_int32(text):
    return bool(re.fullmatch(r"-?\d+", text)) and -(2**31) <= int(text) < 2**31
