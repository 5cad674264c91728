"""A team's Feast repository as `feast init` writes it, and a model on it that learns from a table."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from tests.support.tools.preloaded import commands_folder

MODEL = "driver_trips"
SERVICE = "driver_activity_v1"
VIEW = "driver_hourly_stats"
REQUEST = {"val_to_add": 3, "val_to_add_2": 4}
SPEC = f"""
name = "{MODEL}"
experiment = "{MODEL}"
entity_key = "driver_id"
feature_service = "{SERVICE}"
schedule = "@weekly"
seed = 7
threshold = 0.5

[label]
source = "labels.parquet"
name = "reached goal"
event_time = "asked"
known_at = "known at"
entity = {{ driver_id = "Driver ID" }}
horizon_days = 0.1

[costs]
action = 1
loss = 10
averted = 0.2

[features]
conv_rate = "float32"
conv_rate_plus_val1 = "double"

[snapshots]
every = "day"
train = 10
rows = "label"

[serving]
missing_features = "defaults"

[monitoring]
fewest = 3
windows = 1
bad_windows = 1
cooldown_hours = 0.001

[[estimators]]
name = "logistic_regression"
type = "logistic_regression"
parameters = {{ C = 1.0, max_iter = 1000 }}

[[gates]]
metric = "log_loss"
rule = "better_than_baseline"
"""
MINUTES_20 = pd.Timedelta(minutes=20)


def feast(folder, *arguments, programs=None):
    """Run a command of Feast as a team does, without anything of Gyre in its environment."""
    done = subprocess.run(
        [(programs or commands_folder()) / "feast", *arguments],
        cwd=folder,
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_team(
    folder: Path, store: str | None = None, programs: Path | None = None
) -> Path:
    """Write the project of a team into a folder, published and materialised by Feast itself.

    Args:
        folder: An existing folder.
        store: What to write in place of `online_store` of feature_store.yaml, and below it.
        programs: Folder with another Feast than that of this environment.

    Returns:
        The project, with a spec, a table of labels, and `feature_repo`.

    """
    feast(folder, "init", "team", programs=programs)
    project = folder / "team"
    (project / "models").mkdir()
    (project / "models" / f"{MODEL}.toml").write_text(SPEC)
    repository = project / "feature_repo"
    if store:
        file = repository / "feature_store.yaml"
        head = file.read_text().partition("online_store:")[0]
        file.write_text(f"{head}{store}\nentity_key_serialization_version: 3\n")
    labels(repository).to_parquet(project / "labels.parquet", index=False)
    feast(repository, "apply", programs=programs)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    feast(repository, "materialize-incremental", now, programs=programs)
    return project


def rows_of(repository: Path) -> pd.DataFrame:
    """The rows of the view's file; Feast's template repeats one of them, and one is of 2021."""
    return pd.read_parquet(repository / "data" / "driver_stats.parquet")


def labels(repository: Path) -> pd.DataFrame:
    """`labels_of` the rows of the view's file."""
    return labels_of(rows_of(repository))


def labels_of(rows: pd.DataFrame) -> pd.DataFrame:
    """A label for each row of a view, 20 minutes after it, known an hour later."""
    rows = rows.dropna(subset=["driver_id", "conv_rate"])
    rows = rows.drop_duplicates(["driver_id", "event_timestamp"])
    rows = rows.sort_values(["event_timestamp", "driver_id"])
    random = np.random.default_rng(1)
    noise = random.normal(0, 0.15, len(rows))
    asked = rows["event_timestamp"] + MINUTES_20
    return pd.DataFrame(
        {
            "Driver ID": rows["driver_id"],
            "asked": asked,
            "reached goal": (rows["conv_rate"] + noise > 0.5).astype("int64"),
            "known at": asked + pd.Timedelta(hours=1),
            "val_to_add": random.integers(0, 5, len(rows)),
            "val_to_add_2": random.integers(0, 5, len(rows)),
        }
    )


def by_hand(rows: pd.DataFrame, questions: pd.DataFrame) -> np.ndarray:
    """The newest conv_rate at or before each moment, of the last day."""
    rows = rows.sort_values(["event_timestamp", "created"])
    values = []
    for question in questions.itertuples():
        is_own = rows["driver_id"] == question.driver_id
        known = rows[is_own & (rows["event_timestamp"] <= question.event_timestamp)]
        value = np.nan
        if len(known):
            newest = known.iloc[-1]
            if (
                newest["event_timestamp"] + pd.Timedelta(days=1)
                >= question.event_timestamp
            ):
                value = newest["conv_rate"]
        values.append(value)
    return np.array(values, np.float32)
