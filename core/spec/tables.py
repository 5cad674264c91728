"""The part of a model spec about tables of a team: those that Gyre reads, and those that it writes."""

from pydantic import Field

from core.spec.training import Strict


class LabelTable(Strict):
    """`[label]`: a table of the team's with a row for each label, which Gyre only reads.

    A label counts once it is known: at the time in `known_at`, and without that column at its
    event time + horizon + lateness. A label that became known later than that is left out.
    """

    source: str
    """Parquet files, a folder of them, a Delta table, or an Ibis address and `#table`. A relative path
    begins at the project."""
    name: str = "label"
    """The column with the label. Empty: the table has none. A model that is adopted is then neither
    measured nor gated, and the rows are only what its predictions are compared with."""
    event_time: str = "event_timestamp"
    """The column with the moment that features are read for."""
    known_at: str | None = None
    """The column with the time at which the label became known."""
    entity: dict[str, str] = Field(default_factory=dict)
    """The table's column for a column of `entity_key`, where it has another name."""
    horizon_days: float = Field(ge=0)
    """How far past the event time the label looks."""
    lateness_days: float = Field(0, ge=0)
    """How long after its horizon a label may still become known."""


class PredictionTable(Strict):
    """A table of the team's with a row for each prediction, which Gyre only reads.

    Its columns are request_id, predicted_at, score, the keys and the features; version may be one.
    """

    source: str
    """See `source` of `[label]`."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The table's column for one of these, where it has another name."""


class Destination(Strict):
    """`[predictions]`, `[decisions]`: where a monitoring run writes rows for people to query.

    Rows of a day are replaced (docs/how-to/bi.md).
    """

    to: str | None = None
    """See `to` of `[scores]`."""


class Scores(Strict):
    """`[scores]`: which rows are scored in a batch, and where scores go beside Gyre's own table.

    With this part, or with `[population]`, the DAG `score_MODEL` runs every night.
    """

    to: str | None = None
    """`postgresql://…#table`, `mysql://…#table`, `iceberg://CATALOG#namespace.table`, a folder or
    `s3://…` for parquet files, or one whose address ends in `#delta` for a Delta table. `$NAME` is a
    variable of the environment. A relative path begins at the project (docs/how-to/bi.md)."""
    from_: str | None = Field(None, alias="from")
    """A table with the rows to score: see `source` of `[label]`. Its columns are the keys and the
    request data, and event_timestamp may be one. Without it, a model with `[population]` scores its
    members, and a model whose label has rows scores those without a known label."""
    only_active_hours: float | None = Field(None, gt=0)
    """Score only the members whose features have changed in so many hours before the run: by an
    event, or by the end of a window. Without it all members are scored."""
