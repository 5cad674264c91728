"""Each protocol with the client that its users have, and all of them with one answer."""

from __future__ import annotations

import json
import warnings
from typing import Any

import httpx
import mlflow
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.serving.conftest import PANDAS_TYPES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow about its own type hints
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

KEYS = (4, 8, 4)
DATATYPES = {"int64": "INT64", "double": "FP64", "string": "BYTES"}


def tensors(rig: Any, rows: list[dict[str, Any]], *, column: bool = False) -> list[Any]:
    """What a tritonclient sends for rows of features: [N], or [N, 1]."""
    found = []
    for name, kind in rig.spec.features.items():
        dtype: Any = np.object_ if kind == "string" else PANDAS_TYPES[kind]
        values = np.array([row[name] for row in rows], dtype)
        values = values.reshape(-1, 1) if column else values
        tensor = triton.InferInput(name, list(values.shape), DATATYPES[kind])
        found.append(tensor.set_data_from_numpy(values))
    return found


def of_keys(binary: bool = True) -> Any:
    keys = np.array(KEYS)
    return triton.InferInput("customer_id", [3], "INT64").set_data_from_numpy(
        keys, binary
    )


def frame(rig: Any, rows: list[dict[str, Any]]) -> pd.DataFrame:
    types = {name: PANDAS_TYPES[kind] for name, kind in rig.spec.features.items()}
    return pd.DataFrame(rows).astype(types)[list(types)]


@pytest.fixture
def client(served: Any) -> Any:
    url = f"{served.client.base_url.host}:{served.client.base_url.port}"
    with triton.InferenceServerClient(url) as opened:
        yield opened


@pytest.mark.parametrize("name", ["customer_churn_model", "churn-predictor"])
def test_a_triton_client_finds_out_what_to_send(
    rig: Any, served: Any, client: Any, name: str
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, served.first)
    assert not client.is_model_ready(name, "99")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    shown = client.get_model_metadata(name, served.first)
    assert (shown["name"], shown["versions"]) == (name, [served.first])
    assert {t["name"]: t["datatype"] for t in shown["inputs"]} == {
        "customer_id": "INT64",
        **{feature: DATATYPES[kind] for feature, kind in rig.spec.features.items()},
    }


@pytest.mark.parametrize("binary", [True, False])
def test_a_triton_client_infers_by_key(
    rig: Any, served: Any, client: Any, binary: bool
) -> None:
    wanted = [
        triton.InferRequestedOutput(name, binary) for name in ("score", "request_id")
    ]
    for outputs in (wanted, None):  # None: all of them, in binary
        answer = client.infer(
            rig.spec.name, [of_keys(binary)], request_id="mine", outputs=outputs
        )
        said = answer.get_response()
        assert (said["id"], said["model_version"]) == ("mine", served.first)
        body = [{"customer_id": key} for key in KEYS]
        plain = rig.online(lambda: served.client.post("/predict/batch", json=body))  # noqa: B023
        expected = [row["probability"] for row in plain.json()]
        assert answer.as_numpy("score").tolist() == expected
    assert {*answer.as_numpy("features_from").tolist()} <= {b"online", b"cache"}
    assert answer.as_numpy("logged").tolist() == [True] * 3
    ids = {found.decode() for found in answer.as_numpy("request_id").tolist()}
    assert ids <= {row["request_id"] for row in rig.rows()}


def test_a_triton_client_infers_a_batch_of_features(
    rig: Any, served: Any, client: Any
) -> None:
    rows = [rig.features | {"days_since_last_order": days, "customer_segment": name}
            for days, name in ((0, "new"), (50, "größer"), (100, ""))]  # fmt: skip
    plain = served.client.post(
        "/predict/batch", json=[{"customer_id": 4, "features": row} for row in rows]
    )
    expected = [row["probability"] for row in plain.json()]
    for column in (False, True):
        answer = client.infer("churn-predictor", tensors(rig, rows, column=column))
        assert answer.as_numpy("score").tolist() == expected
        assert set(answer.as_numpy("features_from").tolist()) == {b"request"}


def test_a_triton_client_is_told_what_is_wrong(rig: Any, client: Any) -> None:
    for model, version, inputs, status, said in (
        ("nobody", "", [of_keys()], "404", "there is customer_churn_model"),
        (rig.spec.name, "99", [of_keys()], "404", "version 99 does not answer"),
        (
            rig.spec.name,
            "",
            tensors(rig, [rig.features])[1:],
            "400",
            "total_orders_30d",
        ),
        (
            rig.spec.name,
            "",
            [of_keys(), *tensors(rig, [rig.features])],
            "400",
            "shape [1]",
        ),
    ):
        with pytest.raises(
            InferenceServerException, match=said.replace("[", r"\[")
        ) as refused:
            client.infer(model, inputs, model_version=version)
        assert refused.value.status() == status


def test_mlflows_own_client_gets_what_mlflows_own_server_would_answer(
    rig: Any, served: Any
) -> None:
    url = served.client.base_url
    client = ScoringServerClient(url.host, url.port)
    client.ping()
    assert client.get_version() == mlflow.__version__
    data = frame(
        rig, [rig.features | {"days_since_last_order": days} for days in (0, 50, 100)]
    )
    mlflow.set_tracking_uri(rig.settings.mlflow_address)
    own = mlflow.pyfunc.load_model(f"models:/{rig.spec.name}/{served.first}").predict(
        data
    )
    answer = client.invoke(data).get_predictions()
    assert list(answer) == list(own)
    np.testing.assert_allclose(
        answer["score"], own["score"].astype("float64"), atol=5e-7
    )
    for key in KEYS:
        rig.predict_online(served.client, key)
    by_key = client.invoke(pd.DataFrame({"customer_id": KEYS}))
    assert [row["customer_id"] for row in by_key["answers"]] == list(KEYS)
    assert {row["features_from"] for row in by_key["answers"]} <= {"online", "cache"}


def test_mlflows_formats_and_every_protocol_give_one_score(
    rig: Any, served: Any
) -> None:
    rows = [
        rig.features,
        rig.features | {"days_since_last_order": 99.0},
    ]  # as JSON has integers
    columns, data = list(rows[0]), [list(row.values()) for row in rows]
    lists = {name: [row[name] for row in rows] for name in columns}
    one = served.client.post(
        "/predict/batch", json=[{"customer_id": 4, "features": r} for r in rows]
    )
    expected = [row["probability"] for row in one.json()]
    v1 = served.client.post(
        "/v1/models/churn-predictor:predict", json={"instances": rows}
    )
    assert [row["score"] for row in v1.json()["predictions"]] == expected
    inputs = [{"name": name, "shape": [2], "data": lists[name], "datatype": DATATYPES[kind]}
              for name, kind in rig.spec.features.items()]  # fmt: skip
    path = f"/v2/models/churn-predictor/versions/{served.first}/infer"
    asked = {
        "model_name": "churn-predictor",
        "inputs": inputs,
        "outputs": [{"name": "score"}],
    }
    v2 = served.client.post(
        path, json=asked
    )  # with the name, as KServe's client sends it
    assert v2.json()["outputs"][0]["data"] == expected
    for body in (
        {"dataframe_split": {"index": [0, 1], "columns": columns, "data": data}},
        {"dataframe_records": rows}, {"instances": rows}, {"inputs": rows}, {"inputs": lists},
        {"dataframe_records": rows, "params": {"ignored": 1}},
    ):  # fmt: skip
        for path in ("/invocations", "/models/churn-predictor/invocations"):
            answer = served.client.post(path, json=body)
            assert [row["score"] for row in answer.json()["predictions"]] == expected
    single = served.client.post("/invocations", json={"inputs": rows[0]})
    assert [row["score"] for row in single.json()["predictions"]] == expected[:1]


def tensor(**changed: Any) -> dict[str, Any]:
    return {
        "name": "customer_id",
        "shape": [1],
        "datatype": "INT64",
        "data": [4],
    } | changed


def binary(size: Any, **changed: Any) -> dict[str, Any]:
    found = tensor(parameters={"binary_data_size": size}, **changed)
    del found["data"]
    return found


@pytest.mark.parametrize(
    ("inputs", "behind", "said"),
    [
        ([], b"", "inputs"),
        ([tensor(shape=[2])], b"", "1 values for shape [2]"),
        ([tensor(shape=[1, 2])], b"", "shape [1, 2]"),
        ([tensor(shape=[])], b"", "shape"),
        ([tensor(shape=[0], data=[])], b"", "shape"),
        ([tensor(shape=[-1])], b"", "shape"),
        ([tensor(shape=[10**18])], b"", "shape"),
        ([tensor(shape=[10**18, 10**18])], b"", "shape"),
        ([tensor(shape=[1, 1], data=[[4, 4]])], b"", "not of shape"),
        ([tensor(data=[[4]])], b"", "customer_id"),
        ([tensor(datatype="FP64")], b"", "expected INT64"),
        ([tensor(datatype="COMPLEX")], b"", "datatype"),
        ([tensor(data=[None])], b"", "customer_id"),
        ([tensor(data=None)], b"", "neither data"),
        ([tensor(name="shoe_size")], b"", "shoe_size"),
        ([tensor(), tensor()], b"", "twice"),
        ([tensor(), tensor(name="lifetime_orders", shape=[2], data=[1, 2])], b"", "expected [1]"),
        ([tensor()], b"more", "behind the last tensor"),
        ([binary(8)], b"1234", "8 bytes announced, 4 sent"),
        ([binary(4)], b"1234", "no INT64"),
        ([binary(16)], b"1" * 16, "2 values for shape [1]"),
        ([binary(2**62)], b"", "announced"),
        ([binary(-8)], b"", "no size"),
        ([binary("8")], b"1" * 8, "no size"),
        ([binary(8), binary(8, name="lifetime_value", datatype="FP64")],
         b"\4" + bytes(7) + b"\xff" * 8, "lifetime_value"),  # NaN
        ([binary(3, name="customer_segment", datatype="BYTES")], b"\1\0\0", "cut short"),
        ([binary(5, name="customer_segment", datatype="BYTES")], b"\xff" * 5, "cut short"),
        ([binary(5, name="customer_segment", datatype="BYTES")], b"\1\0\0\0\xff", "no UTF-8"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_400_and_named(
    served: Any, inputs: Any, behind: bytes, said: str
) -> None:
    header = json.dumps({"inputs": inputs}).encode()
    length = {"inference-header-content-length": str(len(header))} if behind else {}
    answer = served.client.post(
        "/v2/models/churn-predictor/infer", content=header + behind, headers=length
    )
    assert answer.status_code == 400
    assert said in answer.json()["error"]


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "٣", "999"])
def test_a_length_of_json_that_is_none_is_400(served: Any, length: str) -> None:
    body, headers = json.dumps({"inputs": [tensor()]}), [
        (b"inference-header-content-length", length.encode())]  # fmt: skip
    answer = served.client.post(
        "/v2/models/churn-predictor/infer", content=body, headers=httpx.Headers(headers)
    )
    assert answer.status_code == 400
    assert "inference-header-content-length" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "expected one of"),
        (
            {"dataframe_records": [{"customer_id": 4}], "inputs": [{"customer_id": 4}]},
            "one of",
        ),
        (
            {"dataframe_split": {"columns": ["customer_id"], "data": [[4, 4]]}},
            "2 values for 1",
        ),
        (
            {"dataframe_split": {"columns": ["customer_id"] * 2, "data": [[4, 4]]}},
            "twice",
        ),
        ({"dataframe_split": {"columns": ["customer_id"], "data": []}}, "data"),
        ({"dataframe_split": {"columns": ["shoe_size"], "data": [[4]]}}, "shoe_size"),
        (
            {"inputs": {"customer_id": [4], "lifetime_orders": [1, 2]}},
            "different lengths",
        ),
        ({"inputs": {}}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"instances": [[4]]}, "instances"),
        ({"dataframe_records": [{}]}, "neither customer_id nor features"),
        ({"frame": []}, "frame"),
    ],
)
def test_a_frame_that_does_not_fit_is_400_in_mlflows_form(
    served: Any, body: Any, said: str
) -> None:
    answer = served.client.post("/invocations", json=body)
    assert (answer.status_code, answer.json()["error_code"]) == (400, "BAD_REQUEST")
    assert said in answer.json()["message"]
