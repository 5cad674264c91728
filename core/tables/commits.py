"""Files that a commit adds to a table or takes from it, of another writer than Delta's own."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from deltalake.transaction import AddAction, RemoveAction

EVENT_TIME = "event_timestamp"
"""The column whose span of times a commit of files notes for each file."""
PERIOD = "period"
"""The column of integers that a table of such files is partitioned by."""
AddedFile: TypeAlias = AddAction
"""A parquet file that is to become part of a table: see `added_file`."""


def added_file(
    path: str, size: int, period: int, rows: int, earliest: datetime, latest: datetime
) -> AddedFile:
    """Describe a parquet file that is to become part of a table.

    Readers can leave the file out by its times, which are milliseconds in Delta's log: the span
    becomes wider by less than one at each end.

    Args:
        path: Below the table's folder, such as `period=12/NAME.parquet`.
        size: In bytes.
        period: Its value of PERIOD.
        rows: How many there are.
        earliest: Smallest time in the column EVENT_TIME.
        latest: Largest time there.

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
    """Say that a file such as `period=12/NAME.parquet` goes."""
    period = name.partition("/")[0].partition("=")[2]
    return RemoveAction(
        path=name,
        data_change=True,
        deletion_timestamp=int(time.time() * 1000),
        partition_values={PERIOD: period},
    )


def _milliseconds(moment: datetime) -> str:
    """Return a time as Delta's log has it; what is below a millisecond is cut off."""
    utc_time = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc_time.isoformat(timespec='milliseconds')}Z"
