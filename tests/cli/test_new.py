"""`gyre new` without rows: three files that work as they are, in a copy of the clone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.settings import PROJECT
from feature_repo.feast_config import write_feast_config
from tests.cli.clone import Copy
from tests.conftest import mlflow_server, new_settings, redis_server
from tests.preloaded import commands_folder

VISITS = "web_visits"
LEARN = """
from datetime import UTC, datetime
from core.settings import load_settings
from core.spec import load_spec
from feature_repo.ingest import ingest
from training.chain import train

settings, now = load_settings(), datetime.now(UTC)
print(ingest(settings, "web_visits", now).summary())
report = train(settings, load_spec("web_visits"), now, key="a", reason="b", who="c")
print(f"web_visits: {report.outcome}")
"""
"""What `gyre ingest` and `gyre train` do, importing all of it once."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    settings = new_settings(folder / ".gyre", demo_start=None)
    mlflow = mlflow_server(settings, commands_folder() / "python")
    with mlflow, redis_server(settings.redis_port, settings.home):
        write_feast_config(settings)
        yield Copy(folder, settings)


@pytest.mark.nightly
def test_what_gyre_new_wrote_learns_as_it_is_and_passes_every_check(project, tmp_path):
    for command in ("gyre new {}", "gyre check {}", "(cd feature_repo && feast apply)"):
        project.run(command.format(VISITS))
    chance, days = np.random.default_rng(7), 400
    start = np.datetime64("now", "s") - np.timedelta64(days, "D")
    steady = chance.random(300) < 0.5
    entity, seconds = [], []
    for number, goes_on in enumerate(steady):
        gaps = chance.exponential(8 if goes_on else 45, 80) * 86_400
        times = chance.random() * 30 * 86_400 + gaps.cumsum()
        times = times[times < days * 86_400]
        entity += [number] * len(times)
        seconds += [*times.astype(int)]
    at = pa.array(
        start + np.array(seconds, "timedelta64[s]"), pa.timestamp("us", "UTC")
    )
    rows = {"event_id": range(len(entity)), "entity_id": entity, "event_ts": at}
    rows["amount"] = chance.integers(1, 100, len(entity)) / 4
    source = tmp_path / "v.parquet"
    pq.write_table(pa.table({n: pa.array(v) for n, v in rows.items()}), source)
    missing = project.run(f"gyre ingest {VISITS}", 1)
    assert f"add the line GYRE_SOURCES__{VISITS.upper()}=…" in missing
    (project.settings.home / "gyre.env").write_text(
        f"GYRE_SOURCES__{VISITS.upper()}={source}\n"
    )
    said = project.run('python -c "$LEARN"', LEARN=LEARN)
    assert f"{len(entity)} new" in said
    assert f"{VISITS}: version 1 is in production" in said
    project.run("ruff check --no-cache . && ruff format --no-cache --check .")
    project.run(
        f"mypy --cache-dir {PROJECT / '.mypy_cache'} feature_repo/datasets/{VISITS}.py"
    )
    assert "there already" in project.run(f"gyre new {VISITS}", 2)
    assert "orders has a view customer_features" in project.run("gyre new customer", 2)
    for bad in ("Web", "class", "a-b", "a__b", "../x", "x" * 31):
        assert "expected up to 30 small letters" in project.run(f"gyre new {bad}", 2)
