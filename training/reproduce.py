"""Build a registered version again from the frame and the estimator of its run, and compare.

The installation is only read. The code and packages that fit and export are those that are here
now; the raw rows behind the frame are compared by hash, if the table still has that version.
"""

import hashlib
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from core.errors import DataError, RegistryError
from core.settings import Settings
from core.spec import ModelSpec
from core.training_spec import Estimator
from feature_repo.datasets import load_dataset
from feature_repo.definition import TABLE_TAG, table_versions
from feature_repo.definition_hash import DEFINITION_TAG
from feature_repo.features import raw_table
from feature_repo.service import PublishedService
from mlflow_server.pyfunc import read_file
from mlflow_server.registry import FORGOTTEN_TAG, Registry, Version
from mlflow_server.served_model import DIGEST_TAG, SKOPS_FILE, digest_tags, rounded
from mlflow_server.tracking import Tracking
from training.artifacts import ESTIMATOR, SPEC, read
from training.dataset import load_frame
from training.frame import at, content_hash, features
from training.lineage import code_tags, table_tags
from training.onnx_export import score
from training.snapshots import dates
from training.train import train_model, with_usable_folds, write_model

log = logging.getLogger(__name__)
SHOWN = 12
"""Characters of a hash in a difference."""
BY_CHANCE = (
    "nothing it was made of differs: the machine, or an estimator left to chance"
)


@dataclass(frozen=True)
class Reproduction:
    """What a version was made of (`inputs`) and what came of it (`results`), each compared.

    By name the difference between what was registered and what is here now; empty where there is
    none. largest_difference: of two scores of one stored evaluation row.
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
        """Verdict, what differs, what is the same, and what came of it."""
        verdict, why = "reproduced", "without effect"
        if not self.reproduced:
            verdict, why = "not reproduced", "because"
        lines = [f"{self.model} version {self.version}: {verdict}"]
        lines += [
            f"  {why}: {name}: {found}" for name, found in self.inputs.items() if found
        ]
        if not self.reproduced and len(lines) == 1:
            lines.append(f"  {why}: {BY_CHANCE}")
        lines += [
            f"  {name}: the same" for name, found in self.inputs.items() if not found
        ]
        lines += [
            f"  → {name}: {found or 'the same'}" for name, found in self.results.items()
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"reproduced": self.reproduced}


def reproduce(settings: Settings, model: str, version: str) -> Reproduction:
    """Build `version` again in a temporary folder and compare.

    Reproduced: the same answers to the stored evaluation rows, and the same bytes of both served
    files, but of skops, which writes others each time.
    """
    registered, tracking = (
        Registry(settings).version(model, version),
        Tracking(settings),
    )
    if day := registered.tags.get(FORGOTTEN_TAG):
        why = f"rows of an entity were forgotten on {day}"
        raise RegistryError(f"version {version} of {model} cannot be reproduced: {why}")
    stored = read(tracking, registered.run_id, SPEC)
    try:
        spec = ModelSpec.model_validate_json(stored)
    except ValidationError as exc:
        reason = (
            f"its stored spec is none that this code knows: {exc.errors()[0]['msg']}"
        )
        raise RegistryError(f"version {version} of {model}: {reason}") from exc
    frame, plan = load_frame(tracking, registered.run_id)
    train = at(frame, plan.train)
    inputs = _inputs(settings, registered, spec, stored, content_hash(train))
    estimator = Estimator.model_validate_json(
        read(tracking, registered.run_id, ESTIMATOR)
    )
    log.info("%s on %s", estimator.name, dates(plan.train))
    made, threshold, _ = train_model(
        spec, estimator, frame, with_usable_folds(frame, plan)
    )
    with tempfile.TemporaryDirectory(prefix="gyre-reproduce-") as name:
        place = Path(name)
        write_model(
            settings, spec, made, train, threshold, registered.tags["as_of"], place
        )
        results, gap = _results(settings, registered, spec, at(frame, plan.test), place)
    return Reproduction(model, version, inputs, results, gap)


def _results(
    settings: Settings,
    registered: Version,
    spec: ModelSpec,
    test: pa.Table,
    place: Path,
) -> tuple[dict[str, str], float]:
    """Compare scores and files of the model in `place`; return the largest difference, too."""
    trusted = spec.serving.trusted_types
    contract, model = Registry(settings).served(registered, trusted)
    models = (model, read_file(place, contract, trusted))
    then, now = (score(each, spec.inputs, features(spec, test)) for each in models)
    gap = float(np.abs(then - now).max())
    before, after = (rounded(scores, contract.threshold) for scores in (then, now))
    found = "" if np.array_equal(before, after) else f"largest difference {gap:.3g}"
    results = {f"predictions of {test.num_rows:,} rows": found}
    for tag, digest in digest_tags(place).items():
        if tag != DIGEST_TAG + SKOPS_FILE:
            results[tag.removeprefix(DIGEST_TAG)] = _difference(registered, tag, digest)
    return results, gap


def _inputs(
    settings: Settings, registered: Version, spec: ModelSpec, stored: bytes, frame: str
) -> dict[str, str]:
    """Compare what the version names with what is here. stored: its spec. frame: the rows' hash."""
    tags, here = registered.tags, code_tags(spec)
    commit = tags.get("git_commit", "unknown")[:SHOWN]
    unclean = (
        ""
        if tags.get("git_clean") == "true"
        else ", with changes that were not committed"
    )
    named = {
        f"code (commit {commit}{unclean})": ("code_sha256", here["code_sha256"]),
        "requirements.lock": ("lock_sha256", here["lock_sha256"]),
        SPEC: ("spec_sha256", hashlib.sha256(stored).hexdigest()),
        "training frame": ("frame_sha256", frame),
    }
    service = PublishedService(settings, spec.feature_service)
    for name, definition in service.definitions().items():
        named[f"definition of {name}"] = (DEFINITION_TAG + name, definition)
    inputs = {
        name: _difference(registered, tag, now) for name, (tag, now) in named.items()
    }
    for name, table_version in table_versions(tags).items():
        rows = f"rows of raw table {name}, version {table_version}"
        inputs[rows] = _difference_of_rows(settings, registered, name, table_version)
    return inputs


def _difference_of_rows(
    settings: Settings, registered: Version, name: str, table_version: int
) -> str:
    """Compare the rows of the raw table's version with those that the frame was made of."""
    tag = f"{TABLE_TAG}{name}.sha256"
    try:
        table = raw_table(settings, dataset := load_dataset(name))
        if not table.exists:
            return f"not compared: {table.path} is no table"
        here = table_tags(table, table_version, dataset)
    except DataError as exc:
        return f"not compared: {exc}"
    return _difference(registered, tag, here[tag])


def _difference(registered: Version, tag: str, here: str) -> str:
    then = registered.tags.get(tag, "none")
    return "" if then == here else f"registered {then[:SHOWN]}, now {here[:SHOWN]}"
