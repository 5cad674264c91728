"""A version is built again from what its run stored: the same, or the reason why not."""

import json
import re

from mlflow_server.api.registry import Registry
from mlflow_server.api.tracking import Tracking
from tests.mlflow_server.conftest import client
from tests.training.conftest import SPEC, other_hashes
from training.artifacts import ESTIMATOR, artifact_bytes
from training.reproduce import reproduce


def reproduced_from(settings, trained, file, changes):
    """Build a version again while a JSON file of its run has other values."""
    api = client(settings)
    stored = artifact_bytes(Tracking(settings), trained.run_id, file).decode()
    other = json.dumps(json.loads(stored) | changes)
    api.log_text(trained.run_id, other, file)
    try:
        return reproduce(settings, SPEC.name, trained.version)
    finally:
        api.log_text(trained.run_id, stored, file)


def files(settings):
    return {path for path in settings.home.rglob("*") if "mlflow" not in str(path)}


def test_a_version_is_reproduced_to_the_byte_and_no_file_changes(
    tracked, first, second
):
    before = files(tracked)
    for trained in (first, second):
        report = reproduce(tracked, SPEC.name, trained.version)
        assert report.reproduced, report.summary()
        assert report.inputs == {}
        assert report.largest_difference == 0
        assert {"model.onnx", "serving.json"} < set(report.results)
    assert files(tracked) == before
    outcomes = {first.version: True, second.version: True}
    assert Registry(tracked).reproduced(SPEC.name) == outcomes


def test_a_changed_estimator_is_reported_as_a_difference_of_the_results(tracked, first):
    parameters = SPEC.estimators[0].parameters | {"n_estimators": 5}
    report = reproduced_from(tracked, first, ESTIMATOR, {"parameters": parameters})
    assert not report.reproduced
    assert report.results["model.onnx"]
    assert report.largest_difference > 0
    assert "because: all inputs are equal" in report.summary()
    assert Registry(tracked).reproduced(SPEC.name)[first.version] is False


def test_differing_inputs_with_equal_results_are_named_and_refuse_no_version(
    tracked, first
):
    """Another lock file, code and spec than the version names."""
    hashes = ("lock_sha256", "code_sha256")
    with other_hashes(tracked, first.version, *hashes):
        report = reproduced_from(tracked, first, "spec.json", {"schedule": "@daily"})
    assert report.reproduced
    for tag in (*hashes, "spec_sha256"):
        line = f"without effect: {tag}: registered .*, now "
        assert re.search(line, report.summary())
