"""The part of a model spec about tables of a team: labels, and predictions that were made elsewhere."""

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
