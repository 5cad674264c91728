"""The empty FastAPI that ours is measured beside: the same body validated, a constant answered.

uvicorn with httptools and uvloop, the collector frozen after the start, as in a worker.
"""

from __future__ import annotations

import gc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from serving.schemas import build_schemas
from stack.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MODEL = "customer_churn_model"
"""Whom all of it is about: the shipped model, in production in a home of its own."""
COMMAND = "-m uvicorn benchmarks.empty:create_app --factory --http httptools --loop uvloop"


@asynccontextmanager
async def frozen(_app: FastAPI) -> AsyncIterator[None]:
    gc.collect()
    gc.freeze()
    yield


def create_app() -> FastAPI:
    body = build_schemas(load_spec(MODEL)).request
    app = FastAPI(lifespan=frozen)

    async def empty(row: body) -> dict[str, float]:  # type: ignore[valid-type]  # noqa: ARG001
        return {"probability": 0.5}

    empty.__annotations__["row"] = body
    app.post("/predict")(empty)
    return app
