"""Windows: features declared as counts, sums and extremes over time, compiled to an expression.

A view has a row wherever a value changes: when a raw row arrives, and when it leaves each window.
The value at any time is then that of the newest row at or before it, offline and online alike, and
falls to 0 by itself. A feature that is no window takes an expression of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

import ibis
import ibis.expr.types as ir
from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from ibis.common.deferred import Deferred
from ibis.common.exceptions import IbisError
from ibis.expr.operations import DatabaseTable

from core.settings import load_settings
from core.timestamps import microseconds
from feature_repo.definition import (
    OWN_PREFIX,
    VIEW_COLUMNS,
    Dataset,
    name_problems,
    raw_schema,
)
from feature_repo.published.config import view_address

Function = Literal["count", "sum", "mean", "min", "max", "first", "last", "mode"]
DECIMAL = "decimal(18, 6)"
"""Type of sums of floats. A sum of floats depends on the order of addition; this one does not."""
MICROSECOND = timedelta(microseconds=1)
AT = f"{OWN_PREFIX}at"
AGE = f"{OWN_PREFIX}age"
IS_LAST = f"{OWN_PREFIX}is_last"
"""Columns of change points: time, age of the raw row, whether it is the last of its instant."""
EPOCH = ibis.timestamp("1970-01-01T00:00:00")
FEAST_TYPES = {
    "boolean": Bool,
    "float32": Float32,
    "float64": Float64,
    "int32": Int32,
    "int64": Int64,
    "string": String,
    "timestamp('UTC', 6)": UnixTimestamp,
}
"""Feast's type of each Ibis type that a feature may have."""


@dataclass(frozen=True, eq=False)
class Window:
    """One feature: a function of a column over an entity's rows in (t - period, t].

    A sum of whole numbers is int64; every other sum is float64 and is added as decimals of six
    places. A time is int64 microseconds since 1970 UTC. Over no rows, count and sum are 0 and
    every other function is null. Among rows at the same time, the last row is the one that arrived
    last, then the one with the greatest value. The mode is the most frequent value; among several
    such values, the smallest. Its cost grows with the number of distinct values in a window.

    Args:
        column: A raw column, or an expression of columns, such as `_.price * _.pieces`; None counts
            rows. Rows with a null there do not count.
        function: Function of the column.
        period: Length of the window; None for all rows up to t.
        where: Condition of the rows that count, such as `_.cancelled`.
        name: Name of the feature; by default it is made of the other arguments: `price_sum_30d`.

    Raises:
        ValueError: The function is unknown or needs a column, or the period is not above 0.

    """

    column: str | Deferred | None
    function: Function
    period: timedelta | None = None
    where: Deferred | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            column = "rows" if self.column is None else self.column
            object.__setattr__(self, "name", f"{column}_{self.function}_{self._length}")
        functions = get_args(Function)
        if self.function not in functions:
            raise ValueError(
                f"window {self.name}: expected one of {', '.join(functions)}, "
                f"found {self.function!r}"
            )
        if self.column is None and self.function != "count":
            raise ValueError(f"window {self.name}: {self.function} needs a column")
        if self.period is not None and self.period <= timedelta(0):
            raise ValueError(
                f"window {self.name}: expected a period above 0, found {self.period}"
            )

    @property
    def _length(self) -> str:
        if self.period is None:
            return "ever"
        if self.period % timedelta(days=1):
            return f"{self.period.total_seconds():g}s"
        return f"{self.period.days}d"

    def __str__(self) -> str:
        column = "*" if self.column is None else self.column
        condition = "" if self.where is None else f" where {self.where}"
        return f"{self.function}({column}) over {self._length}{condition}"

    def feature(self, points: ir.Table, entity: str, moment: int | None = None) -> Any:
        """Return the feature at each change point, or at one moment as an aggregate of all points.

        Args:
            points: Change points, with the columns of the raw rows.
            entity: Column that identifies the entity of a row.
            moment: Time in microseconds; AGE of later points is null.

        Raises:
            ValueError: The raw rows lack the column, or its values cannot be added.

        """
        value = self._row_value(points)

        def at(total: Any, preceding: int | None = None) -> Any:
            if moment is not None:
                return total
            frame = ibis.range_window(
                group_by=entity,
                order_by=AT,
                preceding=preceding,
                following=0,
            )
            return total.over(frame)

        if self.function in {"min", "max", "first", "last", "mode"}:
            return self._chosen_value(points, value, moment, at)
        count = at(self._running_total(points, value.notnull().cast("int64")))
        if self.function == "count":
            return count
        exact_value = value.cast(DECIMAL) if value.type().is_floating() else value
        total = at(self._running_total(points, exact_value))
        if self.function == "mean":
            return total.cast("float64") / count.nullif(0)
        return total.cast("int64" if value.type().is_integer() else "float64")

    def _row_value(self, rows: ir.Table) -> Any:
        """Return the value that each raw row adds to the window; null if the row does not count."""
        try:
            if self.column is None:
                value: Any = ibis.literal(1)
            elif isinstance(self.column, str):
                value = rows[self.column]
            else:
                value = self.column.resolve(rows)
            value = _number(value)
            if self.where is not None:
                value = self.where.resolve(rows).ifelse(value, None)
        except (AttributeError, TypeError, IbisError) as exc:
            raise ValueError(f"window {self.name}: {self}: {exc}") from exc
        if self.function in {"sum", "mean"} and not value.type().is_numeric():
            raise ValueError(
                f"window {self.name}: {self}: expected a column of numbers, found {value.type()}"
            )
        if self.function == "mode" and value.type().is_floating():
            raise ValueError(
                f"window {self.name}: {self}: expected whole numbers, texts, booleans or times, "
                f"found {value.type()}: round or cast it"
            )
        return value

    def _chosen_value(
        self, points: ir.Table, value: Any, moment: int | None, at: Callable[..., Any]
    ) -> Any:
        """Return the smallest, greatest, first, last or most frequent value in the window."""
        preceding = None
        is_arrival = points[AGE] == 0
        if self.period is not None:
            preceding = self.period // MICROSECOND - 1
            if moment is not None:
                is_arrival &= points[AT] >= moment - preceding
        is_dated = self.function in {"first", "last"}
        if is_dated:
            is_arrival &= value.notnull()
            value = ibis.struct(
                {
                    "at": points[AT],
                    "created": points["ingested_at"],
                    "value": value,
                }
            )
        values = is_arrival.ifelse(value, None)
        if self.function == "mode":
            return _most_frequent(values, lambda total: at(total, preceding))
        extreme = values.min() if self.function in {"min", "first"} else values.max()
        extreme = at(extreme, preceding)
        return extreme["value"] if is_dated else extreme

    def _running_total(self, points: ir.Table, value: Any) -> Any:
        """Add rows that arrive and subtract rows that leave.

        A sum over a sliding frame would cost the square of an entity's rows.
        """
        zero = ibis.literal(0).cast(value.type())
        value = value.fill_null(zero)
        cases = [(points[AGE] == 0, value)]
        if self.period is not None:
            is_departure = points[AGE] == self.period // MICROSECOND
            cases.append((is_departure, -value))
        return ibis.cases(*cases, else_=zero).sum()


@dataclass(frozen=True, eq=False)
class Windows:
    """The expression of a view whose features are windows over the rows of one entity.

    Args:
        entity: Raw column that identifies the entity of a row.
        time: Raw column with the time of the event.
        windows: The features.
        derived: Features made of other features of the same row, such as
            `_.spend_30d / _.orders_30d`. A derived feature with the name of a window replaces it.
        delay: Longest time until a row is known. Features are older by the delay, in training and
            online alike: a row that arrives in time is missing in neither.

    """

    entity: str
    time: str
    windows: Sequence[Window]
    derived: Mapping[str, Any] = field(default_factory=dict)
    delay: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        if self.delay < timedelta(0):
            raise ValueError(
                f"windows of {self.entity}: expected a delay of 0 or more, found {self.delay}"
            )

    def __call__(self, rows: ir.Table) -> ir.Table:
        """Return the view's rows, one per entity and change point, future ones included.

        Args:
            rows: Raw rows, with `ingested_at`.

        Raises:
            ValueError: A window names a column that is missing or has the wrong type.

        """
        points = self._points(rows)
        instant = points[AT]
        history = ibis.range_window(group_by=self.entity, order_by=AT, following=0)
        created = points["ingested_at"].max()
        # Rows of one instant see the same window, so any of them is the value at that instant.
        is_last = instant != instant.lead().over(history)
        columns = {
            self.entity: points[self.entity],
            "event_timestamp": self._known_from(instant),
            "created": created.over(history),
            **self._features(points),
            IS_LAST: is_last.fill_null(True),  # noqa: FBT003
        }
        view = points.select(columns)
        view = view.filter(view[IS_LAST]).drop(IS_LAST)
        return view.mutate(dict(self.derived))

    def around(self, rows: ir.Table, until: datetime) -> ir.Table:
        """Return the newest of the view's rows at or before `until` (aware UTC) for each entity.

        A second row of the entity has the same features and the time of the view's next row. All
        rows of an entity would take a hundred times longer to compute.
        """
        moment = microseconds(until - self.delay)
        points = self._points(rows)
        periods = [window.period for window in self.windows if window.period]
        if len(periods) == len(self.windows):
            longest = max(periods) // MICROSECOND
            # A row that has left all windows counts only with its time.
            is_gone = points[AT] - points[AGE] <= moment - longest
            points = points.filter(~is_gone | (points[AGE] == longest))
            points = points.mutate({AGE: is_gone.ifelse(None, points[AGE])})
        is_due = points[AT] <= moment
        last = is_due.ifelse(points[AT], None).max()
        following = is_due.ifelse(None, points[AT]).min()
        created = is_due.ifelse(points["ingested_at"], None).max()
        due_points = points.mutate({AGE: is_due.ifelse(points[AGE], None)})
        features = self._features(due_points, moment)
        columns = {"created": created, AT: ibis.array([last, following]), **features}
        view = due_points.group_by(self.entity).agg(columns)
        view = view.mutate(event_timestamp=self._known_from(view[AT].unnest()))
        view = view.filter(view.event_timestamp.notnull()).drop(AT)
        return view.mutate(dict(self.derived))

    def _features(self, points: ir.Table, moment: int | None = None) -> dict[str, Any]:
        """Return the feature of each window: see `Window.feature`."""
        return {
            window.name: window.feature(points, self.entity, moment)
            for window in self.windows
        }

    def _known_from(self, instants: Any) -> Any:
        """Return the times from which on the values of instants are known."""
        if self.delay:
            instants = instants + self.delay // MICROSECOND
        return _time(instants)

    def _points(self, rows: ir.Table) -> ir.Table:
        """Return each raw row as it arrives (age 0) and once more as it leaves each window."""
        periods = {
            window.period // MICROSECOND for window in self.windows if window.period
        }
        ages = ibis.array([0, *sorted(periods)])
        age = ages.cast("array<int64>").unnest()
        points = rows.mutate({AGE: age, AT: _number(rows[self.time])})
        return points.mutate({AT: points[AT] + points[AGE]})


def feature_view(
    dataset: Dataset,
    name: str,
    entities: Sequence[Entity],
    tags: Mapping[str, str] | None = None,
    **options: Any,
) -> FeatureView:
    """Return the Feast view of the rows that `dataset.views[name]` computes.

    Its schema is that of the expression, and a tag for each window describes the window.

    Args:
        dataset: Dataset that has the expression.
        name: Name of the view.
        entities: Feast's entities of the view.
        tags: Further tags.
        **options: Further arguments of `feast.FeatureView`. Without a ttl a row counts until the
            next row, as values of windows expire by themselves.

    Raises:
        ValueError: The dataset has no such view, Feast lacks the type of a feature, or a feature
            cannot have its name.

    """
    if name not in dataset.views:
        raise ValueError(
            f"view of dataset {dataset.name}: expected one of {', '.join(dataset.views)}, "
            f"found {name!r}"
        )
    expression = dataset.views[name]
    keys = {entity.join_key for entity in entities}
    view_tags = dict(tags or {})
    if isinstance(expression, Windows):
        view_tags |= {window.name: str(window) for window in expression.windows}
    return FeatureView(
        name=name,
        entities=list(entities),
        schema=_feature_fields(dataset, name, keys),
        source=FileSource(
            name=name,
            path=view_address(load_settings(), name),
            file_format=DeltaFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        ),
        tags=view_tags,
        **options,
    )


def _feature_fields(dataset: Dataset, view: str, keys: set[str]) -> list[Field]:
    """Return Feast's fields of the features of a view; see `feature_view`."""
    raw_rows = ibis.table(raw_schema(dataset), name="raw")
    columns = dataset.views[view](raw_rows).schema()
    names = [name for name in columns if name not in {*keys, *VIEW_COLUMNS[:2]}]
    problems = name_problems(names, {*keys, *VIEW_COLUMNS})
    if problems:
        raise ValueError(f"view {view}: {'; '.join(problems)}")
    fields = []
    for name in names:
        column_type = columns[name]
        feast_type = FEAST_TYPES.get(str(column_type))
        if feast_type is None:
            raise ValueError(
                f"feature {name}: expected one of {', '.join(FEAST_TYPES)}, "
                f"found {column_type}: cast it"
            )
        fields.append(Field(name=name, dtype=feast_type))
    return fields


def _time(instant: Any) -> Any:
    """Return microseconds since 1970 UTC as a time."""
    return (EPOCH + instant.as_interval("us")).cast("timestamp('UTC')")


def _most_frequent(values: Any, at: Callable[[Any], Any]) -> Any:
    """Return the most frequent value in the window; of several such values, the smallest.

    Ibis's `mode` takes any of them, so functions of each engine are called.
    """
    value_type = values.type()
    counts_type = f"map<{value_type}, uint64>"
    entries_type = f"array<struct<key: {value_type}, value: uint64>>"

    @ibis.udf.agg.builtin(signature=((value_type, "bool"), value_type))  # type: ignore[untyped-decorator]
    def mode(_values: Any, _is_smallest: Any) -> None: ...

    @ibis.udf.agg.builtin(signature=((value_type,), counts_type))  # type: ignore[untyped-decorator]
    def histogram(_values: Any) -> None: ...

    @ibis.udf.scalar.builtin(signature=((counts_type,), entries_type))  # type: ignore[untyped-decorator]
    def map_entries(_counts: Any) -> None: ...

    tables = values.op().find(DatabaseTable)
    if any(table.source.name == "pyspark" for table in tables):
        return at(mode(values, ibis.literal(value=True)))
    entries = map_entries(at(histogram(values)))
    candidates = entries.map(
        lambda entry: ibis.struct(
            {"rows": -entry["value"].cast("int64"), "value": entry["key"]}
        )
    )
    return candidates.mins()["value"]


def _number(value: Any) -> Any:
    """Return a time as microseconds since 1970 UTC, and a boolean or whole number as int64.

    Feast converts whole numbers 70 times faster than times.
    """
    value_type = value.type()
    if value_type.is_timestamp():
        return value.cast("timestamp").delta(EPOCH, unit="microsecond")
    if value_type.is_integer() or value_type.is_boolean():
        return value.cast("int64")
    return value
