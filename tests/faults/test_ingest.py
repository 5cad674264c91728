"""An ingest that is killed: nothing is doubled, nothing lost, online and offline."""

import random
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq

from core.spec import load_spec
from feature_repo.ingest import ingest, raw_table
from feature_repo.online import OnlineFeatures
from tests.conftest import AS_OF
from tests.faults.jobs import program
from tests.feature_repo.conftest import applied, template  # noqa: F401  (fixtures)
from tests.feature_repo.test_incremental import DAY, HOUR, ORDERS, rebuilt, rows_of

SPEC = load_spec("customer_churn_model")
HOURS = 6


# For each line (settings, as_of, n) an ingest that ends itself at the n-th step that Python's audit
# hooks tell of; what Delta and DuckDB write lies between these. Forked: imports take far longer.
INGEST = """
import json, os, signal, sys
from datetime import datetime
import great_expectations, ibis.backends.duckdb, feast.repo_operations
import feature_repo.extensions.offline, feature_repo.refresh
from feature_repo.datasets import load_dataset
from feature_repo.ingest import ingest
from core.settings import Settings

load_dataset("orders")

def run(given, as_of, left):
    settings = Settings.model_validate(given)
    def step(event, args):
        nonlocal left
        ours = str(settings.home) in str(args[:2]) and (event != "open" or ".lock" in str(args[0]))
        if ours or event == "socket.connect":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    ingest(settings, "orders", datetime.fromisoformat(as_of))
    return left

for line in sys.stdin:
    child = os.fork()
    if not child:
        print(run(*json.loads(line)), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("null", flush=True)
"""


def deliver(file, hour, chance):
    """Add late and new rows to the source, and correct some; return all rows by their key."""
    known = pq.read_table(file).to_pylist() if file.exists() else []
    corrected = [row | {"dollar_value": row["dollar_value"] + 1} for row in known[::9]]
    days = 6 if hour else 200
    new = [
        {
            "order_id": hour * 100 + number,
            "customer_id": chance.randint(1, 20),
            "order_ts": AS_OF + hour * HOUR - chance.randint(0, days) * DAY,
            "number_of_cds": 1,
            "dollar_value": float(number),
        }
        for number in range(30)
    ]
    rows = {row["order_id"]: row for row in [*known, *corrected, *new]}
    pq.write_table(pa.Table.from_pylist([*rows.values()], schema=ORDERS.schema), file)
    return rows


def test_an_ingest_killed_at_any_step_and_run_again_gives_the_same_result(
    applied, tmp_path
):
    """Late rows and corrections too, online values included."""
    chance = random.Random(7)
    source = tmp_path / "orders.parquet"
    settings = applied.model_copy(update={"sources": {"orders": str(source)}})
    kills = 0
    last_step = 10**9
    with program("-c", INGEST) as steps_left:
        for hour in range(HOURS):
            as_of = AS_OF + hour * HOUR
            rows = deliver(source, hour, chance)
            arguments = [settings.model_dump(mode="json"), as_of.isoformat(), last_step]
            left = steps_left(arguments)
            if not hour:
                step_count = last_step - left
            kills += left is None
            last_step = step_count * (hour + 1) // HOURS
    assert kills >= HOURS - 2
    ingest(settings, "orders", as_of, full=True)
    raw = raw_table(settings, ORDERS)
    columns = raw.read(columns=ORDERS.schema.names).sort_by("order_id")
    assert columns.to_pylist() == [rows[key] for key in sorted(rows)]
    features = rows_of(settings)
    assert features.equals(rebuilt(settings, raw))
    newest = {
        row["customer_id"]: row
        for row in features.to_pylist()
        if row["event_timestamp"] <= as_of
    }
    keys = [{"customer_id": customer} for customer in newest]
    names = tuple(SPEC.features)
    with closing(OnlineFeatures(settings, SPEC.feature_service, names)) as reader:
        online = reader.read(keys, as_of)
    for row, values in zip(newest.values(), online, strict=True):
        shared = {name: row[name] for name in values.keys() & row.keys()}
        assert values == values | shared
