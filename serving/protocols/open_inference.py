"""Open Inference Protocol (V2) over HTTP, with its binary tensors.

Sources: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
and, for tensors behind the JSON, https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import re
import struct
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter
from pydantic_core import to_json
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serving.edge import Endpoint, ErrorForm, in_words, json_response
from serving.errors import InvalidRequestError, NoModelError, NotFoundError
from serving.protocols import (
    Protocol,
    Scores,
    Served,
    Tells,
    Translate,
    Write,
    default_of,
    requests_of,
    scored,
    version_of,
)
from serving.schemas import FORBID, MAX_ROWS
from serving.scorer import Answer, Request

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


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class ServerState(BaseModel):
    live: bool = True
    ready: bool | None = None


class ModelState(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
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


def routes(models: Sequence[Served]) -> Iterator[Scores | Tells]:
    ready = _ready(models)
    yield Tells("/v2", "Open Inference: server", _server, ServerMetadata)
    yield Tells("/v2/health/live", "Open Inference: live", _live, ServerState)
    yield Tells("/v2/health/ready", "Open Inference: ready", ready, ServerState, refuses=(503,))
    for model in models:
        for name in model.names:
            yield from _of_model(model, name, f"/v2/models/{name}", ())
            path = f"/v2/models/{name}/versions/{{version}}"
            yield from _of_model(model, name, path, (VERSION,))


def _of_model(
    model: Served, name: str, path: str, given: tuple[Any, ...]
) -> Iterator[Scores | Tells]:
    read = translate(model, name)
    for to, summary, work, shown in (
        (path, "Open Inference: model", _metadata(model, name), ModelMetadata),
        (f"{path}/ready", "Open Inference: model ready", _model_ready(model, name), ModelState),
    ):
        yield Tells(to, summary, work, shown, model=model.names[0],
                    refuses=(404, 503) if given else (503,), parameters=given)  # fmt: skip
    yield Scores(model, f"{path}/infer", "Open Inference: infer", read, Inference, Inferred,
                 binary=BINARY, parameters=(*given, LENGTH))  # fmt: skip


async def _server(_: HttpRequest) -> Response:
    return json_response({"name": "gyre", "version": "1", "extensions": ["binary_tensor_data"]})


async def _live(_: HttpRequest) -> Response:
    return json_response({"live": True})


def _ready(models: Sequence[Served]) -> Endpoint:
    async def work(_: HttpRequest) -> Response:
        default = default_of(models)
        version_of(default)
        if down := default.scorer.holder.features.down:
            raise NoModelError(down)
        return json_response({"live": True, "ready": True})

    return work


def _asked_version(model: Served, http: HttpRequest) -> str:
    """Version that answers, which is the one in the path if there is one there."""
    serving, asked = version_of(model), http.path_params.get("version")
    if asked not in {None, serving}:
        raise NotFoundError(f"version {asked} does not answer: version {serving} does")
    return serving


def _model_ready(model: Served, name: str) -> Endpoint:
    async def work(http: HttpRequest) -> Response:
        _asked_version(model, http)
        return json_response({"name": name, "ready": True})

    return work


def _metadata(model: Served, name: str) -> Endpoint:
    """Inputs are the features (all of them, or none) and the key (to look them up)."""
    spec = model.scorer.spec
    inputs = {n: NAMES[kind] for n, kind in (spec.entity_key | spec.features).items()}
    tensors = {
        side: [{"name": n, "datatype": kind, "shape": [-1]} for n, kind in named.items()]
        for side, named in (("inputs", inputs), ("outputs", OUTPUTS))
    }

    async def work(http: HttpRequest) -> Response:
        versions = [_asked_version(model, http)]
        return json_response(
            {"name": name, "versions": versions, "platform": "onnx_onnxv1", **tensors}
        )

    return work


def translate(model: Served, name: str) -> Translate:
    adapter = TypeAdapter(model.schemas.flat)
    spec = model.scorer.spec
    kinds = {n: NAMES[kind] for n, kind in (spec.entity_key | spec.features).items()}

    def read(body: bytes, http: HttpRequest) -> tuple[Sequence[Request], Write]:
        _asked_version(model, http)
        header, tensors = _split(body, http.headers.get(JSON_BYTES))
        sent = Inference.model_validate_json(header, strict=True)
        binary = _requested(sent)
        columns = _columns(sent.inputs, kinds, tensors)
        records = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        asked = requests_of(model, adapter.validate_python(records))

        def write(answers: Sequence[Answer]) -> Response:
            rows = scored(model, asked, answers)
            said = {"model_name": name, "model_version": rows[0]["model_version"]}
            said |= {} if sent.id is None else {"id": sent.id}
            return _response(said, rows, binary)

        return asked, write

    return read


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
    ERRORS,
    routes,
    lambda path: path == "/v2" or path.startswith("/v2/"),
    tuple(
        (method, f"/v2/models/{{name}}{version}{what}")
        for version in ("", "/versions/{version}")
        for method, what in (("GET", ""), ("GET", "/ready"), ("POST", "/infer"))
    ),
)
