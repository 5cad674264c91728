"""A version that predicts numbers: what it may score, and what may come true of it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mlflow_server.served_model import (
    CONTRACT_FILE,
    ONNX_FILE,
    ServedModel,
    digest_tags,
)
from serving.errors import ModelRefusedError
from serving.model import open_version, wrong
from serving.schemas import feedback_schema
from tests.serving.conftest import SPEC, contract, tiny_onnx

NUMBERS = SPEC.model_copy(
    update={"task": "regression", "threshold": None, "costs": None}
)
NUMBER = contract().model_copy(update={"threshold": None})


@pytest.mark.parametrize(
    ("served", "score", "spec", "told"),
    [
        (contract(), "Sigmoid", SPEC, None),
        (NUMBER, "Identity", NUMBERS, None),  # -88.88
        (
            contract(),
            "Identity",
            SPEC,
            r"the defaults score \[-88\.\d+\], not a probability",
        ),
        (NUMBER, "Log", NUMBERS, r"the defaults score \[nan\], not a finite number"),
        (NUMBER, "Identity", SPEC, "serving.json: it is of no classification"),
        (contract(), "Sigmoid", NUMBERS, "serving.json: it is of no regression"),
    ],
)
def test_a_version_answers_what_its_task_is(
    tmp_path: Any, served: ServedModel, score: str, spec: Any, told: str | None
) -> None:
    (tmp_path / ONNX_FILE).write_bytes(tiny_onnx(-89.0, score).SerializeToString())
    (tmp_path / CONTRACT_FILE).write_text(served.model_dump_json())
    tags = digest_tags(tmp_path)
    if told is None:
        assert open_version(tmp_path, tags, spec)[0] == served
    else:
        with pytest.raises(ModelRefusedError, match=told):
            open_version(tmp_path, tags, spec)


def test_any_finite_number_is_an_answer_and_only_a_share_is_a_probability() -> None:
    for found, as_number, as_class in (
        (0.5, True, True), (-31.5, True, False), (7e30, True, False),
        (float("inf"), False, False), (float("nan"), False, False),
    ):  # fmt: skip
        assert (not wrong(NUMBER, found), not wrong(contract(), found)) == (
            as_number,
            as_class,
        )


@pytest.mark.parametrize(
    "actual", ["0.5", "-7.25", "2", "1e999", '"1"', "true", "null"]
)
def test_what_came_true_is_0_or_1_unless_numbers_are_served_too(actual: str) -> None:
    line = f'{{"request_id": "a", "actual": {actual}}}'
    with pytest.raises(ValidationError):
        feedback_schema([SPEC]).model_validate_json(line)
    either = feedback_schema([SPEC, NUMBERS])
    if actual in {"0.5", "-7.25", "2"}:
        assert either.model_validate_json(line).actual == float(actual)
    else:
        with pytest.raises(ValidationError):
            either.model_validate_json(line)
