"""DAGs as plain data, of which dags/builder.py makes DAGs of Airflow.

No module that is imported here, or that has a plan, imports Airflow: `gyre dags` prints the plans, and
`gyre step` runs a task, where Airflow has an environment of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.packages import DISTRIBUTION, package_version
from core.settings import load_settings
from core.spec import ModelSpec

FORM: dict[str, dict[str, Any]] = {
    "as_of": {
        "default": None,
        "type": ["null", "string"],
        "format": "date-time",
        "description": "Time of the run (UTC). Default: that of its cause, else its start.",
    }
}
"""Fields of a DAG's trigger form, by name, as Airflow's Param takes them."""


@dataclass(frozen=True)
class TaskPlan:
    """A task of a DAG.

    Attributes:
        name: Its id.
        title: Its name on the pages of Airflow.
        step: `module:function` of dags/ that does its work; it gets the run, then the arguments.
        kind: `gate`: the result decides whether the tasks behind it run or are skipped. `signal`: it
            emits its Asset and does nothing else. `question`: it starts the DAG `asks`, or does its
            step where Airflow cannot ask. `approval`: it waits for a person.
        arguments: Arguments of the step; texts may be templates of Airflow.
        asset: Asset that it emits.
        subject: Name in alerts, if not that of the DAG.
        asks: The DAG that a question starts.
        pool: Pool of Airflow in which it runs.

    """

    name: str
    title: str
    step: str = ""
    kind: Literal["step", "gate", "signal", "question", "approval"] = "step"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    asset: str = ""
    subject: str = ""
    asks: str = ""
    pool: str = "default_pool"


@dataclass(frozen=True)
class DagPlan:
    """A DAG. It has no catch-up.

    Attributes:
        name: Its id.
        doc: Text of its page; the first line is its description.
        tasks: Its tasks; the first one begins each run.
        subject: Name in alerts about its tasks, and its tag.
        cron: Its schedule (UTC).
        asset: Asset that starts it, beside the schedule.
        form: Fields of its trigger form.
        is_chain: Whether a task waits for the one before it.
        on_failure: Step that follows on a run that has failed.
        links: Page of the owner of its tasks.
        most_runs: Number of its runs that may be active at once.
        gyre: Release of Gyre.

    """

    name: str
    doc: str
    tasks: list[TaskPlan]
    subject: str
    cron: str = ""
    asset: str = ""
    form: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: FORM)
    is_chain: bool = True
    on_failure: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    most_runs: int = 1
    gyre: str = field(default_factory=lambda: package_version(DISTRIBUTION))


def model_plan(
    kind: str, spec: ModelSpec, doc: str, tasks: list[TaskPlan], **more: Any
) -> DagPlan:
    """Return the DAG `<kind>_<model>`, whose owner links to the model's page in the console.

    Args:
        kind: Beginning of its id.
        spec: The model.
        doc: Text of its page, in which <MODEL> is the model's name.
        tasks: Its tasks.
        more: Further fields of the plan.

    """
    page = f"{load_settings().link('console')}/status/{spec.name}"
    return DagPlan(
        name=f"{kind}_{spec.name}",
        doc=doc.replace("<MODEL>", spec.name),
        tasks=tasks,
        subject=spec.name,
        links={"gyre": page},
        **more,
    )
