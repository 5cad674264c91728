"""BentoML on a skops file, in batches, and on an ONNX file; the input is typed as in its manual."""

import os

import bentoml
import numpy as np
import onnxruntime as ort
import pandas as pd
import skops.io
from pydantic import BaseModel

KINDS = {"tensor(int64)": np.int64, "tensor(double)": np.float64}
QUIET = {
    "workers": 1, "metrics": {"enabled": False}, "tracing": {"sample_rate": 0.0},
    "logging": {"access": {"enabled": False}},
}  # fmt: skip


class Row(BaseModel):
    total_orders_30d: int
    total_orders_90d: int
    total_spend_30d: float
    total_spend_90d: float
    lifetime_orders: int
    lifetime_value: float
    avg_order_value: float
    customer_segment: str
    days_since_last_order: int
    customer_tenure_days: int


class Score(BaseModel):
    probability: float


@bentoml.service(**QUIET)
class Sklearn:
    def __init__(self) -> None:
        path = os.environ["MODEL_FILE"]
        trusted = skops.io.get_untrusted_types(file=path)  # our own file
        self.model = skops.io.load(path, trusted=trusted)

    @bentoml.api(batchable=True, max_batch_size=16, max_latency_ms=1000)
    async def predict(self, rows: list[Row]) -> list[Score]:
        frame = pd.DataFrame([row.__dict__ for row in rows])
        found = self.model.predict_proba(frame)[:, 1].tolist()
        return [Score(probability=score) for score in found]


@bentoml.service(**QUIET)
class Onnx:
    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["MODEL_FILE"]
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.types = {i.name: KINDS.get(i.type, np.object_) for i in self.session.get_inputs()}

    @bentoml.api
    async def predict(self, row: Row) -> Score:
        feed = {name: np.array([getattr(row, name)], kind) for name, kind in self.types.items()}
        return Score(probability=float(self.session.run(["score"], feed)[0][0]))
