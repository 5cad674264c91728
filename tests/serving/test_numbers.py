"""A version that predicts numbers: what it may score, and what may come true of it."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    ServedModel,
    digest_tags,
)
from serving.errors import ModelRefusedError
from serving.model import wrong
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
        (NUMBER, "Identity", SPEC, "serving.json: it is of no classification"),
        (contract(), "Sigmoid", NUMBERS, "serving.json: it is of no regression"),
    ],
)
def test_a_version_that_does_not_answer_what_its_task_is_is_refused(
    tmp_path: Any, served: ServedModel, score: str, spec: Any, reason: str
) -> None:
    (tmp_path / ONNX_FILE).write_bytes(tiny_onnx(-89.0, score).SerializeToString())
    (tmp_path / CONTRACT_FILE).write_text(served.model_dump_json())
    with pytest.raises(ModelRefusedError, match=reason):
        open_version(tmp_path, digest_tags(tmp_path), spec)


def test_any_finite_number_is_an_answer_and_only_a_share_is_a_probability() -> None:
    for score in (-31.5, 0.5, 7e30):
        assert not wrong(NUMBER, score)
    for score in (float("inf"), float("nan")):
        assert wrong(NUMBER, score)
    assert not wrong(contract(), 0.5)
    assert wrong(contract(), -31.5)
