"""Open Inference Protocol (V2) over HTTP, with its binary tensors.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and, for tensors behind the JSON, https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import re
import struct
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import KSERVE, json_response
from serving.errors import InvalidRequestError, NoModelError, NotFoundError
from serving.openapi import Operation
from serving.protocols import (
    Parsed,
    PredictRoute,
    Protocol,
    rows_from,
    scored,
    version_of,
)
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, MAX_ROWS, Schemas
from serving.scorer import Answer

TAG = "Open Inference (V2)"
JSON_BYTES = "inference-header-content-length"
BINARY = "application/octet-stream"
NAMES = {"float32": "FP32", "double": "FP64", "timestamp": "BYTES", "string": "BYTES"}
"""Of types that are not called by their own name, such as INT64."""
DTYPES = {"INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
Datatype = Literal[*DTYPES, "BYTES"]  # type: ignore[valid-type]
OUTPUTS = {
    "score": "FP64",
    "prediction": "FP64",
    "model_version": "BYTES",
    "request_id": "BYTES",
    "features_from": "BYTES",
    "in_population": "BOOL",
    "logged": "BOOL",
}
LENGTH = {
    "name": JSON_BYTES,
    "in": "header",
    "schema": {"type": "integer", "minimum": 0},
    "description": "Bytes of JSON, where binary tensors follow.",
}
Parameters = dict[str, str | int | float | bool]
Size = Annotated[int, Field(ge=1, le=MAX_ROWS)]


class Tensor(BaseModel):
    """As it is described, or answered."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float | bool | str] | None = None


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str = "onnx_onnxv1"
    inputs: list[Tensor]
    outputs: list[Tensor]


class Input(BaseModel):
    """Rows [N] or [N, 1] of a column of the row; its data here, or behind the JSON."""

    model_config = FORBID
    name: str
    shape: Annotated[list[Size], Field(min_length=1, max_length=2)]
    datatype: Datatype
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    model_config = FORBID
    name: Literal[*OUTPUTS]  # type: ignore[valid-type]
    parameters: Parameters = {}


class Inference(BaseModel):
    model_config = FORBID
    id: str | None = None
    model_name: str | None = None  # KServe's client repeats it of the path
    parameters: Parameters = {}
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[RequestedOutput] = []


class Inferred(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Tensor]


def read(model: Deployment, body: bytes, request: Request) -> Parsed:
    _version(model, request.path_params.get("version"))
    header, tensors = _split(body, request.headers.get(JSON_BYTES))
    sent = Inference.model_validate_json(header, strict=True)
    columns = _columns(sent.inputs, _inputs(model), tensors)
    records = [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    rows = rows_from(model, records)
    every = sent.parameters.get("binary_data_output")
    asked = {
        output.name: output.parameters.get("binary_data", every)
        for output in sent.outputs
    }
    binary = asked or dict.fromkeys(OUTPUTS, every)

    def write(answers: Sequence[Answer]) -> Response:
        found = scored(model, rows, answers)
        said = {} if sent.id is None else {"id": sent.id}
        said["model_name"] = request.path_params["name"]
        said["model_version"] = found[0]["model_version"]
        return _response(said, found, binary)

    return rows, write


def operation(path: str, _schemas: Schemas) -> Operation:
    text = "Score tensors by name, in JSON or binary behind it: the key, every feature, or both."
    return Operation(
        path, TAG, "Infer", text, Inference, Inferred, KSERVE, (LENGTH,), BINARY
    )


def _inputs(model: Deployment) -> dict[str, str]:
    types = model.spec.entity_key | model.holder.request_data | model.spec.features
    return {name: NAMES.get(kind, kind.upper()) for name, kind in types.items()}


def _version(model: Deployment, asked: str | None) -> str:
    serving = version_of(model)
    if asked not in {None, serving}:
        raise NotFoundError(f"version {asked} does not answer: version {serving} does")
    return serving


def _split(body: bytes, json_bytes: str | None) -> tuple[bytes, BytesIO]:
    if json_bytes is None:
        return body, BytesIO()
    end = int(json_bytes) if re.fullmatch("[0-9]{1,9}", json_bytes) else -1
    if not 0 <= end <= len(body):
        raise InvalidRequestError(
            f"{JSON_BYTES}: expected a number of bytes up to {len(body)}"
        )
    return body[:end], BytesIO(body[end:])


def _columns(
    inputs: Sequence[Input], datatypes: Mapping[str, str], behind: BytesIO
) -> dict[str, list[Any]]:
    """Values [N] of each input by name, taken from its JSON or, in their order, from `behind`."""
    columns: dict[str, list[Any]] = {}
    count = inputs[0].shape[0]
    for tensor in inputs:
        if tensor.name in columns:
            raise InvalidRequestError(f"inputs.{tensor.name}: is there twice")
        try:
            expected = datatypes.get(tensor.name, tensor.datatype)
            columns[tensor.name] = _values(tensor, expected, count, behind)
        except ValueError as exc:
            raise InvalidRequestError(f"inputs.{tensor.name}: {exc}") from exc
    if rest := len(behind.read()):
        raise InvalidRequestError(f"body: {rest} bytes behind the last tensor")
    return columns


def _values(tensor: Input, datatype: str, count: int, behind: BytesIO) -> list[Any]:
    """Values of a tensor (ValueError: they are not `count` of `datatype`)."""
    if tensor.shape not in ([count], [count, 1]):
        raise ValueError(f"shape {tensor.shape}, expected [{count}] or [{count}, 1]")
    if tensor.datatype != datatype:
        raise ValueError(f"datatype {tensor.datatype}, expected {datatype}")
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        values = _flat(tensor)
    elif type(size) is not int or size < 0 or tensor.data is not None:
        raise ValueError("binary_data_size is no size, or data is there too")
    else:
        raw = behind.read(size)
        if len(raw) < size:
            raise ValueError(f"{size} bytes announced, {len(raw)} sent")
        values = _decoded(raw, datatype)
    if len(values) != count:
        raise ValueError(f"{len(values)} values for shape {tensor.shape}")
    return values


def _flat(tensor: Input) -> list[Any]:
    """Data of [N], or of [N, 1] flat or nested."""
    if tensor.data is None:
        raise ValueError("neither data nor binary_data_size")
    if len(tensor.shape) == 1 or not any(
        isinstance(value, list) for value in tensor.data
    ):
        return tensor.data
    if not all(isinstance(value, list) and len(value) == 1 for value in tensor.data):
        raise ValueError(f"data is not of shape {tensor.shape}")
    return [value[0] for value in tensor.data]


def _decoded(raw: bytes, datatype: str) -> list[Any]:
    """Numbers of their datatype, or texts: four bytes of length, little endian, then UTF-8."""
    if datatype != "BYTES":
        if len(raw) % np.dtype(DTYPES[datatype]).itemsize:
            raise ValueError(f"{len(raw)} bytes are no {datatype}")
        numbers: list[Any] = np.frombuffer(raw, DTYPES[datatype]).tolist()
        return numbers
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise ValueError("the last text is cut short")
        try:
            texts.append(raw[at + 4 : end].decode())
        except UnicodeDecodeError as exc:
            raise ValueError(f"text {len(texts)} is no UTF-8") from exc
        at = end
    return texts


def _response(
    said: dict[str, Any], rows: list[Answer], binary: Mapping[str, Any]
) -> Response:
    """binary: the outputs to give, and whether behind the JSON."""
    outputs, behind = [], []
    for name, raw in binary.items():
        values, datatype, width = (
            [row[name] for row in rows],
            OUTPUTS[name],
            list[int](),
        )
        if isinstance(values[0], list):  # many classes
            values, width = [part for row in values for part in row], [len(values[0])]
        elif isinstance(values[0], str):
            datatype = "BYTES"
        output: dict[str, Any] = {
            "name": name,
            "datatype": datatype,
            "shape": [len(rows), *width],
        }
        if raw is True:
            behind.append(_encoded(values, datatype))
            output["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    content = {**said, "outputs": outputs}
    if not behind:
        return json_response(content)
    header = to_json(content)
    headers = {JSON_BYTES: str(len(header))}
    return Response(b"".join((header, *behind)), headers=headers, media_type=BINARY)


def _encoded(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(values, DTYPES[datatype]).tobytes()


SHARED: dict[str, Any] = {"tags": [TAG], "responses": KSERVE.responses}


def _tensors(model: Deployment) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a model takes and what it gives."""
    inputs, outputs = (
        [Tensor(name=n, datatype=kind, shape=[-1]) for n, kind in kinds.items()]
        for kinds in (_inputs(model), OUTPUTS)
    )
    if classes := model.spec.classes:
        outputs[0].shape, outputs[1].datatype = [-1, len(classes)], "BYTES"
    return inputs, outputs


def add_info(router: APIRouter, repository: ModelRepository) -> None:
    of_model, of_version = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"

    @router.get("/v2", summary="Server", **SHARED)
    async def server() -> dict[str, str | list[str]]:
        """Name this server and its extensions."""
        return {"name": "gyre", "version": "1", "extensions": ["binary_tensor_data"]}

    @router.get("/v2/health/live", summary="Live", **SHARED)
    async def live() -> dict[str, bool]:
        """Say that the server answers at all."""
        return {"live": True}

    @router.get("/v2/health/ready", summary="Ready", **SHARED)
    async def ready() -> dict[str, bool]:
        """Say that a version answers and its online store does; 503 until both do."""
        holder = repository.first().holder
        problem = holder.problem or holder.features.down
        if problem is not None:
            raise NoModelError(problem)
        return {"live": True, "ready": True}

    @router.get(of_model, summary="Model", response_model_exclude_none=True, **SHARED)
    @router.get(
        of_version, summary="Version", response_model_exclude_none=True, **SHARED
    )
    async def metadata(name: str, version: str | None = None) -> ModelMetadata:
        """Name the tensors that the model takes and gives; 404 for another version than answers."""
        model = repository.find(name)
        inputs, outputs = _tensors(model)
        versions = [_version(model, version)]
        return ModelMetadata(
            name=name, versions=versions, inputs=inputs, outputs=outputs
        )

    @router.get(f"{of_model}/ready", summary="Model ready", **SHARED)
    @router.get(f"{of_version}/ready", summary="Version ready", **SHARED)
    async def model_ready(
        name: str, version: str | None = None
    ) -> dict[str, str | bool]:
        """Say that a version of the model answers, or this one; 503 until one does."""
        _version(repository.find(name), version)
        return {"name": name, "ready": True}


PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
ROUTE = PredictRoute(PATHS, read, operation, binary=BINARY)
PROTOCOL = Protocol(
    KSERVE, lambda path: f"{path}/".startswith("/v2/"), (ROUTE,), add_info
)
