"""Models whose bytes are those registered and that are broken all the same."""

from tests.conftest import wait_until
from tests.faults.conftest import alerts, more, shows, shows_no_refusal
from tests.serving.conftest import SPEC, counted, onnx_graph, tiny_onnx
from tests.support.serving.console import console
from tests.support.serving.load import repeated, under_load


def no_probability():
    """Logarithm of a negative number: NaN."""
    return tiny_onnx(-5.0, score="Log")


def other_inputs():
    model = tiny_onnx(1.0)
    model.graph.input[0].name = "shoe_size"
    return model


def fails_at_its_first_call():
    """Wants seven rows, whatever it is given."""
    nodes = """
        days = Cast <to = 1> (days_since_last_order)
        seven = Reshape (days, shape)
        score = Sigmoid (seven)"""
    return onnx_graph(SPEC.features, nodes, "int64[1] shape = {7}")


BROKEN = {
    no_probability: "ModelRefusedError: model.onnx: the defaults score [nan], not a probability",
    other_inputs: "ValueError: Required inputs",
    fails_at_its_first_call: "Fail: ",
}


def test_broken_models_promoted_under_load_are_refused_and_no_request_fails(
    rig, served
):
    """4: the old version stays, and the server ready; log, metric and one alert report it."""
    client = served.client
    readiness = set()

    def watch():
        status = client.get("/status").json()
        # Redis takes longer than its 50 ms now and then on a busy machine.
        readiness.add(status["ready"] or not status["resources"]["redis"]["ok"])

    with console(rig), repeated(watch, 0.05), under_load(client) as answers:
        for make, reason in BROKEN.items():
            check_that_the_version_is_refused(rig, served, make(), reason)
            more(answers)
        rig.promote(served.first)
        shows_no_refusal(client)
    assert readiness == {True}
    assert {(a.status, a.version) for a in answers} == {(200, served.first)}


def check_that_the_version_is_refused(rig, served, model, reason):
    """Promote a version of `model`, and look at what is said about it."""
    client = served.client
    version = rig.register(1.0, model=model).version
    refusal = f"version {version} is refused: {reason}"
    refusals = f'gyre_model_refused_total{{model="{rig.spec.name}"}} '
    before = counted(client, refusals)
    rig.promote(version)
    shows(client, refusal)
    assert counted(client, refusals) == before + 1
    assert f"{rig.spec.name}: {refusal}" in (rig.folder / "serving.log").read_text()
    cause = f"version {version} is refused"
    wait_until("an alert", lambda: alerts(rig.settings, cause))
    (alert,) = alerts(rig.settings, cause)
    assert f"version {served.first} answers; {refusal}" in alert["message"]
