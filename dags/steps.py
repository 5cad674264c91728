"""All plans, and the one way in which a step of a task is run."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pkgutil import resolve_name
from typing import Any

from core.spec import load_specs
from dags import approve, ingest, maintain, monitor, rollout, score, train
from dags.run import Run, SkippedError

log = logging.getLogger(__name__)


def all_plans() -> list[dict[str, Any]]:
    """Return the plan of each DAG; where one fails for a model, the others are there."""
    plans = []
    planners: list[Any] = [ingest.plan, maintain.plan]
    for spec in load_specs():
        for module in (train, approve, monitor, score, rollout):
            planners.append(partial(module.plan, spec))  # noqa: PERF401  (readable)
    for planner in planners:
        try:
            plan = planner()
        except Exception:
            log.exception("a DAG cannot be planned: %s", planner)
            continue
        if plan:
            plans.append(asdict(plan))
    return plans


def run_step(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a step; the request and the answer are those of `RunStep` in dags/builder.py."""
    function = resolve_name(f"dags.{request['step']}")
    if request.get("run"):
        function = partial(function, Run.of(request["run"]))
    try:
        return {"result": function(**request["arguments"])}
    except SkippedError as exc:
        return {"skipped": str(exc)}
