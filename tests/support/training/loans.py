"""Loans: a model without a feature view, whose table has the features and the labels."""

import subprocess
import warnings
from datetime import UTC, datetime, timedelta

import mlflow.sklearn
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from stack.environment import process_environment
from tests.conftest import BIN

MODEL = "loans"
FEATURES = ["income", "children", "town"]
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


def save_model(folder):
    """Save a model as a team does: fitted and saved by plain MLflow, in the format of skops."""
    rows = loans()
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), FEATURES[:2]),
            ("town", OneHotEncoder(), ["town"]),
        ]
    )
    model = make_pipeline(columns, LogisticRegression(max_iter=1000))
    model.fit(rows[FEATURES], rows["defaulted"].astype(int))
    with warnings.catch_warnings(action="ignore"):  # MLflow warns of itself
        mlflow.sklearn.save_model(
            model,
            folder,
            signature=infer_signature(rows[FEATURES], rows["income"]),
            serialization_format="skops",
            # MLflow would find them out by opening the model in another process.
            pip_requirements=["mlflow", "scikit-learn", "skops"],
        )


def gyre(settings, folder, *arguments, program=BIN / "gyre"):
    """Return the finished process of a command in a project."""
    environment = process_environment(settings) | {"GYRE_PROJECT": str(folder)}
    return subprocess.run(
        [program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
    )


def scored(factor=1.0, count=300):
    """Rows as another server scored them a minute ago, with incomes times `factor`."""
    rows = loans().tail(count).reset_index(drop=True)
    moment = datetime.now(UTC) - timedelta(minutes=1)
    income = rows["income"] * factor
    risk = 1 / (1 + np.exp((income - 1_500) / 300 - (rows["town"] == "Bern")))
    return rows.assign(income=income, score=risk.round(6), predicted_at=moment)


def with_table(spec, source, **columns):
    table = {"source": str(source), "columns": columns}
    serving = spec.serving.model_validate(
        spec.serving.model_dump() | {"predictions": table}
    )
    return spec.model_copy(update={"serving": serving})
