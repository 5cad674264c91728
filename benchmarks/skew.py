"""What the skew audit of one look costs: 10,000 logged vectors of the shipped orders.

    python -m benchmarks.skew

equal: each is what Feast gives offline. all wrong: one value of each is not, so every vector is
looked for at moments near its own. corrected: 24 ingests since corrected 500 orders each, so that
what was known at any of them is computed anew as well. Seconds passed, and of the processors used.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from benchmarks.false_alarms import MODEL, install
from feature_repo.as_known import values_at
from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table, write_views
from mlflow_server.lookup import LookupSpecification
from mlflow_server.served_model import ServedModel
from monitoring.collect import PREDICTIONS
from monitoring.skew import MOST, audit
from stack.spec import load_spec
from tests.conftest import AS_OF

if TYPE_CHECKING:
    from collections.abc import Sequence

SPEC = load_spec(MODEL)
HOUR, CORRECTED = timedelta(hours=1), 500
SERVED = ServedModel(
    model=SPEC.name, entity_key=SPEC.entity_key, feature_service=SPEC.feature_service,
    features=SPEC.features, defaults={}, population=SPEC.population, as_of=AS_OF.isoformat(),
    lookup=LookupSpecification(feast="", online_store=""),
)  # fmt: skip


def logged(rows: Sequence[dict[str, Any]], **changed: Any) -> pa.Table:
    """Log customer 1 and on, a minute's worth at each minute of 12 hours."""
    moments = (AS_OF - timedelta(minutes=number % 720) for number in range(len(rows)))
    return pa.Table.from_pylist(
        [
            {
                "request_id": str(number), "model": SPEC.name, "version": "1", "received": at,
                "as_of": at, "entity": str(number + 1), "features": json.dumps(row | changed),
                "features_from": "online", "prediction": 1.0, "in_population": True,
            }
            for number, (row, at) in enumerate(zip(rows, moments, strict=True))
        ],
        schema=PREDICTIONS,
    )  # fmt: skip


def main() -> None:
    dataset = load_dataset(SPEC.dataset)
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as name:
        settings, orders = install(Path(name), dataset)
        asked = [({"customer_id": n + 1}, AS_OF - timedelta(minutes=n % 720)) for n in range(MOST)]
        rows = values_at(settings, SPEC.feature_service, list(SPEC.features), asked)

        def measured(what: str, seen: pa.Table) -> None:
            began, used = time.perf_counter(), time.process_time()
            found = audit(settings, dataset, SERVED, "1", seen, {"online": len(seen)})
            took, used = time.perf_counter() - began, time.process_time() - used
            print(f"{what:10} {took:5.1f} s, {used:4.1f} s of processors: {dict(found.values)}")

        print(f"{MOST:,} vectors, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        measured("equal", logged(rows))
        measured("all wrong", logged(rows, lifetime_orders=999))
        raw, place = raw_table(settings, dataset), orders.column_names.index("dollar_value")
        for number in range(24):
            part = orders.slice(number * CORRECTED, CORRECTED)
            part = part.set_column(place, "dollar_value", pa.array([99.0] * CORRECTED))
            at = pa.array([AS_OF - (23 - number) * HOUR] * CORRECTED, pa.timestamp("us", "UTC"))
            raw.merge(part.append_column("ingested_at", at), dataset.key, orders.column_names)
        write_views(settings, dataset, raw)
        measured("corrected", logged(rows, lifetime_orders=999))


if __name__ == "__main__":
    main()
