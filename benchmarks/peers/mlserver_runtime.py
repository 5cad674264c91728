"""A custom runtime of MLServer for an ONNX file."""

import os

import numpy as np
import onnxruntime as ort
from mlserver.codecs import NumpyCodec
from mlserver.model import MLModel
from mlserver.types import InferenceRequest, InferenceResponse

KINDS = {"tensor(int64)": np.int64, "tensor(double)": np.float64}


class Onnx(MLModel):
    async def load(self) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.environ["MODEL_FILE"]
        self._session = ort.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._types = {
            i.name: KINDS.get(i.type, np.object_) for i in self._session.get_inputs()
        }
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {
            i.name: np.array(i.data.root, self._types[i.name]).ravel()
            for i in payload.inputs
        }
        score = NumpyCodec.encode_output("score", self._session.run(["score"], feed)[0])
        return InferenceResponse(model_name=self.name, outputs=[score])
