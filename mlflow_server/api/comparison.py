"""Two versions side by side, read over MLflow's REST API."""

import json
from math import isnan
from typing import Any

from core.settings import Settings
from mlflow_server.api.pages import Pages
from mlflow_server.api.rest import read_artifact

EVALUATION = "evaluation.json"
GATES = "gates.json"


def compare_versions(
    settings: Settings, model: str, *versions: str
) -> list[dict[str, Any]]:
    """Return each metric, parameter, feature and gate of two versions, and whether it differs.

    Metrics are on each one's own test rows; a feature has the mean size of its contributions.

    Args:
        settings: Settings of the installation.
        model: Name of the model.
        versions: Two numbers.

    Returns:
        Rows with `fact`, such as `metric auc`; a value by each number, `none` if the version has no
        such fact or it is nan; and `differs`.

    Raises:
        RegistryError: MLflow does not answer, or has no such version or no run of it.
        ArtifactError: The run has no evaluation.

    """
    facts = [_facts(settings, model, version) for version in versions]
    rows = []
    for fact in facts[0] | facts[1]:
        values = [version_facts.get(fact, "none") for version_facts in facts]
        row = {"fact": fact} | dict(zip(versions, values, strict=True))
        rows.append(row | {"differs": values[0] != values[1]})
    return rows


def _facts(settings: Settings, model: str, version: str) -> dict[str, Any]:
    run = Pages(settings).version(model, version)
    evaluation = json.loads(read_artifact(settings, run.artifacts, EVALUATION))
    gates = json.loads(read_artifact(settings, run.artifacts, GATES))["gates"]
    parts = {
        "metric": evaluation["challenger"] | evaluation["figures"],
        "parameter": run.params,
        "feature": evaluation["contributions"],
        "gate": {f"{gate['metric']} {gate['rule']}": gate["text"] for gate in gates},
    }
    facts = {}
    for kind, values in parts.items():
        for name, value in values.items():
            figure = value
            if isinstance(value, float):
                figure = "none" if isnan(value) else round(value, 6)
            facts[f"{kind} {name}"] = figure
    return facts
