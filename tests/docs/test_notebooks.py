"""The notebooks of docs/: they run on a new stack, and what they say holds there."""

import base64
import re

import nbformat
import pytest

from docs.notebooks import NOTEBOOKS, executed, output_text
from tests.support.monitoring.drifted_stack import drifted_stack, go_through_a_drift

CLAIMS = {
    "explore": {
        "try": r"^4 leaves, [\d,]+ rows",
        "gates": r"better_than_baseline: True: .*\n"
        r"not_worse_than_champion: False: log_loss minus that of version 2 is \+"
        r"(.*\n)*passed: False",
        "answers": r"model_version features_from(.*\n.* 2 +online){5}",
    },
    "why_promoted": {
        "ledger": r"0 +promote +production +None +1 .*\n"
        r"1 +promote +production +1 +2 +drift of version 1",
        "decision": r"rule: drift, cause: drift of version 1\n(- .*\n)*- .*PSI \d",
        "gates": r"better_than_baseline: True: .*\nnot_worse_than_champion: True: "
        r"(.*\n)*passed: True",
        "outcome": r"better: 2$",
    },
    "drift": {
        "decisions": r"0 +1 +bad +nothing .*\n1 +1 +bad +retrain +drift .*\n2 +2 +ok +nothing",
        "checks": r"psi/lifetime_orders(.*\n)*.*psi/customer_segment",
        "distribution": r"new +0\.\d+ +0\.00",
        "performance": r"farther from the outcomes: version 1\nversion 2: ok",
    },
}
"""Patterns of the outputs of cells that the text of a notebook speaks about."""
PICTURES = {"explore": 2, "why_promoted": 1, "drift": 2}
MOST_BYTES = 300_000


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [png for png in (o.get("data", {}).get("image/png") for o in outputs) if png]


def require_claims(notebook, claims):
    for cell, pattern in claims.items():
        text = output_text(notebook, cell)
        assert re.search(pattern, text, re.MULTILINE), f"{cell}: {text}"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_stored_notebook_shows_its_pictures_and_no_path(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    assert path.stat().st_size < MOST_BYTES
    notebook = nbformat.read(path, as_version=4)
    require_claims(notebook, CLAIMS[name])
    assert len(pictures(notebook)) == PICTURES[name]
    for png in pictures(notebook):
        assert base64.b64decode(png).startswith(b"\x89PNG")
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    assert not re.search(r"/(tmp|root|home|work|usr)/|127\.0\.0\.1", str(outputs))
    assert not [o for cell in outputs for o in cell if o.get("name") == "stderr"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        drifted_stack(tmp_path_factory.mktemp("notebooks") / "home") as stack,
    ):
        for name, value in stack.environment.items():
            if name.startswith("GYRE_"):
                patch.setenv(name, value)
        go_through_a_drift(stack)
        yield stack


@pytest.mark.nightly
@pytest.mark.parametrize("name", CLAIMS)
def test_a_notebook_runs_on_a_new_stack_and_its_claims_hold(stack, name):
    notebook = executed(NOTEBOOKS / f"{name}.ipynb")
    require_claims(notebook, CLAIMS[name])
    assert len(pictures(notebook)) == PICTURES[name]
