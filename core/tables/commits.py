"""Files that a commit adds to a table or removes from it, and that Delta did not write itself."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from deltalake.transaction import AddAction, RemoveAction

EVENT_TIME = "event_timestamp"
"""Column of times whose span a commit records for each file."""
PERIOD = "period"
"""Column of integers by which a table of such files is partitioned."""
AddedFile: TypeAlias = AddAction
"""A parquet file that is to become part of a table: see `added_file`."""


def added_file(
    path: str, size: int, period: int, rows: int, earliest: datetime, latest: datetime
) -> AddedFile:
    """Describe a parquet file that is to become part of a table.

    Readers can leave the file out by its times, which are milliseconds in Delta's log: the span
    becomes wider by less than one at each end.

    Args:
        path: Path below the table's folder, such as `period=12/NAME.parquet`.
        size: Size in bytes.
        period: Value of PERIOD in all of its rows.
        rows: Number of rows.
        earliest: Smallest time in the column EVENT_TIME.
        latest: Largest time in the column EVENT_TIME.

    """
    upper_end = latest + timedelta(microseconds=999)
    statistics = {
        "numRecords": rows,
        "minValues": {EVENT_TIME: _milliseconds(earliest)},
        "maxValues": {EVENT_TIME: _milliseconds(upper_end)},
    }
    return AddAction(
        path=path,
        size=size,
        partition_values={PERIOD: str(period)},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps(statistics),
    )


def removed_file(name: str) -> RemoveAction:
    """Describe a file, such as `period=12/NAME.parquet`, that a commit removes."""
    period = name.partition("/")[0].partition("=")[2]
    return RemoveAction(
        path=name,
        data_change=True,
        deletion_timestamp=int(time.time() * 1000),
        partition_values={PERIOD: period},
    )


def _milliseconds(moment: datetime) -> str:
    """Return a time as Delta's log has it, without the part below a millisecond."""
    utc_time = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc_time.isoformat(timespec='milliseconds')}Z"
