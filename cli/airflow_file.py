"""`gyre dags`, and the hidden `gyre step`: tasks of an Airflow that has no Gyre."""

import json
import logging
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import typer

from cli.verbs import log_to_stderr
from core.settings import load_settings
from core.user_code import in_one_line


def dags() -> None:
    """Print one file with all DAGs for the DAG folder of an Airflow of your own."""
    from dags.standalone import standalone_file  # noqa: PLC0415  (0.3 s)

    typer.echo(standalone_file(load_settings()), nl=False)


def step(answer_file: Path) -> None:
    """Run a step of a task that `gyre dags` printed; its request is JSON on stdin."""
    request = json.load(sys.stdin)
    # Airflow shows lines of stderr as errors.
    with redirect_stderr(sys.stdout):
        log_to_stderr()
        try:
            answer = _answer(request)
        except Exception as exc:
            logging.getLogger("dags").exception("%s failed", request["step"])
            answer = {"error": in_one_line(exc)}
    answer_file.write_text(json.dumps(answer))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    from dags.standalone import check_plan  # noqa: PLC0415  (0.3 s)
    from dags.steps import run_step  # noqa: PLC0415

    if request.get("plan"):
        check_plan(request["plan"])
    return run_step(request)
