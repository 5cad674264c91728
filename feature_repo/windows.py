"""Windows: features declared as counts, sums and extremes over time, compiled to an expression.

A row is written wherever a value changes: when a raw row arrives, and when it leaves each window.
A value at any time is then the newest row at or before it, offline and online alike, and falls to
0 by itself. What a window cannot say is an expression of one's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args

import ibis
import ibis.expr.types as ir
import pyarrow as pa
from feast import Entity, FeatureView, Field, FileSource
from feast.data_format import DeltaFormat
from feast.types import (
    Bool,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
    from_feast_to_pyarrow_type,
)
from ibis import _
from ibis.common.deferred import Deferred
from ibis.common.exceptions import IbisError

from core.settings import load_settings
from feature_repo.definition import Dataset
from feature_repo.features import view_address

Function = Literal["count", "sum", "mean", "min", "max", "first", "last"]
DECIMAL = "decimal(18, 6)"
"""Sums of floats depend on the order of addition, and so on rows that come later: these do not."""
MICROSECOND = timedelta(microseconds=1)
EPOCH = ibis.timestamp("1970-01-01T00:00:00")
PLAIN = (Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp)
FEAST_TYPES = {str(ibis.dtype(from_feast_to_pyarrow_type(each))): each for each in PLAIN}


@dataclass(frozen=True, eq=False)
class Window:
    """One feature: `function` of `column` over an entity's rows in (t - period, t].

    column: a raw column, or an expression of some, such as `_.price * _.pieces`; None to count
    rows. Rows where it is null do not count.
    period: None for all rows up to t.
    where: which rows count, such as `_.cancelled`.
    name: by default of the other three, such as `price_sum_30d`.

    A sum of whole numbers is int64, any other float64, added as decimals of six places. A time is
    int64 microseconds since 1970 UTC. Of no rows, count and sum are 0, all else is null. Of rows at
    the same time, the last is the one that arrived last, then the one with the greatest value.
    """

    column: str | Deferred | None
    function: Function
    period: timedelta | None = None
    where: Deferred | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            parts = ("rows" if self.column is None else self.column, self.function, self._over)
            object.__setattr__(self, "name", "_".join(map(str, parts)))
        if self.function not in get_args(Function):
            found = f"expected one of {', '.join(get_args(Function))}, found {self.function!r}"
            raise ValueError(f"window {self.name}: {found}")
        if self.column is None and self.function != "count":
            raise ValueError(f"window {self.name}: {self.function} needs a column")
        if self.period is not None and self.period <= timedelta(0):
            raise ValueError(f"window {self.name}: expected a period above 0, found {self.period}")

    @property
    def _over(self) -> str:
        if self.period is None:
            return "ever"
        days, rest = divmod(self.period, timedelta(days=1))
        return f"{self.period.total_seconds():g}s" if rest else f"{days}d"

    def __str__(self) -> str:
        column = "*" if self.column is None else self.column
        where = "" if self.where is None else f" where {self.where}"
        return f"{self.function}({column}) over {self._over}{where}"

    def of_row(self, rows: ir.Table) -> Any:
        """Return what each raw row brings, null where it does not count.

        Raises:
            ValueError: the rows have no such column, or one that cannot be added.

        """
        try:
            column = _[self.column] if isinstance(self.column, str) else self.column
            value: Any = ibis.literal(1) if column is None else column.resolve(rows)
            value = _number(value)
            if self.where is not None:
                value = self.where.resolve(rows).ifelse(value, None)
        except (AttributeError, TypeError, IbisError) as exc:
            raise ValueError(f"window {self.name}: {self}: {exc}") from exc
        if self.function in {"sum", "mean"} and not value.type().is_numeric():
            found = f"expected a column of numbers, found {value.type()}"
            raise ValueError(f"window {self.name}: {self}: {found}")
        return value

    def parts(self, points: ir.Table, column: str, entity: str) -> dict[str, Any]:
        """Return what the feature is made of, over change points; equal parts have equal names.

        column: of `points`, what each raw row brings as it arrives.
        """
        value, over = points[column], f"{column} {self._over}"
        ever = ibis.range_window(group_by=entity, order_by="at", following=0)
        if self.function in {"count", "sum", "mean"}:
            exact = value.cast(DECIMAL) if value.type().is_floating() else value
            brought = {"count": value.notnull().cast("int64"), "sum": exact}
            needed = brought if self.function == "mean" else [self.function]
            return {f"{n} {over}": self._running(points, brought[n]).over(ever) for n in needed}
        frame = ever
        if self.period is not None:
            held = self.period // MICROSECOND - 1
            frame = ibis.range_window(group_by=entity, order_by="at", preceding=held, following=0)
        came = points.age == 0
        if self.function in {"min", "max"}:
            found = getattr(came.ifelse(value, None), self.function)()
        else:
            dated = ibis.struct({"at": points["at"], "created": points.arrival, "value": value})
            counted = (came & value.notnull()).ifelse(dated, None)
            found = counted.max() if self.function == "last" else counted.min()
        return {f"{self.function} {over}": found.over(frame)}

    def feature(self, parts: ir.Table, column: str) -> Any:
        """Return the feature, made of the columns that `parts` named."""
        over = f"{column} {self._over}"
        if self.function in {"first", "last"}:
            return parts[f"{self.function} {over}"]["value"]
        if self.function not in {"sum", "mean"}:
            return parts[f"{self.function} {over}"]
        total = parts[f"sum {over}"]
        total = total.cast("int64" if total.type().is_integer() else "float64")
        if self.function == "sum":
            return total
        return total.cast("float64") / parts[f"count {over}"].nullif(0)

    def _running(self, points: ir.Table, brought: Any) -> Any:
        """Sum what came less what left: a sliding frame costs an entity's rows squared."""
        nothing = ibis.literal(0).cast(brought.type())
        brought = brought.fill_null(nothing)
        cases = [(points.age == 0, brought)]
        if self.period is not None:
            cases.append((points.age == self.period // MICROSECOND, -brought))
        return ibis.cases(*cases, else_=nothing).sum()


@dataclass(frozen=True, eq=False)
class Windows:
    """The expression of a view whose features are windows over the rows of one entity.

    entity, time: raw columns. derived: features made of other features of the same row, such as
    `_.spend_30d / _.orders_30d`.
    """

    entity: str
    time: str
    windows: Sequence[Window]
    derived: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, rows: ir.Table) -> ir.Table:
        """Return the view's rows, one per entity and change point, those that lie ahead included.

        Raises:
            ValueError: a window asks for what the rows do not have.

        """
        points, columns = self._change_points(rows)
        ever = ibis.range_window(group_by=self.entity, order_by="at", following=0)
        parts = points.select(
            self.entity,
            event_timestamp=(EPOCH + points["at"].as_interval("us")).cast("timestamp('UTC')"),
            created=points.arrival.max().over(ever),
            last_of_instant=points["at"] != points["at"].lead().over(ever),
            **{
                n: v
                for w in self.windows
                for n, v in w.parts(points, columns[w], self.entity).items()
            },
        )
        # Rows of one instant see the same window, so any of them is the value at that instant.
        parts = parts.filter(parts.last_of_instant.fill_null(True))  # noqa: FBT003
        found = {window.name: window.feature(parts, columns[window]) for window in self.windows}
        values = parts.select(self.entity, "event_timestamp", "created", **found)
        return values.mutate(**self.derived)

    def _change_points(self, rows: ir.Table) -> tuple[ir.Table, dict[Window, str]]:
        """Of each raw row one as it arrives (age 0) and one as it leaves each window.

        With the name of the column that holds what it brings to a window: one for all windows of
        the same rows and column.
        """
        for name in (self.entity, self.time):
            if name not in rows.columns:
                found = f"expected a column of {', '.join(rows.columns)}, found {name!r}"
                raise ValueError(f"windows: {found}")
        brought = {window: window.of_row(rows) for window in self.windows}
        columns = {window: f"value_{value.get_name()}" for window, value in brought.items()}
        ages = {each.period // MICROSECOND for each in self.windows if each.period}
        arrivals = rows.select(
            self.entity,
            arrival=rows.ingested_at,
            happened=_microseconds(rows[self.time]),
            **{columns[window]: value for window, value in brought.items()},
        )
        age = ibis.array([0, *sorted(ages)]).cast("array<int64>").unnest()
        points = arrivals.mutate(age=age)
        return points.mutate(at=points.happened + points.age), columns


def feature_view(
    dataset: Dataset, name: str, entities: Sequence[Entity], **more: Any
) -> FeatureView:
    """Return the Feast view of the rows that `dataset.views[name]` gives.

    Its schema is that of the expression, its tags say what each window holds. more: as FeatureView
    has it; without a ttl, as the values of windows expire by themselves.
    """
    if name not in dataset.views:
        found = f"expected one of {', '.join(dataset.views)}, found {name!r}"
        raise ValueError(f"view of dataset {dataset.name}: {found}")
    expression = dataset.views[name]
    schema = dataset.schema.append(pa.field("ingested_at", pa.timestamp("us", tz="UTC")))
    rows = expression(ibis.table(ibis.Schema.from_pyarrow(schema), name="raw"))
    others = {"event_timestamp", "created", *(each.join_key for each in entities)}
    types = {key: str(kind) for key, kind in rows.schema().items() if key not in others}
    if wrong := {key: kind for key, kind in types.items() if kind not in FEAST_TYPES}:
        found = f"found {wrong}: cast them"
        raise ValueError(f"view {name}: expected {', '.join(FEAST_TYPES)}, {found}")
    windows = expression.windows if isinstance(expression, Windows) else ()
    return FeatureView(
        name=name,
        entities=[*entities],
        schema=[Field(name=key, dtype=FEAST_TYPES[kind]) for key, kind in types.items()],
        source=FileSource(
            name=name,
            path=view_address(load_settings(), name),
            file_format=DeltaFormat(),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        ),
        tags={each.name: str(each) for each in windows} | more.pop("tags", {}),
        ttl=more.pop("ttl", timedelta(0)),
        **more,
    )


def _number(value: Any) -> Any:
    """Return times as microseconds since 1970 UTC, booleans and whole numbers as int64."""
    if value.type().is_timestamp():
        return _microseconds(value)
    whole = value.type().is_integer() or value.type().is_boolean()
    return value.cast("int64") if whole else value


def _microseconds(time: Any) -> Any:
    """Timestamp → int64 microseconds since 1970 UTC; Feast converts these 70 times faster."""
    return time.cast("timestamp").delta(EPOCH, unit="microsecond")
