"""The stages in order, with real MLflow: from orders to a version in production."""

from __future__ import annotations

from datetime import timedelta

import mlflow
import numpy as np
import pytest

from mlflow_server.ledger import Ledger
from mlflow_server.registry import Registry
from mlflow_server.tracking import Tracking
from stack.errors import SettingsError, TrainingError
from stack.spec import load_spec
from tests.conftest import AS_OF
from training import chain, validate
from training.dataset import load_frame
from training.frame import at, content_hash, features

SPEC = load_spec("customer_churn_model")
OLD = AS_OF - timedelta(days=180)


def train(settings, spec, as_of, key, **more):
    return chain.train(settings, spec, as_of, key=key, reason=f"test {key}", who="test", **more)


@pytest.fixture(scope="module")
def first(tracked):
    """The version of 180 days ago, trained where nothing was registered yet."""
    return train(tracked, SPEC, OLD, "first")


@pytest.fixture(scope="module")
def second(tracked, first):
    return train(tracked, SPEC, AS_OF, "second")


def test_the_first_version_of_a_short_history_is_the_specs_first_estimator(tracked, first):
    run = Tracking(tracked).run(first.run_id)
    assert first.version == "1"
    assert run.params["estimator"] == SPEC.estimators[0].name
    assert run.params["chosen_by"] == "first of the spec: no folds"
    assert "champion_log_loss" not in run.metrics


def test_a_fresh_model_is_chosen_by_folds_and_replaces_the_old_one_by_its_gate(tracked, second):
    run, ledger = Tracking(tracked).run(second.run_id), Ledger(tracked)
    names = {estimator.name for estimator in SPEC.estimators}
    assert {f"fold_log_loss_{name}" for name in names} <= set(run.metrics)
    best = min(names, key=lambda name: run.metrics[f"fold_log_loss_{name}"])
    assert run.params["estimator"] == best
    ours, champion = run.metrics["log_loss"], run.metrics["champion_log_loss"]
    assert ours < champion < run.metrics["trivial_log_loss"]
    assert run.metrics["log_loss_minus_champion_upper"] <= 0.005 * champion
    assert Registry(tracked).production(SPEC.name) == "2"
    assert [(row.from_version, row.to_version, row.state) for row in ledger.rows(SPEC.name)] == [
        (None, "1", "applied"),
        ("1", "2", "applied"),
    ]
    ledger.close()


def test_what_is_in_the_mlflow_ui(tracked, second):
    tracking = Tracking(tracked)
    run = tracking.run(second.run_id)
    for metric in ("accuracy", "precision", "recall", "f1", "auc", "log_loss", "average_precision"):
        assert np.isfinite(run.metrics[metric])
        assert f"trivial_{metric}" in run.metrics
        assert f"champion_{metric}" in run.metrics
    client = mlflow.MlflowClient(tracked.mlflow_address)
    plots = {item.path for item in client.list_artifacts(second.run_id, "plots")}
    drawn = ("confusion_matrix", "roc", "precision_recall", "calibration", "feature_importance")
    assert plots == {f"plots/{name}.png" for name in drawn}
    dataset = client.get_run(second.run_id).inputs.dataset_inputs[0].dataset
    frame, plan = load_frame(tracking, second.run_id)
    digest = content_hash(at(frame, plan.train))
    assert dataset.digest == digest[:36]
    version = Registry(tracked).version(SPEC.name, second.version)
    assert version.tags["frame_sha256"] == digest
    lineage = {
        "git_commit", "lock_sha256", "spec_sha256", "definition_sha256", "seed", "as_of",
        "table.raw.orders", "sha256.model.onnx", "sha256.serving.json",
    }  # fmt: skip
    assert lineage <= set(version.tags)


def test_any_mlflow_client_can_load_what_is_in_production(tracked, second):
    mlflow.set_tracking_uri(tracked.mlflow_address)
    model = mlflow.pyfunc.load_model(f"models:/{SPEC.name}@production")
    frame, plan = load_frame(Tracking(tracked), second.run_id)
    rows = features(SPEC, at(frame, [plan.test])).head(5)
    scores = np.asarray(model.predict(rows)["score"])
    assert scores.shape == (5,)
    assert np.all((scores > 0) & (scores < 1))


def test_nothing_new_to_learn_ends_before_a_run_begins(tracked, second):
    before = len(Tracking(tracked).runs(SPEC.experiment))
    report = train(tracked, SPEC, AS_OF + timedelta(hours=1), "again")
    assert (report.run_id, report.version) == (None, None)
    assert "nothing new to learn" in report.outcome
    assert len(Tracking(tracked).runs(SPEC.experiment)) == before


def test_a_refused_gate_says_why_and_the_champion_stays(tracked, second):
    weakest = tuple(e for e in SPEC.estimators if e.type == "logistic_regression")
    spec = SPEC.model_copy(update={"estimators": weakest})
    report = train(tracked, spec, AS_OF, "refused")
    assert report.version is None
    assert "refused: log_loss minus that of version 2" in report.outcome
    assert Registry(tracked).production(SPEC.name) == "2"
    run = Tracking(tracked).run(report.run_id)
    assert run.tags["gate"].startswith("refused")
    assert run.status == "FINISHED"


def test_every_stage_twice_is_the_same_as_once(tracked, second):
    registry, versions = Registry(tracked), len(Registry(tracked).versions(SPEC.name))
    spec = SPEC.model_copy(update={"seed": 8, "gates": (SPEC.gates[0],)})
    run_id = chain.open_run(tracked, spec, OLD, key="twice", reason="r", who="t")
    again = chain.open_run(tracked, spec, OLD, key="twice", reason="r", who="t")
    assert run_id == again
    for stage in (chain.dataset, chain.fit, chain.evaluate, chain.gate):
        stage(tracked, spec, run_id)
        stage(tracked, spec, run_id)
    version = chain.register(tracked, spec, run_id)
    assert chain.register(tracked, spec, run_id) == version
    assert len(registry.versions(SPEC.name)) == versions + 1
    # As if it had been about a moment before the newest promotion, which was made by today's clock.
    Tracking(tracked).log(run_id, tags={"as_of": "2026-01-01T00:00:00+00:00"})
    outcome = chain.promote(tracked, spec, run_id, version, who="t", reason="r")
    assert "not promoted" in outcome
    assert chain.promote(tracked, spec, run_id, version, who="t", reason="r") == outcome
    assert registry.production(SPEC.name) == "2"


def test_one_cause_gives_one_run_unless_that_one_failed(tracked, second):
    spec = SPEC.model_copy(update={"seed": 9})

    def opened(key: str) -> str | None:
        return chain.open_run(tracked, spec, OLD, key=key, reason="r", who="t", cause="drift of x")

    run_id = opened("one")
    assert opened("one") == run_id
    assert opened("two") is None
    Tracking(tracked).finish(run_id, "FAILED")
    assert opened("two") not in {None, run_id}


def test_a_cause_is_answered_while_a_retraining_is_on_its_way_or_once_one_has_finished(
    tracked, second
):
    spec, cause, hour = SPEC.model_copy(update={"seed": 10}), "drift of y", timedelta(hours=1)

    def answered(hours: int, *decided: int) -> bool:
        times = [OLD + each * hour for each in decided]
        return validate.answered(tracked, spec, cause, times, OLD + hours * hour)

    def opened(hours: int) -> str | None:
        return chain.open_run(
            tracked, spec, OLD + hours * hour, key=f"y {hours}", reason="r", who="t", cause=cause
        )

    assert [answered(0), answered(12, 0), answered(13, 0)] == [False, True, False]  # none began
    assert opened(0) is not None
    assert [answered(1, 0), answered(12, 0), answered(13, 0)] == [True, True, False]  # no end
    assert opened(12) is None
    validate.fail_run(tracked, spec, "y 0")
    assert [answered(1, 0), answered(2, 0, 1)] == [False, True]
    run_id = opened(13)
    assert run_id is not None
    Tracking(tracked).finish(run_id, "FINISHED")
    validate.fail_run(tracked, spec, "y 13")  # too late: it has finished
    assert answered(1000, 0, 1, 13)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": SPEC.features | {"nonsense": "int64"}}, r"nonsense: customer_churn_v1 gives"),
        ({"features": SPEC.features | {"lifetime_value": "int64"}}, r"value: expected double"),
        ({"label": "nonsense"}, r"label: 'nonsense' is not of orders: churned_90d"),
    ],
)
def test_a_spec_that_asks_for_what_is_not_there(tracked, change, message):
    with pytest.raises(SettingsError, match=message):
        train(tracked, SPEC.model_copy(update=change), AS_OF, "bad")


def test_before_any_label_has_matured(tracked):
    with pytest.raises(TrainingError, match="no label has matured"):
        train(tracked, SPEC, AS_OF - timedelta(days=360), "early")
