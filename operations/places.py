"""Two tables of places that hold data: those that may have rows of an entity, and those that grow."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from core.settings import Settings
from monitoring.log.tables import predictions
from operations import clean, erase
from operations.search import EntitySearch
from training.batch import scores

YEAR_DAYS = 400
"""Days that rows stay which a person may look up a year later."""
TIME_COLUMNS = {
    "outcomes": "received",
    "predictions": "received",
    "scores": "as_of",
    "decisions": "as_of",
    "checks": "as_of",
}
"""Table → its column with the time of a row. Rows of other tables stay whatever their age."""


@dataclass(frozen=True)
class GrowingPlace:
    """A place where rows or files become more.

    Attributes:
        name: Name for people and for GYRE_KEEP_DAYS; a table has its own.
        clean: Deletes rows and files from before a time; returns how many rows and files.
        days: Days that rows and files stay, where GYRE_KEEP_DAYS does not name the place.

    """

    name: str
    clean: Callable[[Settings, datetime], tuple[int, int]]
    days: int = YEAR_DAYS


GROWING_PLACES = (
    GrowingPlace("drift reports", clean.clean_reports, 90),
    GrowingPlace("Data Docs", clean.clean_data_docs, 90),
    GrowingPlace(
        "malformed lines set aside",
        partial(clean.clean_files, "serving/**/*.malformed"),
    ),
    GrowingPlace(
        "malformed lines of replicas", partial(clean.clean_files, "inbox/*/*.malformed")
    ),
    GrowingPlace(
        "Airflow's task logs", partial(clean.clean_files, "airflow/logs/**/*"), 30
    ),
    GrowingPlace("copies of files on S3", partial(clean.clean_files, "cache/**/*"), 7),
    GrowingPlace("rows that Spark left", partial(clean.clean_files, "scratch/**/*"), 1),
    GrowingPlace("alerts", clean.clean_alerts),
    GrowingPlace("Airflow's rows", clean.clean_airflow, 30),
)
"""Places beside the tables."""

ENTITY_PLACES: dict[str, Callable[[EntitySearch], int]] = {
    "raw rows": erase.erase_raw_rows,
    "features": erase.erase_features,
    "online values": erase.erase_online_values,
    "rows in quarantine": erase.erase_quarantined_rows,
    "requests of events": erase.erase_requests_of_events,
    "training frames": erase.erase_rows_of_frames,
    "prediction log": erase.erase_log_lines,
    "outcomes": erase.erase_outcomes,
    "predictions": partial(erase.erase_answers, predictions),
    "scores": partial(erase.erase_answers, scores),
    "drift reports": partial(erase.erase_all, clean.clean_reports),
    "Data Docs": partial(erase.erase_all, clean.clean_data_docs),
    "Data Docs of trainings": erase.erase_data_docs_of_trainings,
}
"""Place → the function that counts an entity's rows there and erases them, in the order of erasing."""
