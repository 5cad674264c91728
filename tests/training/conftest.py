"""The real orders as of START, with features computed and published; no online store needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from core.settings import Settings
from core.spec import ModelSpec, load_spec
from core.spec.training import Estimator
from feature_engine.ingest.source import pull
from feature_repo.datasets import load_dataset
from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from tests.conftest import AS_OF, feast_apply, mlflow_server, new_settings
from tests.mlflow_server.conftest import client
from tests.support.training.chains import store, train
from training import chain
from training.evaluation.results import Evaluation, load_evaluation

ORDERS = load_dataset("orders")
SHIPPED = load_spec("customer_churn_model")
SMALL = SHIPPED.estimators[0].model_copy(
    update={"parameters": {"n_estimators": 5, "max_depth": 4}, "space": {}}
)


def changed(**changes: Any) -> ModelSpec:
    """The shipped spec with one small estimator, and changes."""
    return SHIPPED.model_copy(update={"estimators": (SMALL,), **changes})


def with_fewer_trees(estimator: Estimator) -> Estimator:
    """A tenth of its trees."""
    parameters = dict(estimator.parameters)
    for name in {"n_estimators", "max_iter"} & parameters.keys():
        parameters[name] //= 10
    return estimator.model_copy(update={"parameters": parameters})


SPEC = changed(estimators=tuple(map(with_fewer_trees, SHIPPED.estimators)))
OLD = AS_OF - timedelta(days=180)
"""Then no fold has matured."""


def installation(home: Path, rows: pa.Table | None = None) -> Settings:
    """An installation that holds `rows` (default: what the demo delivers by AS_OF)."""
    settings = new_settings(home)
    feast_apply(settings)
    rows = pull(settings, ORDERS, AS_OF).read_all() if rows is None else rows
    store(settings, ORDERS, rows)
    return settings


@pytest.fixture(scope="session")
def history(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return installation(tmp_path_factory.mktemp("history"))


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """An installation with the orders of a tenth of the customers, of each cohort as many."""
    folder = tmp_path_factory.mktemp("sample")
    rows = pull(new_settings(folder / "none"), ORDERS, AS_OF).read_all()
    customers = rows["customer_id"].to_numpy()
    return installation(folder / "home", rows.filter(pa.array(customers % 10 == 0)))


@pytest.fixture(scope="session")
def tracked(sample: Settings) -> Iterator[Settings]:
    with mlflow_server(sample):
        yield sample


@pytest.fixture(scope="session")
def tracking(tracked: Settings) -> Tracking:
    return Tracking(tracked)


@pytest.fixture(scope="session")
def first(tracked: Settings) -> chain.TrainReport:
    """The version of 180 days ago, trained where nothing was registered yet."""
    return train(tracked, SPEC, OLD, "first")


@pytest.fixture(scope="session")
def second(tracked: Settings, first: chain.TrainReport) -> chain.TrainReport:
    """The version of today, in production in place of the first."""
    return train(tracked, SPEC, AS_OF, "second")


@contextmanager
def other_hashes(settings: Settings, version: str, *tags: str) -> Iterator[None]:
    """Meanwhile the version's tags are the hashes of something else."""
    api = client(settings)
    hashes = Registry(settings).version(SPEC.name, version).tags
    for tag in tags:
        api.set_model_version_tag(SPEC.name, version, tag, "0" * 64)
    try:
        yield
    finally:
        for tag in tags:
            api.set_model_version_tag(SPEC.name, version, tag, hashes[tag])


@pytest.fixture(scope="session")
def evaluation(tracking: Tracking, second: chain.TrainReport) -> Evaluation:
    return load_evaluation(tracking, second.run_id)
