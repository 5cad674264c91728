"""Open Inference Protocol (V2) over HTTP, with its binary tensors.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and, for tensors behind the JSON, https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import re
import struct
from collections.abc import Mapping, Sequence
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
from serving.protocols import Parsed, PredictRoute, Protocol, rows_from, scored, version_of
from serving.repository import Deployment, ModelRepository
from serving.schemas import FORBID, MAX_ROWS, Schemas
from serving.scorer import Answer

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
LENGTH = {"name": JSON_BYTES, "in": "header", "schema": {"type": "integer", "minimum": 0},
          "description": "Bytes of JSON, where binary tensors follow."}  # fmt: skip
Datatype = Literal["INT64", "FP64", "BYTES", "BOOL"]
Parameters = dict[str, str | int | float | bool]
Size = Annotated[int, Field(ge=1, le=MAX_ROWS)]


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
    shape: Annotated[list[Size], Field(min_length=1, max_length=2)]
    datatype: Literal["INT64", "FP64", "BYTES"]
    parameters: Parameters = {}
    data: list[Any] | None = None


class RequestedOutput(BaseModel):
    model_config = FORBID
    name: Literal[*OUTPUTS]  # type: ignore[valid-type]
    parameters: Parameters = {}


class Inference(BaseModel):
    """`model_name` is what KServe's client repeats of the path."""

    model_config = FORBID
    id: str | None = None
    model_name: str | None = None
    parameters: Parameters = {}
    inputs: Annotated[list[Input], Field(min_length=1)]
    outputs: list[RequestedOutput] = []


class Output(TensorMetadata):
    parameters: dict[str, int] | None = None
    data: list[float | bool | str] | None = None


class Inferred(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[Output]


def read(model: Deployment, body: bytes, request: Request) -> Parsed:
    _version(model, request.path_params.get("version"))
    header, tensors = _split(body, request.headers.get(JSON_BYTES))
    sent = Inference.model_validate_json(header, strict=True)
    columns = _columns(sent.inputs, _inputs(model), tensors)
    records = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows = rows_from(model, records)
    every = sent.parameters.get("binary_data_output")
    asked = {output.name: output.parameters.get("binary_data", every) for output in sent.outputs}
    binary = asked or dict.fromkeys(OUTPUTS, every)

    def write(answers: Sequence[Answer]) -> Response:
        found = scored(model, rows, answers)
        said = {
            "model_name": request.path_params["name"],
            "model_version": found[0]["model_version"],
        }
        if sent.id is not None:
            said["id"] = sent.id
        return _response(said, found, binary)

    return rows, write


def operation(path: str, _schemas: Schemas) -> Operation:
    return Operation(
        path,
        TAG,
        "Infer",
        "Score tensors by name, in JSON or binary behind it: the key, every feature, or both.",
        Inference,
        Inferred,
        KSERVE,
        (LENGTH,),
        BINARY,
    )


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


def _split(body: bytes, json_bytes: str | None) -> tuple[bytes, bytes]:
    """JSON of a body, and the tensors behind it."""
    if json_bytes is None:
        return body, b""
    end = int(json_bytes) if re.fullmatch("[0-9]{1,9}", json_bytes) else -1
    if not 0 <= end <= len(body):
        raise InvalidRequestError(f"{JSON_BYTES}: expected a number of bytes up to {len(body)}")
    return body[:end], body[end:]


def _columns(
    inputs: Sequence[Input], datatypes: Mapping[str, str], behind: bytes
) -> dict[str, list[Any]]:
    """Values [N] of each input by name, taken from its JSON or, in their order, from `behind`."""
    columns: dict[str, list[Any]] = {}
    at, count = 0, inputs[0].shape[0]
    for tensor in inputs:
        where = f"inputs.{tensor.name}"
        expected = datatypes.get(tensor.name, tensor.datatype)
        if tensor.name in columns:
            raise InvalidRequestError(f"{where}: is there twice")
        if tensor.shape not in ([count], [count, 1]):
            raise InvalidRequestError(
                f"{where}: shape {tensor.shape}, expected [{count}] or [{count}, 1]"
            )
        if tensor.datatype != expected:
            raise InvalidRequestError(f"{where}: datatype {tensor.datatype}, expected {expected}")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            values = _flat(tensor, where)
        elif type(size) is not int or size < 0 or tensor.data is not None:
            raise InvalidRequestError(f"{where}: binary_data_size is no size, or data is there too")
        else:
            raw = behind[at : at + size]
            if len(raw) < size:
                raise InvalidRequestError(f"{where}: {size} bytes announced, {len(raw)} sent")
            values = _decoded(raw, tensor.datatype, where)
            at += size
        if len(values) != count:
            raise InvalidRequestError(f"{where}: {len(values)} values for shape {tensor.shape}")
        columns[tensor.name] = values
    if at != len(behind):
        raise InvalidRequestError(f"body: {len(behind) - at} bytes behind the last tensor")
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


def _decoded(raw: bytes, datatype: str, where: str) -> list[Any]:
    if datatype == "BYTES":
        return _texts(raw, where)
    if len(raw) % 8:
        raise InvalidRequestError(f"{where}: {len(raw)} bytes are no {datatype}")
    numbers: list[Any] = np.frombuffer(raw, DTYPES[datatype]).tolist()
    return numbers


def _texts(raw: bytes, where: str) -> list[str]:
    """Each is four bytes of length, little endian, then UTF-8."""
    values, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if end > len(raw):
            raise InvalidRequestError(f"{where}: the last text is cut short")
        try:
            values.append(raw[at + 4 : end].decode())
        except UnicodeDecodeError as exc:
            raise InvalidRequestError(f"{where}: text {len(values)} is no UTF-8") from exc
        at = end
    return values


def _response(said: dict[str, Any], rows: list[Answer], binary: Mapping[str, Any]) -> Response:
    """binary: the outputs to give, and whether behind the JSON."""
    outputs, behind = [], []
    for name, raw in binary.items():
        values, datatype = [row[name] for row in rows], OUTPUTS[name]
        output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(rows)]}
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


def add_info(router: APIRouter, repository: ModelRepository) -> None:
    shared: Any = {"tags": [TAG], "responses": KSERVE.responses}

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


PROTOCOL = Protocol(
    KSERVE,
    lambda path: path == "/v2" or path.startswith("/v2/"),
    (
        PredictRoute(
            ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"),
            read,
            operation,
            binary=BINARY,
        ),
    ),
    add_info,
)
