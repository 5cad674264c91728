"""An ingest that is killed: nothing is doubled, nothing lost, online and offline."""

import random
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.spec import load_spec
from feature_engine.ingest.pipeline import ingest, raw_table
from feature_engine.ingest.quarantine import quarantined
from tests.conftest import AS_OF
from tests.faults.jobs import program
from tests.support.feature_engine.installation import applied, online_reader, template  # noqa: F401  (fixtures among them)
from tests.support.feature_engine.rebuilt_views import rebuilt, rows_of
from tests.support.feature_engine.shop import DAY, HOUR, ORDERS

SPEC = load_spec("customer_churn_model")
PARTS = 6
BAD = 1
"""Number of an order of each delivery that breaks a rule, and is never corrected."""
ODD = 2
"""The same of one that no view can be computed from."""
AHEAD = 3
"""The same of one that is dated half an hour after its delivery."""
AMOUNTS = {BAD: -1.0, ODD: 1e13}
LOCKS = ("raw/orders", "quarantine/orders")


# For each line (settings, as_of, end) an ingest that ends itself at a step that Python's audit hooks
# tell of, or when it opens a lock; what Delta and DuckDB write lies between these. Forked: imports
# take far longer.
INGEST = """
import json, os, signal, sys
from datetime import datetime
import great_expectations, ibis.backends.duckdb, feast.repo_operations
import feature_repo.extensions.offline, feature_engine.online.refresh
from feature_repo.datasets import load_dataset
from feature_engine.ingest.pipeline import ingest
from core.settings import Settings

load_dataset("orders")

def run(given, as_of, end):
    settings = Settings.model_validate(given)
    count = 0
    def step(event, args):
        nonlocal count
        ours = str(settings.home) in str(args[:2]) and (event != "open" or ".lock" in str(args[0]))
        if ours or event == "socket.connect":
            count += 1
            if count == end or str(args[0]).endswith(f"{end}.lock"):
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(step)
    ingest(settings, "orders", datetime.fromisoformat(as_of))
    return count

for line in sys.stdin:
    child = os.fork()
    if not child:
        print(run(*json.loads(line)), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("null", flush=True)
"""


def deliver(file, hour, chance):
    """Add late, new and bad rows to the source, and correct some."""
    known = pq.read_table(file).to_pylist() if file.exists() else []
    corrected = [row | {"dollar_value": row["dollar_value"] + 1} for row in known[::9]]
    days = 6 if hour else 200
    new = [
        {
            "order_id": hour * 100 + number,
            "customer_id": chance.randint(1, 20),
            "order_ts": AS_OF + hour * HOUR - chance.randint(0, days) * DAY,
            "number_of_cds": 1,
            "dollar_value": AMOUNTS.get(number, float(number)),
        }
        for number in range(30)
    ]
    new[AHEAD]["order_ts"] = AS_OF + hour * HOUR + HOUR / 2
    rows = {row["order_id"]: row for row in [*known, *corrected, *new]}
    pq.write_table(pa.Table.from_pylist([*rows.values()], schema=ORDERS.schema), file)


def test_an_ingest_killed_at_any_step_and_run_again_gives_the_same_result(
    applied, tmp_path
):
    """Late rows, corrections and bad rows too, online values included."""
    chance = random.Random(7)
    source = tmp_path / "orders.parquet"
    settings = applied.model_copy(update={"sources": {"orders": str(source)}})
    with program("-c", INGEST) as answer:

        def step_count(hour, end):
            """Ingest more rows; return the number of steps, or None where it was killed."""
            deliver(source, hour, chance)
            as_of = AS_OF + hour * HOUR
            return answer([settings.model_dump(mode="json"), as_of.isoformat(), end])

        # The first ingest of all has further steps.
        steps = [step_count(hour, None) for hour in range(2)][-1]
        ends = [steps * part // PARTS for part in range(1, PARTS)]
        killed_ingests = enumerate([*ends, *LOCKS], 2)
        counts = [step_count(hour, end) for hour, end in killed_ingests]
    assert counts.count(None) >= PARTS
    last_hour = 1 + len(counts)
    as_of = AS_OF + last_hour * HOUR
    # Had the last one landed all but its bad row, this would be a delivery of bad rows alone.
    ingest(settings, "orders", as_of, full=True)
    raw = raw_table(settings, ORDERS)
    columns = raw.read(columns=ORDERS.schema.names).sort_by("order_id")
    is_good = (pc.field("dollar_value") >= 0) & (pc.field("dollar_value") < 1e12)
    is_due = pc.field("order_ts") <= as_of
    good_rows = pq.read_table(source, filters=is_good & is_due)
    assert columns.equals(good_rows.sort_by("order_id"))
    bad_rows = [entry["row"]["order_id"] for entry in quarantined(settings, ORDERS)]
    hours = range(last_hour + 1)
    assert sorted(bad_rows) == [h * 100 + number for h in hours for number in AMOUNTS]
    assert [*settings.cache.iterdir()] == []
    features = rows_of(settings)
    assert features.equals(rebuilt(settings, raw))
    past = features.filter(pc.field("event_timestamp") <= as_of)
    newest = {row["customer_id"]: row for row in past.to_pylist()}
    keys = [{"customer_id": customer} for customer in newest]
    names = [name for name in SPEC.features if name in features.column_names]
    with closing(online_reader(settings, SPEC.feature_service, names)) as reader:
        online = reader.read(keys, as_of)
    rows = pa.Table.from_pylist([*newest.values()], schema=features.schema)
    assert online == rows.select(names).to_pylist()
