"""Build a registered version again from the frame and the estimator of its run, and compare.

The installation is only read; the version gets a tag with the outcome. Code and packages of this
installation fit and export.
"""

import logging
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from core.errors import RegistryError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.training import Estimator
from feature_repo.published.service import service_of
from mlflow_server.api.registry import Registry, Version
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import DIGEST_TAG, SKOPS_FILE, digest_tags
from mlflow_server.model.pyfunc import read_version
from mlflow_server.tags import FORGOTTEN_TAG
from training.artifacts import ESTIMATOR, SPEC, artifact_bytes
from training.data.frame import content_hash, feature_columns, snapshot_rows
from training.data.lineage import ADOPTED_TAG
from training.data.snapshots import dates
from training.evaluation.metrics import rounded
from training.inputs import input_tags
from training.model.onnx_export import exported
from training.model.scoring import score
from training.stages.dataset import load_frame
from training.stages.train import train_model, with_usable_folds, write_model

log = logging.getLogger(__name__)
SHOWN_CHARACTERS = 12
"""Characters of a hash in a difference."""
COMMIT_TAGS = ("git_commit", "git_clean", "gyre_commit")
BY_CHANCE = "all inputs are equal: another machine, or an estimator without a seed"


@dataclass(frozen=True)
class Reproduction:
    """A version beside the model that its run's frame gives now.

    Attributes:
        model: Name of the model.
        version: Its version.
        inputs: Differences of lineage by tag: the registered value and today's.
        results: Differences of scores and served files, empty if there is none.
        largest_difference: Largest difference of two scores of a row in the stored test set.

    """

    model: str
    version: str
    inputs: dict[str, str]
    results: dict[str, str]
    largest_difference: float

    @property
    def reproduced(self) -> bool:
        return not any(self.results.values())

    def summary(self) -> str:
        """Return verdict, differing tags and their effect."""
        verdict = "reproduced" if self.reproduced else "not reproduced"
        cause = "without effect" if self.reproduced else "because"
        lines = [f"{self.model} version {self.version}: {verdict}"]
        for name, difference in self.inputs.items():
            lines.append(f"  {cause}: {name}: {difference}")
        if not self.reproduced and not self.inputs:
            lines.append(f"  {cause}: {BY_CHANCE}")
        for name, difference in self.results.items():
            lines.append(f"  → {name}: {difference or 'the same'}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reproduced": self.reproduced}


def reproduce(settings: Settings, model: str, version: str) -> Reproduction:
    """Build `version` again in a temporary folder and compare.

    It is reproduced if the stored test rows have the same predictions, and the served files the same
    bytes. The file of skops is left out: its bytes differ each time.

    Raises:
        RegistryError: An entity of its rows was forgotten, or this code cannot read its stored spec.

    """
    registry = Registry(settings)
    tracking = Tracking(settings)
    registered = registry.version(model, version)
    spec = _stored_spec(tracking, registered)
    frame, plan = load_frame(tracking, registered.run_id)
    train_rows = snapshot_rows(frame, plan.train)
    inputs = _changed_inputs(settings, spec, registered, train_rows)
    estimator = Estimator.model_validate_json(
        artifact_bytes(tracking, registered.run_id, ESTIMATOR)
    )
    log.info("%s on %s", estimator.name, dates(plan.train))
    usable_plan = with_usable_folds(frame, plan)
    fitted, threshold, _ = train_model(spec, estimator, frame, usable_plan)
    as_of = registered.tags["as_of"]
    trusted = spec.trusted_types
    manifest, registered_model = read_version(registry, registered, trusted)
    with tempfile.TemporaryDirectory(prefix="gyre-reproduce-") as name:
        folder = Path(name)
        rows = feature_columns(spec, train_rows)
        rebuilt_model = exported(fitted, spec, rows, manifest.format)
        write_model(settings, spec, rebuilt_model, train_rows, threshold, as_of, folder)
        digests = digest_tags(folder)

    test_inputs = feature_columns(spec, snapshot_rows(frame, plan.test))
    scores = score(registered_model, spec.inputs, test_inputs)
    new_scores = score(rebuilt_model, spec.inputs, test_inputs)
    largest = float(np.abs(scores - new_scores).max())
    is_same = np.array_equal(
        rounded(scores, manifest.threshold), rounded(new_scores, manifest.threshold)
    )
    difference = "" if is_same else f"largest difference {largest:.3g}"
    results = {f"predictions of {len(test_inputs):,} rows": difference}
    changed_files = _differences(registered.tags, digests)
    for tag in digests:
        if tag != DIGEST_TAG + SKOPS_FILE:
            results[tag.removeprefix(DIGEST_TAG)] = changed_files.get(tag, "")
    report = Reproduction(model, version, inputs, results, largest)
    today = datetime.now(UTC).date()
    registry.note_reproduction(registered, today, is_same=report.reproduced)
    return report


def _stored_spec(tracking: Tracking, registered: Version) -> ModelSpec:
    """Return the spec that a version was trained by."""
    place = f"version {registered.version} of {registered.model}"
    if ADOPTED_TAG in registered.tags:
        source = registered.tags[ADOPTED_TAG]
        raise RegistryError(f"{place} was trained elsewhere: {source}")
    if FORGOTTEN_TAG in registered.tags:
        day = registered.tags[FORGOTTEN_TAG]
        raise RegistryError(
            f"{place} cannot be reproduced: rows of an entity were forgotten on {day}"
        )
    text = artifact_bytes(tracking, registered.run_id, SPEC)
    try:
        return ModelSpec.model_validate_json(text)
    except ValidationError as exc:
        raise RegistryError(
            f"{place}: this code cannot read its stored spec: {exc.errors()[0]['msg']}"
        ) from exc


def _changed_inputs(
    settings: Settings, spec: ModelSpec, registered: Version, train_rows: pa.Table
) -> dict[str, str]:
    """Return how the inputs of a version differ from the inputs of a training now."""
    definitions = service_of(settings, spec).definitions()
    tags_now = input_tags(spec, definitions)
    tags_now["frame_sha256"] = content_hash(train_rows)
    inputs = _differences(registered.tags, tags_now)
    if "code_sha256" not in inputs:  # another commit of the same code
        for tag in COMMIT_TAGS:
            inputs.pop(tag, None)
    return inputs


def _differences(registered: dict[str, str], here: dict[str, str]) -> dict[str, str]:
    """Return the tags whose values differ, with the registered value and today's."""
    differences = {}
    for tag, value in here.items():
        old_value = registered.get(tag, "none")
        if old_value != value:
            text = f"registered {old_value[:SHOWN_CHARACTERS]}, now {value[:SHOWN_CHARACTERS]}"
            differences[tag] = text
    return differences
