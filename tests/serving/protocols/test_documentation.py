"""/docs: the models, and examples that are accepted as they stand."""


def test_the_example_of_every_operation_is_accepted_as_it_stands(served, consumer):
    """Events are accepted only once a consumer has read."""
    document = served.client.get("/openapi.json").json()
    paths = set()
    for path, methods in document["paths"].items():
        if "post" in methods:
            operation = methods["post"]
            content = operation["requestBody"]["content"]["application/json"]
            example = content["examples"]["example"]["value"]
            address = path
            for parameter in operation["parameters"]:
                value = parameter["schema"]["enum"][0]
                address = address.replace(f"{{{parameter['name']}}}", value)
            answer = served.client.post(address, json=example)
            assert str(answer.status_code) in operation["responses"], answer.text
            assert answer.is_success, answer.text
            paths.add(path)
        elif "{" not in path:
            assert served.client.get(path).status_code == 200
    assert paths == {
        "/predict", "/predict/batch", "/explain", "/invocations", "/feedback", "/events/{dataset}",
        "/models/{name}/predict", "/models/{name}/predict/batch", "/models/{name}/explain",
        "/models/{name}/invocations", "/v1/models/{name}:predict", "/v2/models/{name}/infer",
    }  # fmt: skip
