"""Versions whose scores are not what their task wants."""

from __future__ import annotations

import pytest

from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    digest_tags,
)
from serving.errors import ModelRefusedError
from serving.opening import open_version
from tests.serving.conftest import SPEC, contract, tiny_onnx

NUMBERS = SPEC.model_copy(
    update={"task": "regression", "threshold": None, "costs": None}
)
NUMBER = contract().model_copy(update={"threshold": None})


@pytest.mark.parametrize(
    ("served", "score", "spec", "reason"),
    [
        (contract(), "Identity", SPEC, r"the defaults score \[-88\.\d+\], not a prob"),
        (NUMBER, "Log", NUMBERS, r"the defaults score \[nan\], not a finite number"),
        (NUMBER, "Identity", SPEC, "serving.json: its task is not classification"),
        (contract(), "Sigmoid", NUMBERS, "serving.json: its task is not regression"),
    ],
)
def test_a_version_that_does_not_answer_as_its_task_wants_is_refused(
    tmp_path, served, score, spec, reason
):
    (tmp_path / ONNX_FILE).write_bytes(tiny_onnx(-89.0, score).SerializeToString())
    (tmp_path / CONTRACT_FILE).write_text(served.model_dump_json())
    with pytest.raises(ModelRefusedError, match=reason):
        open_version(tmp_path, digest_tags(tmp_path), spec)
