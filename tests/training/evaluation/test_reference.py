"""What training stores of its evaluation for windows to be compared with."""

import numpy as np
import pytest

from mlflow_server.api.pages import CARD
from mlflow_server.api.registry import Registry
from tests.training.conftest import SPEC
from training.artifacts import artifact_bytes
from training.check import wide_features
from training.data.frame import feature_columns, snapshot_rows
from training.evaluation.metrics import all_metrics
from training.evaluation.reference import load_reference
from training.model.scoring import version_scores
from training.stages.dataset import load_frame


@pytest.fixture(scope="module")
def reference(tracked, second):
    return load_reference(tracked, Registry(tracked).version(SPEC.name, second.version))


def test_a_reference_has_the_evaluated_rows_with_the_scores_of_training(
    tracked, tracking, second, reference, evaluation
):
    frame, plan = load_frame(tracking, second.run_id)
    tested = snapshot_rows(frame, plan.test)
    scored = version_scores(tracked, SPEC, second.version, tested).rounded()
    rows = reference.rows
    assert list(rows) == [*SPEC.features, "score", "label"]
    assert rows[[*SPEC.features]].equals(feature_columns(SPEC, tested))
    assert np.array_equal(rows["score"], scored.scores)
    assert np.array_equal(rows["label"], tested["label"])
    metrics = all_metrics(rows["label"].to_numpy(), scored, SPEC.costs)
    assert reference.evaluated == evaluation.challenger == pytest.approx(metrics)
    assert reference.threshold == evaluation.threshold == scored.threshold
    assert reference.snapshot == plan.test[-1].start


def test_check_names_features_that_vary_much_between_snapshots(
    tracked, tracking, second, reference
):
    spread = reference.spread
    assert spread.basis == "snapshots"
    assert spread.psi.keys() == SPEC.features.keys()
    card = artifact_bytes(tracking, second.run_id, CARD).decode()
    assert "newest snapshots of the training frame" in card
    monitoring = SPEC.monitoring.model_copy(update={"monitor_only": ()})
    lines = wide_features(tracked, SPEC.model_copy(update={"monitoring": monitoring}))
    names = [line.split(": ")[1] for line in lines]
    assert names == list(spread.wide_features(monitoring))
    remedy = '[monitoring.monitor_only] customer_tenure_days = "why"'
    assert any(line.endswith(remedy) for line in lines)
