"""Rows of numbers, to score."""

from tests.serving.conftest import SPEC, contract

NUMBERS = SPEC.model_copy(
    update={"task": "regression", "threshold": None, "costs": None}
)


NUMBER = contract().model_copy(update={"threshold": None})
