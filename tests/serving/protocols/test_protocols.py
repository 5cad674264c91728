"""Each protocol with the client of its users; all of them give one score."""

import asyncio
import warnings

import mlflow
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.serving.conftest import DATATYPES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of MLflow about its own type hints
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

KEYS = (4, 8, 4)
NAME = "customer_churn_model"
INFER = f"/v2/models/{NAME}/infer"


@pytest.fixture
def client(served):
    with triton.InferenceServerClient(served.client.base_url.netloc.decode()) as client:
        yield client


def test_a_triton_client_reads_the_inputs_of_a_model(rig, served, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert not client.is_model_ready("nobody")
    assert client.is_model_ready(NAME)
    assert client.get_server_metadata()["extensions"] == []
    metadata = client.get_model_metadata(NAME)
    assert (metadata["name"], metadata["versions"]) == (NAME, [served.first])
    assert metadata["platform"] == "gyre_onnx"
    assert client.is_model_ready(NAME, served.first)
    assert client.get_model_metadata(NAME, served.first) == metadata
    assert not client.is_model_ready(NAME, "99")
    types = {tensor["name"]: tensor["datatype"] for tensor in metadata["inputs"]}
    kinds = {"customer_id": "int64"} | rig.spec.features
    assert types == {column: DATATYPES[kind] for column, kind in kinds.items()}


def test_a_triton_client_gets_scores_by_key(rig, served, client):
    body = [{"customer_id": key} for key in KEYS]
    plain = rig.online(lambda: served.client.post("/predict/batch", json=body))
    expected = [row["probability"] for row in plain.json()]
    keys = triton.InferInput("customer_id", [len(KEYS)], "INT64")
    keys.set_data_from_numpy(np.array(KEYS), binary_data=False)
    outputs = [triton.InferRequestedOutput("score", binary_data=False)]
    part = client.infer(NAME, [keys], request_id="mine", outputs=outputs)
    response = part.get_response()
    assert (response["id"], response["model_version"]) == ("mine", served.first)
    assert part.as_numpy("score").tolist() == expected
    assert part.as_numpy("logged") is None
    answer = client.infer(NAME, [keys], model_version=served.first)
    assert answer.as_numpy("score").tolist() == expected
    assert answer.as_numpy("logged").tolist() == [True] * 3
    ids = {*answer.as_numpy("request_id").tolist()}
    assert ids <= {row["request_id"] for row in rig.rows()}


def test_tritons_client_for_asyncio_gets_the_same_scores(rig, served, client):
    """It sends JSON as octet-stream."""
    keys = triton.InferInput("customer_id", [len(KEYS)], "INT64")
    keys.set_data_from_numpy(np.array(KEYS), binary_data=False)

    async def ask():
        address = served.client.base_url.netloc.decode()
        async with triton_aio.InferenceServerClient(address) as other:
            return await other.infer(NAME, [keys])

    scores = asyncio.run(ask()).as_numpy("score").tolist()
    assert scores == client.infer(NAME, [keys]).as_numpy("score").tolist()


def test_tritons_binary_tensors_are_refused_with_what_to_set(client):
    keys = triton.InferInput("customer_id", [1], "INT64")
    keys.set_data_from_numpy(np.array([4]))
    with pytest.raises(InferenceServerException, match="binary_data=False"):
        client.infer(NAME, [keys])


def test_kserves_protocol_lists_the_models_and_takes_keys_and_features(rig, served):
    ready = served.client.get(f"/v1/models/{NAME}").json()
    assert ready == {"name": NAME, "ready": True}
    assert served.client.get("/v1/models").json() == {"models": [NAME]}
    keyed = rig.features | {"customer_id": 7}
    body = {"instances": [{"customer_id": 4}, rig.features, keyed]}
    answer = served.client.post(f"/v1/models/{NAME}:predict", json=body)
    keys = [row["customer_id"] for row in answer.json()["predictions"]]
    assert keys == [4, None, 7]


def test_mlflows_own_client_gets_the_answers_of_mlflows_own_server(rig, served):
    url = served.client.base_url
    client = ScoringServerClient(url.host, url.port)
    client.ping()
    assert client.get_version() == mlflow.__version__
    rows = [rig.features | {"days_since_last_order": days} for days in (0, 50, 100)]
    frame = pd.DataFrame(rows)
    mlflow.set_tracking_uri(rig.settings.mlflow_address)
    model = mlflow.pyfunc.load_model(f"models:/{rig.spec.name}/{served.first}")
    expected = model.predict(frame)
    answer = client.invoke(frame).get_predictions()
    assert list(answer) == list(expected)
    scores = expected["score"].astype("float64")
    np.testing.assert_allclose(answer["score"], scores, atol=5e-7)
    by_key = client.invoke(pd.DataFrame({"customer_id": KEYS}))["answers"]
    assert [row["customer_id"] for row in by_key] == list(KEYS)


def test_every_protocol_and_format_gives_the_same_score(rig, served):
    def post(path, body):
        return served.client.post(path, json=body).json()

    def scores(rows):
        return [row["score"] for row in rows]

    other = {"days_since_last_order": 99, "customer_segment": "größer"}
    rows = [rig.features, rig.features | other]
    body = [{"customer_id": 4, "features": row} for row in rows]
    expected = [row["probability"] for row in post("/predict/batch", body)]
    v1 = post(f"/v1/models/{NAME}:predict", {"instances": rows})
    assert scores(v1["predictions"]) == expected
    for shape in ([2], [2, 1]):
        inputs = []
        for name, kind in rig.spec.features.items():
            values = [row[name] for row in rows]
            column = {"name": name, "datatype": DATATYPES[kind]}
            inputs.append(column | {"shape": shape, "data": values})
        # With the name in the body, as KServe's client sends it.
        request = {"model_name": NAME, "inputs": inputs, "outputs": [{"name": "score"}]}
        (output,) = post(INFER, request)["outputs"]
        every_output = post(INFER, request | {"outputs": None})["outputs"]
        assert output == every_output[0]
        assert output["data"] == expected
    values = [list(row.values()) for row in rows]
    split = {"index": [0, 1], "columns": list(rows[0]), "data": values}
    records = {"dataframe_records": rows, "params": {}}
    frame = post(f"/models/{NAME}/invocations", records)
    assert scores(frame["predictions"]) == expected
    frame = post("/invocations", {"dataframe_split": split})
    assert scores(frame["predictions"]) == expected


def tensor(**changed):
    key = {"name": "customer_id", "shape": [1], "datatype": "INT64", "data": [4]}
    return key | changed


def split(columns, *rows):
    return {"dataframe_split": {"columns": columns, "data": rows}}


ROWS = [{"customer_id": 4}]
TENSORS = [
    ([], "inputs"),
    ([tensor(shape=[2])], "1 values for shape [2]"),
    ([tensor(shape=[10**18, 10**18])], "shape"),
    ([tensor(shape=[1, 1], data=[[4, 4]])], "2 values for shape [1, 1]"),
    ([tensor(datatype="FP64")], "expected INT64"),
    ([tensor(data=[None])], "customer_id"),
    ([tensor(), tensor()], "twice"),
    ([tensor(name="shoe_size", shape=[2])], "shoe_size: no such input, expected some of customer_"),
    ([tensor(), tensor(name="lifetime_orders", shape=[2], data=[1, 2])], "expected [1]"),
]  # fmt: skip
FRAMES = [
    ({}, "expected one of dataframe_records or dataframe_split"),
    ({"dataframe_records": ROWS, "inputs": ROWS}, "inputs"),
    ({"dataframe_records": ROWS, "params": {"a": 1}}, "params"),
    (split(["customer_id"], [4, 4]), "2 values for 1"),
    (split(["customer_id", "customer_id"], [4, 4]), "twice"),
    (split(["customer_id"]), "data"),
    (split(["shoe_size"], [4]), "shoe_size"),
    ({"dataframe_records": [{}]}, "body.dataframe_records.0: customer_id is missing"),
]  # fmt: skip


INSTANCES = [
    ([{"customer_id": "x"}], "body.instances.0.customer_id: "),
    ([{"customer_id": 4}, {}], "body.instances.1: customer_id is missing"),
]


def test_inconsistent_columns_are_400_and_named(served):
    cases = [(INFER, {"inputs": tensors}, reason) for tensors, reason in TENSORS]
    cases += [("/invocations", frame, reason) for frame, reason in FRAMES]
    v1 = f"/v1/models/{NAME}:predict"
    cases += [(v1, {"instances": rows}, reason) for rows, reason in INSTANCES]
    for path, body, reason in cases:
        answer = served.client.post(path, json=body)
        assert answer.status_code == 400
        assert reason in answer.text
