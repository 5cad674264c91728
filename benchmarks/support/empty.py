"""The empty FastAPI route that ours is measured beside: the same body, a constant answered."""

from __future__ import annotations

import gc

from fastapi import FastAPI

from core.spec import load_spec
from serving.scoring.schemas import field_types, object_type


def create_app() -> FastAPI:
    app = FastAPI()

    async def empty(row: object) -> dict[str, float]:  # noqa: ARG001
        return {"probability": 0.5}

    spec = load_spec("customer_churn_model")
    features = object_type("Features", field_types(spec.features), {})
    key = field_types(spec.entity_key)
    empty.__annotations__["row"] = object_type("Row", key, {"features": features})
    app.post("/predict")(empty)
    gc.collect()
    gc.freeze()  # as a worker does
    return app
