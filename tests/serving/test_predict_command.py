"""`gyre predict` in a shell: the prediction of an entity or of a file, and refusals in one line."""

import json

import pytest

from core.spec import load_spec
from tests.conftest import new_settings, wait_until
from tests.serving.conftest import KNOWN
from tests.support.tools.clone import gyre

MODEL = load_spec("customer_churn_model").name


def test_an_entity_is_predicted_as_table_and_as_json(rig, served):
    key = f"--entity customer_id={KNOWN}"
    answers = []

    def is_online():
        answers.extend(json.loads(gyre(rig.settings, f"predict {key} --json").stdout))
        return answers[-1]["features_from"] == "online"

    wait_until("an answer from Redis", is_online)
    table = gyre(rig.settings, f"predict {MODEL} {key}").stdout
    head, line = table.splitlines()
    assert head.split()[:3] == ["customer_id", "prediction", "probability"]
    cells = dict(zip(head.split(), line.split(), strict=True))
    expected = answers[-1]
    assert cells["customer_id"] == f"{KNOWN}"
    assert float(cells["probability"]) == expected["probability"]
    assert cells["model_version"] == expected["model_version"] == served.first


def test_requests_of_a_file_and_of_stdin_are_predicted_in_their_order(
    rig, served, tmp_path
):
    file = tmp_path / "requests.json"
    file.write_text(json.dumps([{"customer_id": KNOWN}, {"customer_id": 1}]))
    for source in (file, f"- < {file}"):
        done = gyre(rig.settings, f"predict --json --from {source}")
        answers = json.loads(done.stdout)
        assert [answer["customer_id"] for answer in answers] == [KNOWN, 1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--entity customer_id=999999999", 1, "999999999 is not known to the feature"),
        ("nothing --entity customer_id=4", 1, f"no model 'nothing': there is {MODEL}"),
        (
            "--entity customer_id",
            2,
            "expected --entity KEY=VALUE, or --from with a JSON file; found: ",
        ),
        ("--entity customer_id=four", 1, "422"),
        ("--entity 'customer_id=\"4\"'", 1, "422"),
    ],
)
def test_refusals_name_what_is_wrong(rig, served, arguments, code, message):
    error = gyre(rig.settings, f"predict {arguments}", code).stderr
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_token_of_the_settings_is_sent_and_its_absence_is_named(
    rig, served, tmp_path, monkeypatch
):
    tokens = tmp_path / "tokens"
    tokens.write_text("shell:abc\n")
    monkeypatch.setenv("GYRE_SERVING_TOKENS_FILE", str(tokens))
    with rig.serving(home=rig.second_home()) as (client, _):
        wait_until("ready", lambda: client.get("/health/ready").is_success)
        port = client.base_url.port
        settings = rig.settings.model_copy(update={"serving_port": port})
        command = f"predict --json --entity customer_id={KNOWN}"
        assert json.loads(gyre(settings, command).stdout)[0]["customer_id"] == KNOWN
        monkeypatch.delenv("GYRE_SERVING_TOKENS_FILE")
        error = gyre(settings, command, 2).stderr
    assert error.startswith("gyre: serving refuses the token (401)")
    assert "GYRE_SERVING_TOKENS_FILE" in error


def test_a_serving_that_is_away_is_named_with_the_remedy(tmp_path):
    settings = new_settings(tmp_path)
    error = gyre(settings, "predict --entity customer_id=4", 1).stderr
    assert f"serving does not answer at {settings.serving_address}" in error
    assert error.endswith("see: gyre status\n")
