"""The file of DAGs for an Airflow that is not Gyre's, and the check that it is not out of date."""

import sys
from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

from core.errors import StackError
from core.packages import DISTRIBUTION, package_version
from core.settings import Settings
from dags.steps import all_plans

BUILDER = Path(__file__).with_name("builder.py")
PRINTED = """\
# Written by `gyre dags` of Gyre {version}: edits are lost. It needs Airflow alone; each task calls
# COMMAND, which has the environment of Gyre.

{builder}

COMMAND = {command!r}
ENVIRONMENT = {environment}
PLANS = {plans}

build_dags(PLANS, partial(run_by_command, COMMAND, ENVIRONMENT))
"""


def standalone_file(settings: Settings) -> str:
    """Return one Python file that builds all DAGs; it needs Airflow and the standard library."""
    environment = {
        "GYRE_HOME": str(settings.home),
        "GYRE_PROJECT": str(settings.project),
        "GYRE_SECRETS_DIR": str(settings.secrets_dir),
    }
    return PRINTED.format(
        version=package_version(DISTRIBUTION),
        builder=BUILDER.read_text(),
        command=str(Path(sys.executable).with_name("gyre")),
        environment=pformat(environment),
        plans=pformat(all_plans(), width=100, sort_dicts=False),
    )


def check_plan(sent_plan: Mapping[str, Any]) -> None:
    """Compare the plan of a DAG in Airflow with that of today.

    Raises:
        StackError: They differ.

    """
    name = sent_plan["name"]
    plans = {plan["name"]: plan for plan in all_plans()}
    plan = plans.get(name, {})
    changes = [key for key in sent_plan if plan.get(key) != sent_plan[key]]
    if changes:
        raise StackError(
            f"{name}: its file in Airflow is older than models/, gyre.env or this release of Gyre "
            f"({', '.join(changes)} changed); write it again: gyre dags > FILE"
        )
