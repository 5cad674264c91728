"""How long the values of windows that end together stay wrong, and how many keys a second change.

    python -m benchmarks.window_ends [ends at once, 1,000 and 30,000 if not given]

Each visitor of a shop has one page view in the table, of five minutes ago at one and the same
moment, dated so that all windows end a few seconds later. The event consumer's step is called as
`gyre consume` calls it. Seconds are from that moment until the value of the last visitor is right
in Redis, in a process of its own, on a Redis in memory. Three rounds, the median.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.support import measure
from benchmarks.support.measure import ROUNDS, child, median, promised
from core.settings import load_settings

FIVE_MINUTES = timedelta(minutes=5)
AHEAD = timedelta(seconds=30)
"""From the start of a round to the end of its windows; making the features takes less."""


def load_page_views(folder: str) -> Any:
    """Import the dataset of docs/page-views.md."""
    from tests.support.tools.pages import read_page  # noqa: PLC0415  (not in what is measured)

    name = "feature_repo.datasets.page_views"
    file = Path(folder) / "page_views.py"
    file.write_text(
        read_page("page-views.md").files["feature_repo/datasets/page_views.py"]
    )
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module.PAGE_VIEWS


def page_views(dataset: Any, count: int, moment: datetime) -> Any:
    import pyarrow as pa  # noqa: PLC0415  (heavy)

    names = [f"visitor-{number}" for number in range(count)]
    columns = {
        "view_id": names,
        "visitor_id": names,
        "viewed_at": [moment] * count,
        "page": ["product"] * count,
        "price": [20.0] * count,
        "cart_value": [None] * count,
        "ingested_at": [moment] * count,
    }
    schema = dataset.schema.append(pa.field("ingested_at", pa.timestamp("us", "UTC")))
    return pa.table(columns, schema=schema)


def end_windows(folder: str, port: str, count: str) -> dict[str, float]:
    """Measure one round."""
    from feature_engine.offline.raw import raw_table  # noqa: PLC0415  (heavy)
    from feature_engine.offline.views import write_views  # noqa: PLC0415
    from feature_engine.online.refresh import refresh_online  # noqa: PLC0415
    from feature_engine.online.values import OnlineValues  # noqa: PLC0415
    from feature_engine.online.window_ends import WindowEnds  # noqa: PLC0415
    from feature_repo.published.store import publish_beside  # noqa: PLC0415

    Redis(port=int(port)).flushall()  # of the round before
    home = tempfile.mkdtemp(dir=folder)
    settings = load_settings(home=home, redis_port=port, redis_url=None)
    dataset = load_page_views(home)
    publish_beside(settings, dataset)
    raw = raw_table(settings, dataset)
    end = datetime.now(UTC) + AHEAD
    raw.merge(
        page_views(dataset, int(count), end - FIVE_MINUTES), dataset.key, ["view_id"]
    )
    write_views(settings, dataset, raw)
    with closing(OnlineValues(settings, dataset, raw)) as online:
        refresh_online(online, clock=lambda: datetime.now(UTC))
        ends = WindowEnds(online)
        ends.step(datetime.now(UTC))
        assert ends.next_time() == end, f"the rows took longer than {AHEAD}"
        time.sleep((end - datetime.now(UTC)).total_seconds())
        while ends.next_time() is not None and ends.next_time() <= datetime.now(UTC):
            ends.step(datetime.now(UTC))
        seconds = (datetime.now(UTC) - end).total_seconds()
        visitors = [{"visitor_id": f"visitor-{number}"} for number in range(int(count))]
        values = online.store.get_online_features(
            ["visits:views_5m"], visitors
        ).to_dict()
        assert set(values["views_5m"]) == {0}
    return {"seconds": seconds}


def main(count: int) -> None:
    counts = [count] if count else [1_000, 30_000]
    with tempfile.TemporaryDirectory(prefix="gyre-bench-") as folder:
        measure.title(
            f"windows of {' and '.join(map(str, counts))} keys that end at once"
        )
        with measure.redis_in_memory(Path(folder)) as port:
            for key_count in counts:
                rounds = []
                for _ in range(ROUNDS):
                    values = child("window_ends", "ends", folder, port, key_count)
                    rounds.append({"ends": values})
                seconds = median(rounds, "ends")
                if key_count <= 1_000:
                    promised(
                        f"{key_count:,} keys: until the last is right", seconds, 2, "s"
                    )
                else:
                    print(
                        f"{key_count:,} keys: until the last is right {seconds:18.2f} s"
                    )
                print(f"{key_count:,} keys: a second {key_count / seconds:35,.0f}")


if __name__ == "__main__":
    measure.start(main, 0, {"ends": end_windows})
