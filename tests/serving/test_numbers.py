"""Versions whose scores are not what their task wants."""

import pytest

from serving.errors import ModelRefusedError
from tests.serving.conftest import SPEC, contract, opened_version, tiny_onnx

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
def test_a_version_whose_scores_do_not_fit_its_task_is_refused(
    tmp_path, served, score, spec, reason
):
    with pytest.raises(ModelRefusedError, match=reason):
        opened_version(tmp_path, served, tiny_onnx(-89.0, score), spec)
