"""Asks with KServe's SDK as it comes, and prints what it got: kserve_client.py ADDRESS MODEL VERSION.

Runs in `.venv-kserve`: the SDK holds back psutil. Features come as JSON on stdin.
"""

import asyncio
import json
import sys

import httpx
import numpy as np
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceRESTClient, RESTConfig

ADDRESS, MODEL, VERSION = sys.argv[1:]
FEATURES = json.load(sys.stdin)
DEFAULT = InferenceRESTClient()
V2 = InferenceRESTClient(RESTConfig(protocol="v2"))


def tensor(name, value, **options):
    kinds = {str: "BYTES", int: "INT64", float: "FP64"}
    kind = kinds[type(value)]
    each = InferInput(name, [1], kind)
    array = np.array([value], dtype=object if kind == "BYTES" else None)
    each.set_data_from_numpy(array, **options)
    return each


async def refusal(answer):
    """Return status and text of an answer that the client raises."""
    try:
        await answer
    except httpx.HTTPStatusError as exc:
        return [exc.response.status_code, exc.response.text]
    return None


async def ask():
    instances = {"instances": [{"customer_id": 4}, FEATURES]}
    features = [
        tensor(name, value, binary_data=False) for name, value in FEATURES.items()
    ]
    key = [tensor("customer_id", 4, binary_data=False)]
    infer = V2.infer
    by_key = await infer(ADDRESS, InferRequest(MODEL, key), model_name=MODEL)
    by_features = await infer(ADDRESS, InferRequest(MODEL, features), model_name=MODEL)
    of_version = InferRequest(MODEL, features, model_version=VERSION)
    by_version = await infer(ADDRESS, of_version, model_name=MODEL)
    binary = InferRequest(MODEL, [tensor("customer_id", 4)])
    stranger = InferRequest(MODEL, [tensor("customer_id", -1, binary_data=False)])
    return {
        "ready": [
            await V2.is_server_live(ADDRESS),
            await V2.is_server_ready(ADDRESS),
            await V2.is_model_ready(ADDRESS, MODEL),
            await V2.is_model_ready(ADDRESS, "nobody"),
            await DEFAULT.is_model_ready(ADDRESS, MODEL),
        ],
        "v1": await DEFAULT.infer(ADDRESS, instances, model_name=MODEL),
        "explained": await refusal(DEFAULT.explain(ADDRESS, MODEL, instances)),
        "v2": [answer.to_dict() for answer in (by_key, by_features, by_version)],
        "binary": await refusal(infer(ADDRESS, binary, model_name=MODEL)),
        "nobody": await refusal(DEFAULT.is_model_ready(ADDRESS, "nobody")),
        "stranger": await refusal(infer(ADDRESS, stranger, model_name=MODEL)),
    }


sys.stdout.write(json.dumps(asyncio.run(ask())))
