"""Estimators and training code of a user, through the whole chain on the real history."""

import json

import numpy as np
import pytest

from core.errors import TrainingError
from core.spec import ModelSpec, load_spec
from mlflow_server.api.registry import Registry
from mlflow_server.model.pyfunc import read_version
from tests.conftest import AS_OF
from tests.support.training import factories
from tests.support.training.chains import open_run
from tests.training.conftest import OLD, train
from training.artifacts import PROOF, artifact_bytes
from training.data.frame import feature_columns, snapshot_rows
from training.model.estimators import estimator_problems
from training.model.scoring import version_scores
from training.reproduce import reproduce
from training.stages.dataset import dataset, load_frame
from training.stages.train import fit

NAME = "own_model"
FACTORIES = "tests.support.training.factories"
SHIPPED = load_spec("customer_churn_model").model_dump(exclude={"estimators"})
GATE = {"metric": "log_loss", "rule": "better_than_baseline"}
EASY_GATE = {"metric": "auc", "rule": "at_least", "value": 0.5}
FEW = {"feature": "days_since_last_order", "below": 15}
"""In the format of a library each member takes long: its latency, and what moves its score."""
SERVING = {"missing_features": "refuse"}
"""Without a format."""


def spec_of(**changes):
    names = {"name": NAME, "experiment": NAME, "gates": [GATE], "population": FEW}
    return ModelSpec.model_validate(SHIPPED | names | changes)


def by_function(name, **parameters):
    function = f"{FACTORIES}:{name}"
    return spec_of(training={"function": function, "parameters": parameters})


def by_factory(**changes):
    kind = f"{FACTORIES}:xgboost_behind_a_scaler"
    return spec_of(estimators=[{"name": "mine", "type": kind}], **changes)


SPEC = by_function("train", leaves=[3, 15])


@pytest.fixture(scope="module")
def trained(tracked):
    factories.calls.clear()
    return train(tracked, SPEC, AS_OF, "own training")


def test_training_code_gets_the_rows_before_the_gap_and_no_test_row(tracking, trained):
    _, plan = load_frame(tracking, trained.run_id)
    rows, folds, parameters = factories.calls[0]
    assert rows.columns.tolist() == [*SPEC.features, "label"]
    assert rows.index.names == ["customer_id", "event_timestamp"]
    assert len(folds) > 0
    frames = [(rows, plan.train)]
    for (train_rows, validation), fold in zip(folds, plan.folds, strict=True):
        frames += [(train_rows, fold.train), (validation, fold.validation)]
        assert fold.validation[-1] < plan.test[0]
    for frame, snapshots in frames:
        times = frame.index.get_level_values("event_timestamp")
        assert {*times} == {snapshot.start for snapshot in snapshots}
    expected = {"seed": SPEC.seed, "features": SPEC.features, "leaves": [3, 15]}
    assert parameters == expected


def test_a_model_of_training_code_is_registered_with_its_figures_and_reproduced(
    tracked, tracking, trained
):
    assert trained.outcome.endswith("is in production, the first one")
    run = tracking.run(trained.run_id)
    assert run.params["chosen_by"] == "training code of its own"
    assert run.metrics["training/leaves"] in {3, 15}
    assert run.metrics["test/log_loss"] < run.metrics["baseline/log_loss"]
    frame, plan = load_frame(tracking, trained.run_id)
    rows = snapshot_rows(frame, plan.test)
    served = version_scores(tracked, SPEC, trained.version, rows)
    model, _ = factories.train(*factories.calls[0])
    expected = model.predict_proba(feature_columns(SPEC, rows))[:, 1]
    assert served.threshold == 0.25
    assert np.abs(served.scores - expected).max() < 1e-6
    report = reproduce(tracked, NAME, trained.version)
    assert report.reproduced, report.summary()


@pytest.mark.journey
def test_a_model_with_different_scores_in_the_format_of_the_spec_is_refused(
    tracked, trained
):
    spec = by_factory(serving=SERVING | {"format": "onnx"})
    report = train(tracked, spec, OLD, "scaler")
    assert report.version is None
    reason = "the served file scores differently from the fitted model: real: largest"
    assert reason in report.outcome
    assert report.outcome.endswith("docs/how-to/own-model.md")
    assert Registry(tracked).production(NAME) == trained.version


@pytest.mark.journey
def test_a_model_that_scores_otherwise_as_onnx_has_the_format_of_its_library(
    tracked, tracking, trained, caplog
):
    spec = by_factory(serving=SERVING, gates=[EASY_GATE])
    report = train(tracked, spec, OLD, "native")
    assert report.version is not None, report.outcome
    assert "served in the format of its library, by a process of its own" in caplog.text
    registry = Registry(tracked)
    served, _ = read_version(registry, registry.version(NAME, report.version))
    assert served.loader == "mlflow.sklearn"
    proof = json.loads(artifact_bytes(tracking, report.run_id, PROOF))
    assert (proof["reasons"], proof["largest_difference"]) == ([], 0.0)
    rebuilt = reproduce(tracked, NAME, report.version)
    assert rebuilt.reproduced, rebuilt.summary()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (by_function("returns_no_figures"), "found a ColumnTransformer without predict_proba"),
        (by_function("train"), r"own_model: \[training\] .*KeyError: 'leaves'"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_served_ends_the_training_with_one_line(
    tracked, spec, message
):
    assert [*estimator_problems(spec)] == []
    run_id = open_run(tracked, spec, OLD, spec.training.function)
    dataset(tracked, spec, run_id)
    with pytest.raises(TrainingError, match=message) as refused:
        fit(tracked, spec, run_id)
    assert "\n" not in str(refused.value)
