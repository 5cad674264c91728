"""How long a database takes the scores of 1,000,000 entities: `python -m benchmarks.score_sinks`.

The rows have the shape of a binary model's scores, and no model is trained for them: their making is
not part of the time. They go to a PostgreSQL of Debian's packages on this machine by the function
that `gyre score` calls, twice: into a new table, and in place of the first. An argument names another
address, such as mysql://…#scores, or another number of rows by `--rows`.
"""

import argparse
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from core.connectors.sink import replace_days
from core.settings import load_settings
from core.spec import load_spec
from tests.support.stores.postgres import postgres_server
from training.batch import SCORES, rows_for_team

ROWS = 1_000_000
GOAL_SECONDS = 60
MODEL = "customer_churn_model"
MEGABYTE = 1e6


def made_rows(count: int, as_of: datetime) -> pa.Table:
    """Rows for the team's table, of entities that are numbered."""
    spec = load_spec(MODEL)
    chance = np.random.default_rng(7).random(count).round(6)
    constants = {
        "model": MODEL,
        "day": f"{as_of:%Y-%m-%d}",
        "version": "1",
        "created": 1,
        "as_of": as_of,
        "entity": None,
        "probabilities": None,
        "features": None,
    }
    columns = {
        name: pa.repeat(pa.scalar(value, SCORES.field(name).type), count)
        for name, value in constants.items()
    }
    columns["probability"] = pa.array(chance)
    columns["prediction"] = pa.array((chance >= spec.threshold).astype(float))
    frame = pa.table(
        {"customer_id": np.arange(count), "event_timestamp": columns["as_of"]}
    )
    return rows_for_team(spec, frame, pa.table(columns).select(SCORES.names))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?")
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    as_of = datetime.now(UTC)
    rows = made_rows(options.rows, as_of)
    process = psutil.Process()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = options.address
        if address is None:
            server = stack.enter_context(postgres_server(folder / "postgres.log"))
            address = f"{server.address}#scores"
        settings = load_settings(home=folder / "home")
        before = process.memory_info().rss
        for title in ("a new table", "in place of them"):
            start = time.perf_counter()
            replace_days(settings, address, rows, MODEL, [as_of.date()])
            seconds = time.perf_counter() - start
            print(f"{rows.num_rows:,} rows, {title}: {seconds:.1f} s")
        after = process.memory_info().rss
        print(f"goal: {GOAL_SECONDS} s")
        print(
            f"RSS: {before / MEGABYTE:.0f} MB before, {after / MEGABYTE:.0f} MB after"
        )


if __name__ == "__main__":
    main()
