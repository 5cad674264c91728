"""What pictures show of one monitoring run, beside the figures of its decision."""

from dataclasses import dataclass, field

from pydantic import TypeAdapter

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Bin:
    """Shares of the reference's and of the window's scores in [low, high], 0 to 1 each.

    The outermost bins hold what lies beyond as well.
    """

    low: float
    high: float
    was: float
    now: float


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric with its 95 % interval, as it was at evaluation, and the best constant's.

    baseline: on the same rows as `now`. None: it is not known.
    """

    now: float
    low: float | None = None
    high: float | None = None
    was: float | None = None
    baseline: float | None = None


@dataclass(frozen=True)
class CalibrationBin:
    """Mean score and share that came true of `rows` rows, 0 to 1 each."""

    said: float
    true: float
    rows: int


@dataclass(frozen=True)
class SegmentRate:
    """Share of predictions of 1 in one segment, then and now; rows: of the window."""

    was: float
    now: float
    rows: int


@dataclass(frozen=True)
class WindowDetails:
    """Empty of what was not measured.

    quantiles: of the window's features that are numbers, and of `score`, at `QUANTILES`.
    reference_quantiles: the same of the reference.
    performance: by kind (online, backfilled), then by metric.
    calibration: by kind, and of the reference.
    segments: by the segment's value.
    """

    scores: tuple[Bin, ...] = ()
    quantiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    reference_quantiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    performance: dict[str, dict[str, MeasuredMetric]] = field(default_factory=dict)
    calibration: dict[str, tuple[CalibrationBin, ...]] = field(default_factory=dict)
    segments: dict[str, SegmentRate] = field(default_factory=dict)


DETAILS = TypeAdapter(WindowDetails)
