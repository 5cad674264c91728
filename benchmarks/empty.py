"""The empty FastAPI route that ours is measured beside: the same body, a constant answered."""

from __future__ import annotations

import gc

from fastapi import FastAPI

from core.spec import load_spec
from serving.schemas import build_schemas


def create_app() -> FastAPI:
    app = FastAPI()

    async def empty(row: object) -> dict[str, float]:  # noqa: ARG001
        return {"probability": 0.5}

    empty.__annotations__["row"] = build_schemas(
        load_spec("customer_churn_model"), (), {}, ()
    ).request
    app.post("/predict")(empty)
    gc.collect()
    gc.freeze()  # as a worker does
    return app
