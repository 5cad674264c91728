"""Open Inference Protocol (V2) over HTTP, with its binary tensors.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and, for tensors behind the JSON, https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from serving.edge import ErrorForm, in_words, json_response
from serving.errors import InvalidRequestError, NoModelError, NotFoundError
from serving.protocols import PredictRoute, Protocol, Write, rows_from, scored, version_of
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, MAX_ROWS
from serving.scorer import Answer, PredictionRow

TAG = "Open Inference (V2)"
JSON_BYTES = "inference-header-content-length"
"""Header that says how much of a body is JSON; what follows are tensors."""
BINARY = "application/octet-stream"
NAMES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}
DTYPES = {"INT64": "<i8", "FP64": "<f8", "BOOL": "?"}
OUTPUTS = {
    "score": "FP64", "prediction": "FP64", "model_version": "BYTES", "request_id": "BYTES",
    "features_from": "BYTES", "in_population": "BOOL", "logged": "BOOL",
}  # fmt: skip
VERSION = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"},
           "description": "Answers if it is the version that serves."}  # fmt: skip
LENGTH = {"name": JSON_BYTES, "in": "header", "schema": {"type": "integer", "minimum": 0},
          "description": "Bytes of JSON, where binary tensors follow."}  # fmt: skip
Datatype = Literal["INT64", "FP64", "BYTES", "BOOL"]
Parameters = dict[str, str | int | float | bool]


class InferenceError(BaseModel):
    error: str


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str = "onnx_onnxv1"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class Input(BaseModel):
    """Rows [N] or [N, 1] of a feature or of the key; its data here, or behind the JSON."""

    model_config = FORBID
    name: str
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=MAX_ROWS)]], Field(min_length=1, max_length=2)
    ]
    datatype: Literal["INT64", "FP64", "BYTES"]
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    model_config = FORBID
    name: str
    parameters: Parameters = {}


class Inference(BaseModel):
    """`model_name` is what KServe's client repeats of the path."""

    model_config = FORBID
    id: str | None = None
    model_name: str | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[RequestedOutput] = []


class Output(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float | bool | str] | None = None


class Inferred(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


ERRORS = ErrorForm(InferenceError, lambda _, detail: {"error": in_words(detail)}, {422: 400})


def read(model: Deployment, body: bytes, request: Request) -> tuple[Sequence[PredictionRow], Write]:
    _version(model, request.path_params.get("version"))
    header, tensors = _split(body, request.headers.get(JSON_BYTES))
    sent = Inference.model_validate_json(header, strict=True)
    binary = _requested(sent)
    columns = _columns(sent.inputs, _inputs(model), tensors)
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = rows_from(model, records)

    def write(answers: Sequence[Answer]) -> Response:
        found = scored(model, rows, answers)
        said = {"model_name": request.path_params["name"]}
        said |= {"model_version": found[0]["model_version"]}
        said |= {} if sent.id is None else {"id": sent.id}
        return _response(said, found, binary)

    return rows, write


def _inputs(model: Deployment) -> dict[str, str]:
    """Datatype of each input: the features (all of them, or none) and the key (to look them up)."""
    types = model.spec.entity_key | model.spec.features
    return {name: NAMES[kind] for name, kind in types.items()}


def _version(model: Deployment, asked: str | None) -> str:
    """Version that answers, which is the one asked for, if one is."""
    serving = version_of(model)
    if asked not in {None, serving}:
        raise NotFoundError(f"version {asked} does not answer: version {serving} does")
    return serving


def add_info(router: APIRouter, repository: ModelRepository) -> None:
    shared: Any = {"tags": [TAG], "responses": ERRORS.responses}

    @router.get("/v2", summary="Server", **shared)
    async def server() -> dict[str, str | list[str]]:
        """Name this server and the extensions that it has."""
        return {"name": "gyre", "version": "1", "extensions": ["binary_tensor_data"]}

    @router.get("/v2/health/live", summary="Live", **shared)
    async def live() -> dict[str, bool]:
        """Say that the server answers at all."""
        return {"live": True}

    @router.get("/v2/health/ready", summary="Ready", **shared)
    async def ready() -> dict[str, bool]:
        """Say that a version answers and its online store does; 503 until both do."""
        holder = repository.first().holder
        problem = holder.current.features.down if holder.current else holder.state
        if problem is not None:
            raise NoModelError(problem)
        return {"live": True, "ready": True}

    of_model = "/v2/models/{name}"
    of_version = "/v2/models/{name}/versions/{version}"

    @router.get(of_model, summary="Model", **shared)
    @router.get(of_version, summary="Version", **shared)
    async def metadata(name: str, version: str | None = None) -> ModelMetadata:
        """Name the tensors that the model takes and gives; 404 for another version than answers."""
        model = repository.find(name)
        inputs, outputs = (
            [TensorMetadata(name=n, datatype=kind, shape=[-1]) for n, kind in kinds.items()]
            for kinds in (_inputs(model), OUTPUTS)
        )
        versions = [_version(model, version)]
        return ModelMetadata(name=name, versions=versions, inputs=inputs, outputs=outputs)

    @router.get(f"{of_model}/ready", summary="Model ready", **shared)
    @router.get(f"{of_version}/ready", summary="Version ready", **shared)
    async def model_ready(name: str, version: str | None = None) -> dict[str, str | bool]:
        """Say that a version of the model answers, or this one; 503 until one does."""
        _version(repository.find(name), version)
        return {"name": name, "ready": True}


def _split(body: bytes, json_bytes: str | None) -> tuple[bytes, bytes]:
    if json_bytes is None:
        return body, b""
    if not re.fullmatch(r"[0-9]{1,18}", json_bytes):
        raise InvalidRequestError(f"{JSON_BYTES}: expected a number of bytes")
    if (end := int(json_bytes)) > len(body):
        raise InvalidRequestError(f"{JSON_BYTES}: {end}, and the body has {len(body)} bytes")
    return body[:end], body[end:]


def _requested(sent: Inference) -> dict[str, bool]:
    """Outputs to give, and whether in binary; all of them unless some are named."""
    every = sent.parameters.get("binary_data_output") is True
    if not sent.outputs:
        return dict.fromkeys(OUTPUTS, every)
    names = [output.name for output in sent.outputs]
    for name in names:
        if name not in OUTPUTS:
            raise InvalidRequestError(f"outputs: no {name!r}, there is {', '.join(OUTPUTS)}")
    if len(set(names)) < len(names):
        raise InvalidRequestError("outputs: a name is there twice")
    return {o.name: o.parameters.get("binary_data", every) is True for o in sent.outputs}


def _columns(inputs: Sequence[Input], kinds: dict[str, str], raw: bytes) -> dict[str, list[Any]]:
    """Values [N] of each input by name, taken from its JSON or, in their order, from `raw`."""
    columns: dict[str, list[Any]] = {}
    at, count = 0, inputs[0].shape[0]
    for tensor in inputs:
        where = f"inputs.{tensor.name}"
        if tensor.name in columns:
            raise InvalidRequestError(f"{where}: is there twice")
        if tensor.shape not in ([count], [count, 1]):
            raise InvalidRequestError(
                f"{where}: shape {tensor.shape}, expected [{count}] or [{count}, 1]"
            )
        if (kind := kinds.get(tensor.name, tensor.datatype)) != tensor.datatype:
            raise InvalidRequestError(f"{where}: datatype {tensor.datatype}, expected {kind}")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _flat(tensor, where)
        elif type(size) is not int or size < 0 or tensor.data is not None:
            raise InvalidRequestError(f"{where}: binary_data_size is no size, or data is there too")
        else:
            values = _decoded(raw[at : at + size], size, tensor.datatype, where)
            at += size
        if len(values) != count:
            raise InvalidRequestError(f"{where}: {len(values)} values for shape {tensor.shape}")
        columns[tensor.name] = values
    if at != len(raw):
        raise InvalidRequestError(f"body: {len(raw) - at} bytes behind the last tensor")
    return columns


def _flat(tensor: Input, where: str) -> list[Any]:
    """Data of [N], or of [N, 1] flat or nested."""
    if tensor.data is None:
        raise InvalidRequestError(f"{where}: neither data nor binary_data_size")
    if len(tensor.shape) == 1 or not any(isinstance(value, list) for value in tensor.data):
        return tensor.data
    if not all(isinstance(value, list) and len(value) == 1 for value in tensor.data):
        raise InvalidRequestError(f"{where}: data is not of shape {tensor.shape}")
    return [value[0] for value in tensor.data]


def _decoded(raw: bytes, size: int, datatype: str, where: str) -> list[Any]:
    if len(raw) != size:
        raise InvalidRequestError(f"{where}: {size} bytes announced, {len(raw)} sent")
    if datatype == "BYTES":
        return _texts(raw, where)
    dtype = np.dtype(DTYPES[datatype])
    if size % dtype.itemsize:
        raise InvalidRequestError(f"{where}: {size} bytes are no {datatype}")
    values: list[Any] = np.frombuffer(raw, dtype).tolist()
    return values


def _texts(raw: bytes, where: str) -> list[str]:
    """Each is four bytes of length, little endian, then UTF-8."""
    values, at = [], 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise InvalidRequestError(f"{where}: the last length is cut short")
        end = at + 4 + struct.unpack_from("<I", raw, at)[0]
        if end > len(raw):
            raise InvalidRequestError(f"{where}: the last text is cut short")
        try:
            values.append(raw[at + 4 : end].decode())
        except UnicodeDecodeError as exc:
            raise InvalidRequestError(f"{where}: text {len(values)} is no UTF-8") from exc
        at = end
    return values


def _response(said: dict[str, Any], rows: list[Answer], binary: dict[str, bool]) -> Response:
    tensors, behind = [], []
    for name, raw in binary.items():
        values, datatype = [row[name] for row in rows], OUTPUTS[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(rows)]}
        if raw:
            behind.append(_encoded(values, datatype))
            tensor["parameters"] = {"binary_data_size": len(behind[-1])}
        else:
            tensor["data"] = values
        tensors.append(tensor)
    content = {**said, "outputs": tensors}
    if not behind:
        return json_response(content)
    header = to_json(content)
    return Response(
        b"".join((header, *behind)), headers={JSON_BYTES: str(len(header))}, media_type=BINARY
    )


def _encoded(values: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        texts = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(values, DTYPES[datatype]).tobytes()


PROTOCOL = Protocol(
    TAG,
    ERRORS,
    lambda path: path == "/v2" or path.startswith("/v2/"),
    (
        PredictRoute(
            ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"),
            "Infer",
            "Score tensors by name, in JSON or binary behind it: the key, every feature, or both.",
            read,
            lambda _: Inference,
            lambda _: Inferred,
            binary=BINARY,
            parameters=(VERSION, LENGTH),
        ),
    ),
    add_info,
)
