"""Models as people leave them in MLflow are served with their scores, or refused by a sentence."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest

from core.project import CLONE
from core.spec import load_spec
from mlflow_server.manifest import DTYPES, LookupSpecification, ModelManifest, sha256
from mlflow_server.model.foreign import class_names, describe
from serving.versions.model import OnnxSession, score
from serving.versions.pyfunc_process import PyfuncSession
from tests.support.feature_repo.team import MODEL, SPEC
from tests.support.tools.preloaded import commands_folder
from tests.support.training.adoptions import converted
from training.model.scoring import session_inputs

LANDING = [
    "by_position", "hist_boosting", "linear_of_readings", "names", "xgb_booster_stopped",
    "lgb_stopped", "onnx_map_of_names", "onnx_tensors", "null_text", "xgb_rank",
]  # fmt: skip
NAMES = (
    (CLONE / "tests" / "support" / "training" / "zoo" / "names.txt").read_text().split()
)
NIGHT = [
    pytest.param(name, marks=pytest.mark.nightly)
    for name in NAMES
    if name not in LANDING
]
EXACT = 1e-6
KINDS = {
    "bool": "bool",
    "float32": "float32",
    "float64": "double",
    "int32": "int32",
    "int64": "int64",
    "object": "string",
}
"""Types of a spec, by those of the rows."""
pytestmark = pytest.mark.journey


@pytest.fixture(scope="module")
def zoo(request, tmp_path_factory):
    """The folder of the models that are asked for, one folder each."""
    names = [
        item.callspec.params["name"]
        for item in request.session.items
        if item.module is request.module and "name" in item.callspec.params
    ]
    folder = tmp_path_factory.mktemp("zoo")
    command = [commands_folder() / "python", "-m", "tests.support.training.zoo"]
    subprocess.run([*command, folder, *names], cwd=CLONE, check=True)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spec")
    # Without a label no gate has to fit the task.
    text = SPEC.partition("[[estimators]]")[0].replace("reached goal", "")
    (folder / f"{MODEL}.toml").write_text(text)
    return load_spec(MODEL, folder)


class Member:
    """A model of the zoo, as the program left it."""

    def __init__(self, folder, base):
        self.source = folder / "model"
        about = json.loads((folder / "about.json").read_text())
        self.refusal = about["refusal"]
        self.scores = np.load(folder / "scores.npy")
        rows = pd.read_parquet(folder / "rows.parquet")
        features = {name: KINDS[str(kind)] for name, kind in rows.dtypes.items()}
        is_binary = about["task"] == "classification"
        serving = {"trusted_types": tuple(about["trusted"])}
        self.spec = base.model_copy(
            update={
                "features": about["features"] or features,
                "feature_service": "",
                "task": about["task"],
                "classes": tuple(about["classes"]),
                "threshold": 0.5 if is_binary else None,
                "costs": base.costs if is_binary else None,
                "serving": base.serving.model_copy(update=serving),
            }
        )
        self.rows = pd.DataFrame(
            {
                name: self._column(rows[name], kind)
                for name, kind in self.spec.inputs.items()
            }
        )

    def _column(self, values, kind):
        """Return a column as the frame of a training has it."""
        if kind == "string":
            return values.astype(object).where(values.notna(), "__missing__")
        return values.astype(DTYPES[kind])

    def require(self, scores):
        """Require the scores that the library gave."""
        found = np.asarray(scores, np.float64)
        assert found.shape == self.scores.shape
        unit = 1.0
        if self.spec.task == "regression":
            unit = np.maximum(np.abs(self.scores), np.abs(self.scores).mean())
        assert (np.abs(found - self.scores) / unit).max() <= EXACT


@pytest.mark.parametrize("name", [*LANDING, *NIGHT])
def test_a_model_is_served_with_its_scores_or_refused_by_a_sentence(
    zoo, base, tmp_path, monkeypatch, name
):
    monkeypatch.setenv("GYRE_ADOPT_PICKLES", "true")
    member = Member(zoo / name, base)
    frame = member.rows.replace({"__missing__": None})
    result, model = converted(None, member.spec, member.source, frame, tmp_path)
    if member.refusal:
        assert member.refusal in result.error
        return
    assert result.error == ""
    assert result.proof.reasons == ()
    if result.loader == "mlflow.onnx" or name in LANDING:
        member.require(served(tmp_path, member.spec, result, member.rows))
    else:  # a process for each takes long
        columns = session_inputs(member.spec.inputs, member.rows)
        member.require(model.run([], columns)[0])


def served(folder, spec, result, rows):
    """Return the scores of a worker's session."""
    contract = ModelManifest(
        model=spec.name,
        loader=result.loader,
        entity_key=spec.entity_key,
        feature_service="",
        features=spec.features,
        defaults=rows.iloc[0].to_dict(),
        threshold=spec.threshold,
        classes=spec.classes,
        as_of="2026-11-30T00:00:00+00:00",
        lookup=LookupSpecification(feast="", online_store=""),
        interface=result.interface,
    )
    contract = ModelManifest.model_validate_json(contract.model_dump_json())
    file = folder / contract.file
    if result.loader == "mlflow.onnx":
        session = OnnxSession(file, contract)
    else:
        session = PyfuncSession(
            file, contract, sha256(file), spec.serving.trusted_types
        )
    try:
        return score(session, contract, rows.to_dict("records"))
    finally:
        session.close()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("names", ["early", "late", "never"]),
        ("xgb_booster_stopped", ["0", "1"]),
        ("lgb_stopped", ["0", "1"]),
        ("linear_of_readings", []),
        ("onnx_map_of_names", None),
        ("null_text", None),
    ],
)
def test_the_classes_of_a_model_are_known_before_it_is_adopted(zoo, name, classes):
    assert class_names(describe(zoo / name / "model")) == classes
