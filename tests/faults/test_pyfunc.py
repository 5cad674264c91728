"""A version that ONNX cannot score, served by MLflow's pyfunc in a process of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest

from core.settings import PROJECT
from mlflow_server.pyfunc import ModelFile
from mlflow_server.served_model import CONTRACT_FILE, digest_tags
from serving.model import columns
from serving.opening import open_version
from tests.conftest import unused_port, wait_until
from tests.faults.conftest import standing_still, workers
from tests.faults.test_artifacts import alter, stored
from tests.faults.test_fetch import command_of
from tests.serving.conftest import SPEC, contract
from tests.training.factories import xgboost_behind_a_scaler
from training.metrics import rounded
from training.onnx_export import export, prove

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TRUSTED = ("xgboost.core.Booster", "xgboost.sklearn.XGBClassifier")
BESIDE = "model_beside"
"""An ONNX model of the same server."""


def opened(folder: Path, fitted: Any, **changed: Any) -> Any:
    """Contract and session of a version whose files are in `folder`."""
    ModelFile.native(fitted, TRUSTED, classes=2).write(folder)
    loader = "mlflow.sklearn"
    held = contract().model_copy(update={"loader": loader, **changed})
    (folder / CONTRACT_FILE).write_text(held.model_dump_json())
    trusting = SPEC.serving.model_copy(update={"trusted_types": TRUSTED})
    spec = SPEC.model_copy(update={"serving": trusting})
    return open_version(folder, digest_tags(folder), spec)


def test_rows_of_two_threads_are_not_mixed_up(tmp_path: Path, fitted: Any) -> None:
    """One exchange with the process at a time, in the session's own thread."""
    frame, _ = customers(100)
    expected = fitted.predict_proba(frame)[:, 1]
    held, session = opened(tmp_path, fitted)

    def scores(row: int) -> list[float]:
        one = columns(held, frame.iloc[[row]].to_dict("records"))
        answers = [session.thread.submit(session.run, (), one) for _ in range(20)]
        return [float(answer.result()[0][0]) for answer in answers]

    with closing(session), ThreadPoolExecutor(4) as threads:
        found = [*threads.map(scores, range(len(frame)))]
    assert found == [[float(score)] * 20 for score in expected]


def test_a_version_that_fails_its_first_row_leaves_no_process(
    tmp_path: Path, fitted: Any
) -> None:
    before = {child.pid for child in psutil.Process().children()}
    features = {**SPEC.features, "no_default": "int64"}
    by_feast = contract().lookup.model_copy(update={"unsupported": "for the test"})
    with pytest.raises(KeyError, match="no_default"):
        opened(tmp_path, fitted, features=features, lookup=by_feast)

    def left() -> list[str]:
        children = [c for c in psutil.Process().children() if c.pid not in before]
        lines = [" ".join(command_of(child)) for child in children]
        return [line for line in lines if "tracker" not in line and line]

    wait_until("its end", lambda: left() == [])


def customers(rows: int = 2_000) -> tuple[pd.DataFrame, np.ndarray]:
    chance = np.random.default_rng(5)
    draw = {
        "int64": lambda: chance.integers(0, 300, rows),
        "double": lambda: chance.exponential(60, rows),
        "string": lambda: chance.choice(["repeat", "loyal"], rows),
    }
    frame = pd.DataFrame({name: draw[kind]() for name, kind in SPEC.features.items()})
    churned = frame.days_since_last_order + chance.normal(0, 80, rows) > 150
    return frame, churned.astype(int).to_numpy()


@pytest.fixture(scope="module")
def fitted() -> Any:
    frame, churned = customers()
    return xgboost_behind_a_scaler(SPEC.features).fit(frame, churned)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose spec trusts XGBoost's types, and a second model."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "feature_repo").symlink_to(PROJECT / "feature_repo")
    (folder / "models").mkdir()
    spec = (PROJECT / "models" / f"{SPEC.name}.toml").read_text()
    beside = spec.replace(SPEC.name, BESIDE)
    (folder / "models" / f"{BESIDE}.toml").write_text(beside)
    native = f'missing_features = "defaults"\nformat = "native"\ntrusted_types = {[*TRUSTED]}'
    spec = spec.replace('missing_features = "defaults"', native)
    (folder / "models" / f"{SPEC.name}.toml").write_text(spec)
    return folder


def child_of(process: Any) -> psutil.Process:
    """The one process that scores for the one worker."""
    (worker,) = workers(process)
    found = [c for c in worker.children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(found) == 1, found
    return found[0]


def processes(client: Any) -> float:
    lines = [
        m
        for m in client.get("/metrics").text.splitlines()
        if m.startswith("gyre_pyfunc_p")
    ]
    return sum(float(line.split()[-1]) for line in lines)


def predict(client: Any, name: str = SPEC.name, features: Any = None) -> Any:
    body = {"customer_id": 4} | ({"features": features} if features else {})
    return client.post(f"/models/{name}/predict", json=body)


@pytest.fixture
def first_again(rig: Any, served: Any) -> Iterator[None]:
    """Version `first` is back in production after the test."""
    yield
    rig.promote(served.first)
    rig.answers_as(served.client, served.first)


@contextmanager
def serving_native(
    rig: Any, native: ModelFile, project: Path
) -> Iterator[tuple[Any, Any, Path, str]]:
    """A server that answers by a version of `native`: a client, its process, home and version."""
    version = rig.register(0, model=native, loader=native.loader).version
    rig.promote(rig.register(0.5, name=BESIDE).version, BESIDE)
    rig.promote(version)
    home, port = rig.home_beside(), unused_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GYRE_PROJECT", str(project))
        with rig.serving(home=home, serving_port=port, serving_workers=1) as (
            client,
            process,
        ):
            rig.wait_until("both", lambda: predict(client, BESIDE).status_code == 200)
            rig.wait_until(
                "it", lambda: predict(client).json().get("model_version") == version
            )
            yield client, process, home, version
            child = child_of(process)
            (worker,) = workers(process)
            worker.kill()
            assert child.wait(600) is None  # it was no child of ours


@pytest.mark.usefixtures("first_again")
def test_a_version_that_onnx_cannot_score_answers_as_it_was_fitted_and_survives_its_process(
    rig: Any, served: Any, fitted: Any, project: Path
) -> None:
    """29: its process is killed; others do not notice."""
    frame, _ = customers()
    native = ModelFile.native(fitted, TRUSTED, classes=2)
    with (
        standing_still(served.process),  # it would try to load it, too
        serving_native(rig, native, project) as (client, process, _, _),
    ):
        check_answers(client, fitted, frame)
        check_that_a_kill_is_survived(client, process, rig)
        check_answers(client, fitted, frame)


@pytest.mark.nightly
@pytest.mark.usefixtures("first_again")
def test_of_a_version_that_onnx_cannot_score_what_is_altered_or_not_trusted_is_refused(
    rig: Any, served: Any, fitted: Any, project: Path
) -> None:
    """3; and what is right is explained, and scored by MLflow anywhere."""
    frame, _ = customers()
    onnx = ModelFile(export(fitted, SPEC.features).SerializeToString())
    assert not prove(fitted, onnx, frame, 7, features=SPEC.features).passed
    native = ModelFile.native(fitted, TRUSTED, classes=2)
    proof = prove(fitted, native, frame, 7, features=SPEC.features)
    assert (proof.passed, proof.largest_difference) == (True, 0.0)
    with serving_native(rig, native, project) as (client, process, home, version):
        said = f"version {version} is refused: ModelFailedError: UntrustedTypesFoundException"
        rig.wait_until(said, lambda: said in served.client.get("/status").text)
        mlflow.set_tracking_uri(rig.settings.mlflow_address)
        anywhere = mlflow.pyfunc.load_model(f"models:/{SPEC.name}/{version}")
        assert np.array_equal(anywhere.predict(frame), fitted.predict_proba(frame))
        check_that_an_answer_is_explained(client)
        check_that_an_altered_copy_is_refused(client, process, rig, home, version)
        check_that_other_versions_are_refused(client, rig, native)
        check_answers(client, fitted, frame)


def check_answers(client: Any, fitted: Any, frame: pd.DataFrame) -> None:
    """One row at a time, and many at once."""
    expected = rounded(fitted.predict_proba(frame)[:, 1], SPEC.threshold).tolist()
    rows = frame.to_dict("records")
    single = [predict(client, features=row).json()["probability"] for row in rows[:50]]
    assert single == expected[:50]
    body = [{"customer_id": 4, "features": row} for row in rows[:200]]
    many = client.post(f"/models/{SPEC.name}/predict/batch", json=body).json()
    assert [row["probability"] for row in many] == expected[:200]


def check_that_an_answer_is_explained(client: Any) -> None:
    """Through its process, between the predictions of others."""
    features = {**customers(1)[0].to_dict("records")[0], "days_since_last_order": 290}
    body = {"customer_id": 4, "features": features}
    with ThreadPoolExecutor(1) as beside:
        asked = beside.submit(client.post, f"/models/{SPEC.name}/explain", json=body)
        predicted = predict(client, features=features).json()["probability"]
        why = asked.result().json()
    parts = {name: each["contribution"] for name, each in why["contributions"].items()}
    assert why["probability"] == predicted
    assert why["expected"] + sum(parts.values()) == pytest.approx(predicted, abs=1e-5)
    assert next(iter(parts)) == "days_since_last_order"


def check_that_a_kill_is_survived(client: Any, process: Any, rig: Any) -> None:
    assert processes(client) == 1
    first, away = child_of(process), []

    def back() -> bool:
        assert predict(client, BESIDE).status_code == 200
        answer = predict(client)
        if answer.status_code != 200:
            away.append(answer)
            assert client.get("/health/ready").status_code in {200, 503}
        return bool(away) and answer.status_code == 200

    first.kill()
    rig.wait_until("its next process", back)
    assert {(a.status_code, a.headers["retry-after"]) for a in away} == {(503, "1")}
    assert "cannot score: its process" in away[-1].json()["detail"]
    assert processes(client) == 1
    assert child_of(process).pid != first.pid


def check_that_an_altered_copy_is_refused(
    client: Any, process: Any, rig: Any, home: Path, version: str
) -> None:
    file = home / "serving" / "models" / SPEC.name / version / "model.skops"
    whole = file.read_bytes()
    alter(file)
    child_of(process).kill()
    log = rig.folder / "serving.log"
    rig.wait_until("a refusal", lambda: f"{file}: its sha256 is not" in log.read_text())
    assert predict(client).status_code == 503
    ready = client.get("/status").json()["resources"][f"model {SPEC.name}"]
    assert ready["ok"] is False
    assert f"version {version} cannot score: its process ended" in ready["detail"]
    file.write_bytes(whole)
    rig.wait_until("an answer", lambda: predict(client).status_code == 200)


def check_that_other_versions_are_refused(
    client: Any, rig: Any, native: ModelFile
) -> None:
    foreign = rig.register(0, model=native, loader="mlflow.pyfunc.model").version
    rig.promote(foreign)
    refusals = [f"version {foreign} is refused: ValidationError: 1 validation error"]
    altered = rig.register(0, model=native, loader=native.loader).version
    alter(stored(rig, "model.skops"))
    for said in refusals:
        rig.wait_until(said, lambda s=said: s in client.get("/status").text)
    rig.promote(altered)
    said = f"version {altered} is refused: ModelRefusedError: model.skops: sha256 is"
    rig.wait_until(said, lambda: said in client.get("/status").text)
