"""What training stores of its evaluation for windows to be compared with."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import RegistryError
from mlflow_server.pages import CARD
from mlflow_server.registry import Registry, Version
from mlflow_server.tracking import Tracking
from tests.training.conftest import SPEC
from training.artifacts import read
from training.check import wide_features
from training.dataset import load_frame
from training.frame import at, features
from training.gate import load_evaluation
from training.reference import load_reference
from training.scoring import version_scores


@pytest.fixture(scope="module")
def reference(tracked, second):
    return load_reference(tracked, Registry(tracked).version(SPEC.name, second.version))


def test_a_run_reads_the_evaluated_rows_as_training_scored_them(
    tracked, second, reference
):
    frame, plan = load_frame(Tracking(tracked), second.run_id)
    tested = at(frame, plan.test)
    scored = version_scores(tracked, SPEC, second.version, tested).rounded()
    rows = reference.rows
    assert list(rows) == [*SPEC.features, "score", "label"]
    assert rows[[*SPEC.features]].equals(features(SPEC, tested))
    assert np.array_equal(rows["score"], scored.scores)
    assert np.array_equal(rows["label"], tested["label"])
    evaluation = load_evaluation(Tracking(tracked), second.run_id)
    assert reference.evaluated == evaluation.challenger
    assert reference.threshold == evaluation.threshold == scored.threshold
    assert (reference.features, reference.task) == (SPEC.features, "classification")
    assert reference.snapshot == plan.test[-1].start


def test_the_spread_of_its_newest_snapshots_is_in_card_and_check(
    tracked, second, reference
):
    """The reference is one moment."""
    spread = reference.spread
    assert spread.basis == "snapshots"
    assert spread.psi.keys() == SPEC.features.keys()
    card = read(Tracking(tracked), second.run_id, CARD).decode()
    assert "newest snapshots of the training frame" in card
    limits = SPEC.monitoring.model_copy(update={"monitor_only": ()})
    wide = spread.wide_features(limits)
    acting = SPEC.model_copy(update={"monitoring": limits})
    lines = wide_features(tracked, acting)
    assert [line.split(": ")[1] for line in lines] == list(wide)
    assert "customer_tenure_days" in wide
    ends = ('[monitoring.monitor_only] customer_tenure_days = "why"',)
    assert any(line.endswith(ends) for line in lines)


def test_check_says_nothing_of_windows_where_mlflow_does_not_answer(history):
    assert wide_features(history, SPEC) == []


def test_a_run_without_a_reference_is_an_error(tracked, second):
    run_id = Tracking(tracked).start_or_find_run(SPEC.experiment, "bare", "bare", {})
    version = Version(model=SPEC.name, version="9", run_id=run_id, tags={})
    with pytest.raises(RegistryError, match=r"reference\.parquet"):
        load_reference(tracked, version)
