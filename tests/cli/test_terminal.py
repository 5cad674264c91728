"""What commands print, on a terminal of a certain width and off one."""

import json
import re
import subprocess
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import pytest

from core.project import PROJECT
from mlflow_server.promotion.ledger import Ledger
from monitoring.decisions.decision import INPUTS, Inputs, decide
from monitoring.decisions.store import store_decision
from tests.conftest import new_settings
from tests.support.monitoring.ledger_rows import LEDGER
from tests.support.monitoring.year import decision_row
from tests.support.tools.clone import finished, gyre, stack_environment
from tests.support.tools.preloaded import commands_folder

MODEL = "customer_churn_model"
REASON = "because the \x1b[31mdrift\x1b[0m of\nits features " + "goes on and on " * 12
WIDTH = 90
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
INPUT = Inputs(
    as_of=NOW, version="1", verdicts=("bad", "bad"), findings=("total_spend_30d: PSI 0.31",),
    harm=None, previous=None, last_retraining=None, last_promotion=NOW - timedelta(days=2),
    cooldown=timedelta(hours=24), windows=5, bad_windows=2,
)  # fmt: skip


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home; its commands take the width and the colours of their terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    return new_settings(tmp_path)


def test_a_table_is_plain_lines_in_a_pipe_and_fits_a_terminal(settings):
    with closing(Ledger(settings)) as ledger:
        ledger.insert(replace(LEDGER, why=REASON, to_version="1"))
    output = gyre(settings, f"ledger {MODEL}").stdout
    head, line = output.splitlines()
    assert head.split() == ["time", "action", "role", "change", "by", "why"]
    columns = r"promote  production  none → 1  ann  because .* on and on"
    assert re.fullmatch(rf"1  \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\dZ  {columns}", line)
    assert "\x1b" not in output
    command = f"stty cols {WIDTH}; gyre ledger {MODEL} 2> /dev/null"
    terminal = f"script --quiet --command '{command}' /dev/null"
    text = finished(terminal, PROJECT, stack_environment(settings)).stdout
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").splitlines()
    assert len(lines) > 3
    assert max(len(line) for line in lines) <= WIDTH
    assert "\x1b[31m" not in text  # the colours of a reason are left out
    assert "\x1b[2m" in text
    (row,) = json.loads(gyre(settings, f"ledger {MODEL} --json").stdout)
    assert (row["to"], row["who"], row["why"]) == ("1", "ann", REASON)


def test_logs_prints_the_newest_lines_follows_them_and_names_the_programs(settings):
    folder = settings.home / "logs"
    folder.mkdir()
    file = folder / "serving.log"
    file.write_text("before\n")
    (folder / "mlflow.log").touch()
    assert gyre(settings, "logs serving").stdout == "before\n"
    unknown_program = gyre(settings, "logs ../secrets", 1)
    assert "expected mlflow, serving" in unknown_program.stderr
    with subprocess.Popen(
        [commands_folder() / "gyre", "logs", "serving", "-f"], text=True,
        env=stack_environment(settings), stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "before\n"
        with file.open("a") as more:
            more.write("after\n")
        assert process.stdout.readline() == "after\n"
        process.terminate()


def test_decide_explains_the_last_decision_by_its_inputs_and_repeats_it(settings):
    inputs = INPUTS.dump_json(INPUT).decode()
    decision = asdict(decide(INPUT))
    row = decision_row(model=MODEL, version="1", as_of=NOW, inputs=inputs, **decision)
    store_decision(settings, row)
    text = gyre(settings, f"decide {MODEL} --explain").stdout
    for part in (
        "version 1: retrain",
        "rule: drift",
        "total_spend_30d: PSI 0.31",
        "the same",
        '"last_promotion": "2026-11-18T12:00:00Z"',
        '"cooldown": "P1D"',
    ):
        assert part in text
    document = json.loads(gyre(settings, f"decide {MODEL} --explain --json").stdout)
    assert (document["rule"], document["agrees"]) == ("drift", True)
    assert document["inputs"]["verdicts"] == ["bad", "bad"]
