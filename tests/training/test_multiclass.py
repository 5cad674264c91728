"""A model of many classes: what it is held to, and all of its loop in a project of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

from core.errors import TrainingError
from core.settings import CLONE
from core.spec import ModelSpec, load_spec
from mlflow_server.pyfunc import ModelFile
from tests.conftest import AS_OF
from tests.preloaded import commands_folder
from training.estimators import build_pipeline
from training.frame import typed
from training.onnx_export import export, prove
from training.scoring import score

HERE = Path(__file__).with_name("deliveries")
CLASSES = ["early", "on_time", "late"]
SPEC = load_spec("delivery", HERE / "models")
FEATURES = {"parcels": "int64", "delay": "double", "region": "string"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["early", "late"]}, "classes: expected three or more different names, found"),
        ({"classes": ["early", "late", "late"]}, "classes: expected three or more different"),
        ({"task": "regression"}, r"classes: a regression has none, found early, on_time"),
        ({"threshold": 0.5}, "threshold: a multiclass has none"),
        ({"costs": {"action": 1, "loss": 2}}, "costs: a multiclass has none"),
        *(
            ({"gates": [{"metric": metric, "rule": "at_least", "value": 0}]},
             f"gates.0.metric: a multiclass has no {metric}")
            for metric in ("auc", "average_precision", "cost", "rmse", "largest_gap")
        ),
    ],
)  # fmt: skip
def test_what_a_spec_cannot_ask_of_many_classes_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelSpec.model_validate(SPEC.model_dump(exclude_unset=True) | changes)


def labelled(values, kind=None):
    return pa.table({"label": pa.chunked_array([pa.array(values, kind)])})


@pytest.mark.parametrize(
    "label",
    [labelled(["late", "early", None]), labelled([2, 0, None], pa.int32())],
    ids=["names", "positions"],
)
def test_a_label_is_a_name_or_its_position(label):
    found = typed(SPEC, label)["label"]
    assert (found.type, found.to_pylist()) == (pa.int64(), [2, 0, None])


@pytest.mark.parametrize("value", ["lost", 3, -1])
def test_a_label_of_no_class_is_named_with_the_file_and_its_key(value):
    said = r"label next_14d: expected early, on_time, late \(classes in delivery.toml\), or 0 to 2"
    with pytest.raises(TrainingError, match=f"{said}, found {value}"):
        typed(SPEC, labelled([value]))


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("logistic_regression", {}),
        ("hist_gradient_boosting", {"max_iter": 20}),
        ("random_forest", {"n_estimators": 20}),
        ("xgboost", {"n_estimators": 20}),
        ("lightgbm", {"n_estimators": 20}),
    ],
)
def test_each_short_name_scores_all_classes_in_onnx_as_it_was_fitted(kind, parameters):
    chance = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "parcels": chance.integers(0, 30, 2000),
            "delay": chance.normal(0, 4, 2000).round(2),
            "region": chance.choice(["north", "south"], 2000),
        }
    )
    y = np.digitize(frame["delay"] + chance.normal(0, 2, 2000), [-2, 2])
    with threadpool_limits(1):
        model = build_pipeline(kind, parameters, FEATURES, 7, "multiclass").fit(
            frame, y
        )
    onnx = export(model, FEATURES, 3)
    raw = ModelFile(onnx.SerializeToString(deterministic=True))
    assert [
        dim.dim_value for dim in onnx.graph.output[0].type.tensor_type.shape.dim
    ] == [0, 3]
    assert np.abs(score(raw, FEATURES, frame) - model.predict_proba(frame)).max() < 1e-5
    proof = prove(model, raw, frame, 7, features=FEATURES, threshold=None)
    assert (proof.passed, proof.flips) == (True, 0), proof.reasons
    if kind == "logistic_regression":
        model.fit(frame, (y + 1) % 3)
        assert (
            prove(model, raw, frame, 7, features=FEATURES, threshold=None).flips > 1000
        )


def write_parcels(path):
    """300 couriers with habits of their own, some parcels a week for 120 days."""
    chance, days, couriers = np.random.default_rng(5), 120, 300
    habit = np.repeat(chance.normal(0, 4, couriers), days)
    start = np.datetime64(AS_OF.replace(tzinfo=None), "us") - np.timedelta64(days, "D")
    seconds = chance.integers(0, 86_400, days * couriers) + 86_400 * np.tile(
        range(days), couriers
    )
    columns = {
        "parcel": np.arange(len(habit)),
        "courier": np.repeat(np.arange(couriers), days),
        "delivered_at": pa.array(
            start + seconds.astype("timedelta64[s]"), pa.timestamp("us", tz="UTC")
        ),
        "minutes_late": (habit + chance.normal(0, 6, len(habit))).round(2),
        "region": np.repeat(chance.choice(["north", "south"], couriers), days),
    }
    pq.write_table(
        pa.table(columns).filter(pa.array(chance.random(len(habit)) < 0.6)), path
    )


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the whole chain (delivery_chain.py) said in a project that is a folder of its own."""
    folder = tmp_path_factory.mktemp("deliveries")
    project, source = folder / "project", folder / "parcels.parquet"
    shutil.copytree(HERE, project)
    shutil.copy(CLONE / "feature_repo" / "feature_store.yaml", project / "feature_repo")
    write_parcels(source)
    # Feast, once imported by a test, turns on Prometheus's multi-process mode for all children.
    own = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("GYRE_", "PROMETHEUS_"))
    }
    done = subprocess.run(
        [commands_folder() / "python", "-m", "tests.training.delivery_chain",
         str(folder / "home"), str(source)],
        cwd=CLONE, capture_output=True, text=True, check=False,
        env=own | {"GYRE_PROJECT": str(project)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.nightly
def test_it_is_checked_trained_promoted_by_its_gates_and_built_again(said):
    findings, _ = said["check"]
    assert findings == []
    assert any("found late" in line for line in said["check_other"]), said[
        "check_other"
    ]
    assert [report["version"] for report in said["trained"]] == ["1", "2"]
    assert said["trained"][1]["outcome"] == "version 2 is in production, in place of 1"
    metrics, proof = said["metrics"], said["proof"]
    assert metrics["test/log_loss"] < metrics["baseline/log_loss"] < np.log(3) + 0.01
    assert metrics["test/f1"] > metrics["baseline/f1"] > 0
    assert metrics["training/leaves"] in {4, 8}
    unfit = {"test/auc", "test/cost", "test/largest_gap", "test/threshold"}
    assert unfit.isdisjoint(metrics)
    assert (proof["passed"], proof["flips"]) == (True, 0)
    same, summary = said["reproduced"]
    assert same, summary
    drawn = ["calibration.png", "confusion_matrix.png", "feature_importance.png"]
    assert said["plots"] == drawn
    words = re.sub(r"base64,[^\"]+", "", said["card"])
    assert (
        "the probability of each <code>next_14d</code>: early, on_time, late" in words
    )
    assert [
        w for w in ("threshold", "fairness", "AUC", "costs", "nan") if w in words
    ] == []


@pytest.mark.nightly
def test_every_protocol_answers_with_the_name_and_the_probability_of_each(said):
    answer, logged = said["served"], said["logged"]
    assert list(answer["probabilities"]) == CLASSES
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=2e-6)
    best = max(answer["probabilities"], key=answer["probabilities"].__getitem__)
    assert (answer["prediction"], answer["probability"]) == (
        best,
        answer["probabilities"][best],
    )
    parts = [*answer["probabilities"].values()]
    assert logged == {
        "prediction": CLASSES.index(best), "probability": max(parts), "probabilities": parts
    }  # fmt: skip
    for row in (said["v1"]["predictions"][0], said["mlflow"]["answers"][0]):
        assert (row["score"], row["prediction"]) == (parts, best)
        assert "probabilities" not in row
    assert said["mlflow"]["predictions"][0] == {"score": parts}
    outputs = {each["name"]: each for each in said["v2"]}
    assert (outputs["score"]["shape"], outputs["score"]["data"][:3]) == ([2, 3], parts)
    assert (outputs["prediction"]["datatype"], outputs["prediction"]["data"][0]) == (
        "BYTES",
        best,
    )
    described = {
        each["name"]: (each["datatype"], each["shape"]) for each in said["v2_outputs"]
    }
    assert (described["score"], described["prediction"]) == (
        ("FP64", [-1, 3]),
        ("BYTES", [-1]),
    )
    row = said["batch_row"]
    assert said["batch"] >= 290
    assert row["prediction"] == int(np.argmax(row["probabilities"]))
    assert row["probability"] == max(row["probabilities"])


@pytest.mark.nightly
def test_outcomes_are_names_or_positions_and_the_monitor_measures_by_them(said):
    predicted, actual = said["predicted"]
    figures, rows = said["monitor"]["figures"], len(actual)
    assert said["feedback"] == {"recorded": rows, "logged": True}
    assert said["monitor"]["left_out"] == {"no outcome of its task": 1}
    right = np.mean([a == b for a, b in zip(predicted[1:], actual[1:], strict=True)])
    assert figures["online/accuracy"] == pytest.approx(right)
    assert figures["online/log_loss"] == pytest.approx(
        said["metrics"]["test/log_loss"], abs=0.02
    )
    assert {
        "online/f1",
        "psi/score",
        "psi/predicted_class",
        "mean/score",
    } <= figures.keys()
    assert said["monitor"]["verdict"] == "ok", said["monitor"]["words"]
    assert said["experiment"] == {"log_loss": pytest.approx(figures["online/log_loss"])}
