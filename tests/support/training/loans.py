"""Loans: a model without a feature view, whose table has the features and the labels."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

MODEL = "loans"
SPEC = f"""
name = "{MODEL}"
experiment = "{MODEL}"
entity_key = "loan_id"
schedule = "@weekly"
seed = 7
threshold = 0.5

[label]
source = "loans.parquet"
name = "defaulted"
event_time = "asked"
horizon_days = 1

[costs]
action = 1
loss = 10
averted = 0.2

[features]
income = "double"
children = "int64"
town = "string"

[snapshots]
every = "day"
train = 10
rows = "label"

[serving]
missing_features = "defaults"

[monitoring]
fewest = 50

[[estimators]]
name = "logistic_regression"
type = "logistic_regression"
parameters = {{ C = 1.0, max_iter = 1000 }}

[[gates]]
metric = "log_loss"
rule = "better_than_baseline"
"""
TOWNS = np.array(["Aix", "Bern", "Cork"])


def loans():
    """Loans of 30 days; the poor ones of Bern are not paid back."""
    random = np.random.default_rng(1)
    count = 3_000
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)
    income = random.gamma(2, 1_000, count)
    town = random.choice(TOWNS, count)
    risk = 1 / (1 + np.exp((income - 1_500) / 300 - (town == "Bern")))
    return pd.DataFrame(
        {
            "loan_id": range(count),
            "asked": pd.date_range(start, periods=count, freq="14min"),
            "income": income.round(2),
            "children": random.integers(0, 4, count).astype("int32"),
            "town": town,
            "defaulted": random.random(count) < risk,
        }
    )


def make_project(folder, spec=SPEC):
    """Write a project with the spec and the table; its Feast has no view."""
    (folder / "models").mkdir()
    (folder / "feature_repo").mkdir()
    store = "project: loans\nregistry: data/registry.db\nprovider: local\n"
    (folder / "feature_repo" / "feature_store.yaml").write_text(store)
    (folder / "models" / f"{MODEL}.toml").write_text(spec)
    loans().to_parquet(folder / "loans.parquet", index=False)
