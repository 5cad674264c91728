"""Stage 1, validate: do spec and feature service fit together, and do the raw rows pass their rules?"""

import json
from collections.abc import Mapping
from datetime import datetime

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.definition import Dataset, table_versions
from feature_repo.engine import feature_engine
from feature_repo.published.service import PublishedService
from mlflow_server.api.pages import Pages
from mlflow_server.api.tracking import Tracking
from training.artifacts import EXPECTATION_PAGES

EXPECTATIONS_TAG = "gyre.expectations."
"""Beginning of the tags with the result of Great Expectations for a dataset's raw rows."""


def mismatches(spec: ModelSpec, service: PublishedService) -> list[str]:
    """Return a line for each key of the spec that Feast lacks or has otherwise."""
    lines = []
    published: Mapping[str, str] = service.features
    # Raises for request data that no request can bring.
    available = {**published, **service.request_data}
    for name, kind in spec.features.items():
        if name not in published:
            expected = f"expected one of {spec.feature_service}: {', '.join(published)}"
            line = f"features.{name}: {expected}; found {name}"
            if name in service.request_data:
                line += ", which is request data: an on-demand view can give it as a feature"
            lines.append(line)
        elif published[name] != kind:
            lines.append(f"features.{name}: expected {published[name]}, found {kind}")
    for name, kind in spec.audit.items():  # else a column of the label's rows
        if available.get(name, kind) != kind:
            lines.append(f"audit.{name}: expected {available[name]}, found {kind}")
    if service.key_types != spec.entity_key:
        expected = _as_toml(service.key_types)
        lines.append(
            f"entity_key: expected {expected}, found {_as_toml(spec.entity_key)}"
        )
    return [f"{spec.name}.toml: {line}" for line in lines]


def _as_toml(key: Mapping[str, str]) -> str:
    pairs = [f'{json.dumps(name)} = "{kind}"' for name, kind in key.items()]
    return f"{{ {', '.join(pairs)} }}"


def validate(settings: Settings, run_id: str, datasets: Mapping[str, Dataset]) -> None:
    """Validate the raw rows that the tags of a run pin.

    Args:
        settings: Settings of the installation.
        run_id: The MLflow run.
        datasets: Datasets of the label and of the features, by name.

    Raises:
        TrainingError: The rows break a rule.

    """
    tracking = Tracking(settings)
    tags = tracking.run(run_id).tags
    as_of = datetime.fromisoformat(tags["as_of"])
    for name, version in table_versions(tags).items():
        dataset = datasets[name]
        result = feature_engine().validate_rows(settings, dataset, version, as_of)
        if result.rejections:
            page = f"{EXPECTATION_PAGES}/{name}.html"
            tracking.log_text(run_id, result.page, page)
            link = f"{Pages(settings).run(run_id)}/artifacts/{page}"
            raise TrainingError(
                f"{name}: {result.words}: {'; '.join(result.rejections)}. Correct the rule in "
                f"expectations/{dataset.source_name}.json, or the rows at the source. All rules: {link}"
            )
        tracking.log(run_id, tags={f"{EXPECTATIONS_TAG}{name}": result.words})
