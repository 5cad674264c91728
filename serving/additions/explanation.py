"""`POST /explain`: what each feature contributes to a prediction.

Contributions are Shapley values against rows of the training frame.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.shapley import COALITIONS, Columns, shapley_values
from mlflow_server.manifest import SCORE, rounded_one
from serving.errors import OverloadedError
from serving.http.edge import json_bytes
from serving.http.openapi import Document
from serving.protocols import predict
from serving.protocols.endpoint import (
    Answers,
    Reading,
    Rows,
    ScoringRoute,
    answer_contents,
)
from serving.repository import Deployment
from serving.scoring.rows import Answer
from serving.scoring.scorer import Scorer
from serving.versions.model import LoadedModel, columns

PROCESS_ROWS = 128
"""Rows that a version's own process scores at once for an explanation, and its coalitions."""
_explaining = asyncio.Lock()
"""One explanation at a time in a worker, of any model."""


def read(model: Deployment, body: bytes) -> Reading:
    rows, _ = predict.read_row(model, body)

    def write(answers: Answers) -> bytes:
        content = answer_contents(model, rows, answers)[0]
        for name in ("request_id", "logged"):  # nothing is logged
            del content[name]
        return json_bytes({**content, **answers[0].line["explanation"]})

    return rows, write


async def answer(scorer: Scorer, rows: Rows, received: datetime) -> Answers:
    """Answer one row, and add the explanation to its line, which is not logged."""
    if _explaining.locked():
        raise OverloadedError("another explanation is under way: try again")
    async with _explaining:
        model, line = await scorer.score(rows[0], received)
        explanation = await asyncio.to_thread(
            explain_score, model, line["features"], line["prediction"]
        )
    return [Answer({**line, "explanation": explanation}, logged=False)]


def explain(model: Deployment) -> Document:
    """Answer as /predict does, and say what each feature contributes. Nothing is logged."""
    return Document(model.schemas.row, predict.example(model))


def explain_score(
    model: LoadedModel, features: Mapping[str, Any], prediction: float
) -> dict[str, Any]:
    """Say what each feature contributes to a row's score, of many classes the predicted one's.

    It scores thousands of rows, in parts that a prediction can wait for.

    Args:
        model: The version that answered.
        features: Features of the row.
        prediction: Prediction of the row.

    Returns:
        `model`; `expected`, the mean score of the background; `contributions`, largest first. The
        last two add up to the score.

    """
    contract = model.contract
    part_rows = COALITIONS if model.session.thread is None else PROCESS_ROWS
    background = columns(contract, contract.background or [contract.defaults])
    means, contributions = shapley_values(
        partial(_score_parts, model, part_rows),
        columns(contract, [features]),
        background,
        part_rows,
    )
    column = int(prediction) if contract.classes else 0
    scale = 0.5 if contract.classes else contract.threshold
    parts = {}
    order = np.argsort(-np.abs(contributions[:, column]), kind="stable")
    names = [*contract.features]
    for position in order.tolist():
        name = names[position]
        contribution = rounded_one(float(contributions[position, column]), scale)
        parts[name] = {"value": features[name], "contribution": contribution}
    return {
        "model": contract.model,
        "expected": rounded_one(float(means[column]), scale),
        "contributions": parts,
    }


def _score_parts(model: LoadedModel, part_rows: int, rows: Columns) -> NDArray[Any]:
    """Score rows, a part at a time, where the version scores."""
    row_count = len(next(iter(rows.values())))
    scores: list[Any] = []
    for start in range(0, row_count, part_rows):
        end = start + part_rows
        part = {name: column[start:end] for name, column in rows.items()}
        run = partial(model.session.run, [SCORE], part)
        thread = model.session.thread
        scores += run() if thread is None else thread.submit(run).result()
    return np.concatenate(scores)


SCORING = [
    ScoringRoute(
        tag=predict.TAG,
        paths=("/explain", "/models/{name}/explain"),
        read=read,
        document=explain,
        limit=predict.ROW_LIMIT,
        answer=answer,
    )
]
