"""Open Inference Protocol (V2) over HTTP, with its tensors in JSON.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import BaseModel, TypeAdapter

from serving.errors import InvalidRequestError
from serving.http.edge import json_bytes
from serving.http.openapi import Document, example_features
from serving.protocols.endpoint import (
    Answers,
    Reading,
    ScoringRoute,
    rows_from,
    score_contents,
)
from serving.repository import Deployment

TAG = "Open Inference (V2)"
DATATYPES = {
    "int32": "INT32",
    "int64": "INT64",
    "float32": "FP32",
    "double": "FP64",
    "bool": "BOOL",
    "timestamp": "BYTES",
    "string": "BYTES",
}
OUTPUTS = {
    "score": "FP64",
    "prediction": "FP64",
    "model_version": "BYTES",
    "request_id": "BYTES",
    "features_from": "BYTES",
    "in_population": "BOOL",
    "logged": "BOOL",
}


class Input(BaseModel):
    """A column of the rows: a tensor of shape [N] or [N, 1]."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Output(BaseModel):
    name: Literal[*OUTPUTS]  # type: ignore[valid-type]


class Inference(BaseModel):
    """A request; further fields of clients, such as parameters, have no meaning here."""

    id: str | None = None
    inputs: Annotated[list[Input], Len(1)]
    outputs: list[Output] | None = None


BODY = TypeAdapter(Inference)


def read(model: Deployment, body: bytes) -> Reading:
    request = BODY.validate_json(body, strict=True)
    columns = _columns(request.inputs, _datatypes(model))
    values = zip(*columns.values(), strict=True)
    rows = rows_from(model, [dict(zip(columns, row, strict=True)) for row in values])

    def write(answers: Answers) -> bytes:
        content = _content(model, request, score_contents(model, rows, answers))
        if request.id is not None:
            content["id"] = request.id
        return json_bytes(content)

    return rows, write


def _columns(
    inputs: Sequence[Input], datatypes: Mapping[str, str]
) -> dict[str, list[Any]]:
    """Return the values of each input by its name.

    Raises:
        InvalidRequestError: An input is unknown, is there twice, or has another size or type than
            expected.

    """
    columns = {}
    count = len(_flat(inputs[0].data))
    for tensor in inputs:
        expected = datatypes.get(tensor.name)
        values = _flat(tensor.data) if len(tensor.shape) > 1 else tensor.data
        problem = ""
        if expected is None:
            problem = f"no such input, expected some of {', '.join(datatypes)}"
        elif tensor.name in columns:
            problem = "is there twice"
        elif tensor.datatype != expected:
            problem = f"datatype {tensor.datatype}, expected {expected}"
        elif tensor.shape not in ([count], [count, 1]) or len(values) != count:
            sizes = f"{len(values)} values for shape {tensor.shape}"
            problem = f"{sizes}, expected [{count}] or [{count}, 1]"
        if problem:
            raise InvalidRequestError(f"inputs.{tensor.name}: {problem}")
        columns[tensor.name] = values
    return columns


def _flat(data: list[Any]) -> list[Any]:
    """Return the values of a tensor, whose data may be nested."""
    values = []
    for value in data:
        if isinstance(value, list):
            values.extend(value)
        else:
            values.append(value)
    return values


def _content(
    model: Deployment, request: Inference, contents: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the answer: for each output, its values over the rows."""
    names = [output.name for output in request.outputs or []] or OUTPUTS
    outputs = []
    for tensor in _outputs(model):
        name = tensor["name"]
        if name in names:
            shape = [len(contents), *tensor["shape"][1:]]
            data = _flat([content[name] for content in contents])
            outputs.append({**tensor, "shape": shape, "data": data})
    answer: dict[str, Any] = {"model_name": model.name, "outputs": outputs}
    versions = {content["model_version"] for content in contents}
    # Where several answered, the output `model_version` has the version of each row.
    if len(versions) == 1:
        answer["model_version"] = versions.pop()
    return answer


def infer(model: Deployment) -> Document:
    """Score tensors by name: the key, every feature, or both."""
    datatypes = _datatypes(model)
    inputs = [
        {"name": name, "shape": [1], "datatype": datatypes[name], "data": [value]}
        for name, value in example_features(model.versions).items()
    ]
    return Document(BODY, {"inputs": inputs})


def tensors(model: Deployment) -> dict[str, Any]:
    """Return the tensors that a model takes and gives."""
    further = model.versions.signature.further
    inputs = _datatypes(model)
    needed_inputs = {name: inputs[name] for name in inputs if name not in further}
    return {"inputs": _described(needed_inputs), "outputs": _outputs(model)}


def _datatypes(model: Deployment) -> dict[str, str]:
    signature = model.versions.signature
    types = {
        **signature.entity_key,
        **signature.request_data,
        **signature.features,
        **signature.further,
    }
    return {name: DATATYPES[kind] for name, kind in types.items()}


def _outputs(model: Deployment) -> list[dict[str, Any]]:
    outputs = _described(OUTPUTS)
    classes = model.versions.signature.classes
    if classes:
        score, prediction = outputs[:2]
        score["shape"] = [-1, len(classes)]
        prediction["datatype"] = "BYTES"
    return outputs


def _described(datatypes: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": [-1]}
        for name, datatype in datatypes.items()
    ]


PATHS = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
SCORING = [ScoringRoute(TAG, PATHS, read, infer)]
