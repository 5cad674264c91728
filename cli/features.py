"""`gyre parity`: are features the same wherever they are read?"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from cli.verbs import AsJson, AsOf, log_to_stderr, moment, say
from stack.settings import load_settings
from stack.spec import load_spec

MONTH = timedelta(days=31)


def parity(
    model: str,
    as_of: AsOf = None,
    months: Annotated[int, typer.Option(min=1, help="Newest month ends to compare at.")] = 12,
    *,
    as_json: AsJson = False,
) -> None:
    """Compare a model's features offline and online, every entity; exit code 1 if any differ."""
    log_to_stderr()
    settings, spec, time = load_settings(), load_spec(model), moment(as_of)
    from feature_repo.datasets import load_dataset  # noqa: PLC0415  (Feast takes 3 s to import)
    from feature_repo.parity import parity as compare  # noqa: PLC0415
    from training.snapshots import month_starts  # noqa: PLC0415

    ends = month_starts(time - months * MONTH, time)[-months:]
    dataset = load_dataset(spec.dataset)
    report = compare(
        settings, dataset, spec.feature_service, spec.entity_key, ends,
        lambda line: typer.echo(line, err=True),
    )  # fmt: skip
    say(report.summary(), report.as_json(), as_json=as_json)
    raise typer.Exit(1 if report.differences else 0)
