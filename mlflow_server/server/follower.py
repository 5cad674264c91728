"""`python -m mlflow_server.server.follower`: the work of our server's hooks, for a team's MLflow.

It polls MLflow. An alias that somebody changed gets its ledger row, and a version that somebody set
to stage Production is promoted. The stage is set back, with an alert, if that is refused.
"""

import logging
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from core.errors import ArtifactError, GyreError, PromotionRefusedError
from core.settings import Settings, load_settings
from core.spec import MODELS
from mlflow_server.alerts import Alerts
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import reconcile
from mlflow_server.promotion.rules import stage_by_hand
from mlflow_server.roles import PRODUCTION_STAGE, RoleAssignment
from mlflow_server.server.stages import promote_by_stage

POLL_SECONDS = 3.0
UNKNOWN_AUTHOR = "out of band"
"""Author in the ledger: MLflow does not store who changed an alias or a stage."""
States = dict[str, tuple[RoleAssignment, int]]
"""Models as they were when they were last made to agree, with the time of their last change."""
logger = logging.getLogger(__name__)


def follow(settings: Settings, states: States) -> Iterator[str]:
    """Make each model with a spec agree that has changed; yield why one could not be."""
    for model, assignment in Registry(settings).models().items():
        state = (assignment, assignment.updated)
        has_spec = (MODELS / f"{model}.toml").is_file()
        if not has_spec or states.get(model) == state:
            continue
        try:
            settle(settings, model)
            states[model] = state
        except GyreError as exc:
            yield str(exc)


def settle(settings: Settings, model: str) -> None:
    """Make ledger, aliases and stages of a model agree.

    Raises:
        RegistryError: MLflow or the database does not answer.

    """
    registry = Registry(settings)
    with Ledger(settings) as ledger:
        reconcile(registry, ledger, model)
        # Under the lock no promotion is between its alias and its stage.
        with ledger.exclusive(model):
            assignment = registry.assignment(model)
            rows = ledger.rows(model, assignment.created)
            version = stage_by_hand(rows, assignment, registry.stages(model))
        if version is None:
            return
        try:
            promote_by_stage(registry, ledger, model, version, UNKNOWN_AUTHOR)
        except (PromotionRefusedError, ArtifactError) as exc:
            with ledger.exclusive(model):
                production = registry.production(model)
                stage = PRODUCTION_STAGE if production else "Staging"
                registry.set_stage(model, production or version, stage)
            cause = f"stage of version {version} set back"
            text = f"version {version} was set to stage Production in MLflow: {exc}"
            with Alerts(settings) as alerts:
                alerts.alert(model, cause, text, datetime.now(UTC))


def main() -> None:
    """Poll until SIGTERM; log problems that are new."""
    settings = load_settings()
    states: States = {}
    problems_before: list[str] = []
    while True:
        try:
            problems = [*follow(settings, states)]
        except GyreError as exc:  # of MLflow, not of a model
            problems = [str(exc)]
        if problems != problems_before:
            logger.warning("%s", "; ".join(problems) or "MLflow answers again")
        problems_before = problems
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s")
    try:
        main()
    except GyreError as exc:
        sys.exit(f"{exc}")
