"""Build a registered version again from what its lineage names, in another folder, and compare.

The installation is only read: its raw table and MLflow. Definitions, features, frame and model are
made anew in the folder given, by the code and packages that are here now.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from feature_repo.datasets import load_dataset
from feature_repo.features import raw_table, write_views
from feature_repo.store import FeatureStore, publish_beside
from mlflow_server.registry import Registry
from mlflow_server.served_model import (
    CONTRACT_FILE,
    DIGEST_TAG,
    ONNX_FILE,
    digest_tags,
    rounded,
)
from mlflow_server.tracking import Tracking
from stack.errors import DataError, RegistryError, SettingsError, TrainingError
from stack.spec import Estimator, ModelSpec
from training.artifacts import ESTIMATOR, SPEC, read
from training.dataset import load_frame
from training.frame import at, build_frame, content_hash, features
from training.lineage import TABLE_TAG, code_tags, table_tags
from training.onnx_export import export
from training.register import contract
from training.scoring import score
from training.train import choose_threshold, fit_pipeline, with_usable_folds
from training.validate import plan_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_server.registry import Version
    from stack.settings import Settings

log = logging.getLogger(__name__)
UNKNOWN = "not recorded"
SHOWN = 12


@dataclass(frozen=True)
class Part:
    """One thing: what it was for the version, what it is here, and what to do if they differ."""

    name: str
    then: str
    now: str
    remedy: str = ""

    @property
    def same(self) -> bool:
        return self.then == self.now

    def line(self) -> str:
        if self.same:
            return f"{self.name}: the same, {self.now[:SHOWN]}"
        what = f"{self.name}: another, then {self.then[:SHOWN]}, now {self.now[:SHOWN]}"
        return f"{what} ({self.remedy})" if self.remedy else what


@dataclass(frozen=True)
class Reproduction:
    """What a version was made of and what came of it, each compared.

    largest_difference: of two scores of one stored evaluation row. obstacle: why there are no
    results.
    """

    model: str
    version: str
    causes: tuple[Part, ...]
    results: tuple[Part, ...] = ()
    largest_difference: float | None = None
    obstacle: str | None = None

    @property
    def reproduced(self) -> bool:
        return bool(self.results) and all(part.same for part in self.results)

    def summary(self) -> str:
        """Verdict, reasons if it is "not", then every part."""
        verdict = "reproduced" if self.reproduced else "not reproduced"
        lines = [f"{self.model} version {self.version}: {verdict}"]
        if not self.reproduced:
            lines += [f"  impossible: {self.obstacle}"] if self.obstacle else []
            reasons = [part.line() for part in self.causes if not part.same]
            unnamed = "nothing it was made of differs: the machine, or an estimator left to chance"
            lines += [f"  because: {each}" for each in reasons or [unnamed]]
        else:
            lines += [f"  other, and no matter: {p.line()}" for p in self.causes if not p.same]
        lines += [f"  {part.line()}" for part in self.causes if part.same]
        return "\n".join(lines + [f"  → {part.line()}" for part in self.results])

    def as_json(self) -> dict[str, Any]:
        parts = {
            kind: [asdict(part) | {"same": part.same} for part in found]
            for kind, found in (("causes", self.causes), ("results", self.results))
        }
        return asdict(self) | parts | {"reproduced": self.reproduced}


def reproduce(
    settings: Settings, model: str, version: str, folder: Path | None = None
) -> Reproduction:
    """Build `version` again in `folder` (empty; default: a temporary one) and compare.

    Reproduced: the same training frame, the same answers to the stored evaluation rows, and the
    same bytes of both served files.

    Raises:
        SettingsError: the folder holds something.
        RegistryError: no such version, MLflow does not answer, or what it stored is damaged.

    """
    if folder and folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder}: expected an empty folder to build in")
    found, tracking = Registry(settings).version(model, version), Tracking(settings)
    stored = read(tracking, found.run_id, SPEC)
    try:
        spec = ModelSpec.model_validate_json(stored)
    except ValidationError as exc:
        reason = f"its stored spec is none that this code knows: {exc.errors()[0]['msg']}"
        raise RegistryError(f"version {version} of {model}: {reason}") from exc
    causes = _made_of(found, stored, spec)
    with _home(folder) as home:
        beside = settings.model_copy(update={"home": home})
        try:
            causes += _tables(settings, beside, found, spec)
            publish_beside(beside, load_dataset(spec.dataset))
            causes += _definitions(beside, found, spec)
            write_views(beside, load_dataset(spec.dataset), _raw(beside, spec))
            results, gap = _results(settings, beside, found, spec)
        except (DataError, TrainingError) as exc:
            return Reproduction(model, version, causes, obstacle=str(exc))
    return Reproduction(model, version, causes, results, gap)


def _made_of(found: Version, stored: bytes, spec: ModelSpec) -> tuple[Part, ...]:
    tags, here = found.tags, code_tags(spec)
    commit = tags.get("git_commit", UNKNOWN)[:SHOWN]
    unclean = "" if tags.get("git_clean") == "true" else ", with changes that were not committed"
    digest = {"spec_sha256": hashlib.sha256(stored).hexdigest()}
    return (
        _part(tags, "code", "code_sha256", here, f"made at commit {commit}{unclean}"),
        _part(tags, "requirements.lock", "lock_sha256", here, f"that of commit {commit}"),
        _part(tags, f"spec ({SPEC} of its run)", "spec_sha256", digest,
              "the stored file was altered"),
    )  # fmt: skip


def _tables(
    settings: Settings, beside: Settings, found: Version, spec: ModelSpec
) -> tuple[Part, ...]:
    """Copy the version's raw rows; compare them with those it was trained on.

    Raises:
        DataError: they can no longer be read.

    """
    dataset, table = load_dataset(spec.dataset), _raw(settings, spec)
    name = f"{TABLE_TAG}{spec.dataset}"
    if name not in found.tags or not table.exists:
        raise DataError(f"raw table {dataset.name}: expected {table.path}, there is no such table")
    version = int(found.tags[name])
    here = table_tags(table, version, dataset)
    log.info("rows of %s, version %d", dataset.name, version)
    rows = table.read(version)
    _raw(beside, spec).merge(rows, dataset.key, rows.column_names)
    what = f"raw table {dataset.name}"
    return (
        _part(found.tags, f"{what}, identity", f"{name}.id", here, "the table was made anew"),
        _part(found.tags, f"{what}, rows of version {version}", f"{name}.sha256", here,
              "rows were changed without a new version, or the table was made anew"),
    )  # fmt: skip


def _definitions(beside: Settings, found: Version, spec: ModelSpec) -> tuple[Part, ...]:
    digest = FeatureStore(beside).definition_hash(spec.feature_service)
    here = {"definition_sha256": digest}
    remedy = "feature_repo/datasets/ says something else by now"
    return (_part(found.tags, spec.feature_service, "definition_sha256", here, remedy),)


def _results(
    settings: Settings, beside: Settings, found: Version, spec: ModelSpec
) -> tuple[tuple[Part, ...], float]:
    tracking, dataset = Tracking(settings), load_dataset(spec.dataset)
    as_of, version = datetime.fromisoformat(found.tags["as_of"]), _raw(beside, spec).version
    plan = plan_run(beside, spec, dataset, as_of, version)
    log.info("training frame of %d snapshots", len(plan.moments))
    frame = build_frame(beside, spec, dataset, plan.moments, as_of, version)
    train = at(frame, plan.train)
    estimator = Estimator.model_validate_json(read(tracking, found.run_id, ESTIMATOR))
    log.info("%s on %d rows", estimator.name, train.num_rows)
    pipeline = fit_pipeline(spec, estimator, train)
    model = export(pipeline, spec.features).SerializeToString(deterministic=True)
    (beside.home / ONNX_FILE).write_bytes(model)
    threshold = choose_threshold(spec, estimator, frame, with_usable_folds(frame, plan))
    served = contract(beside, spec, train, threshold, found.tags["as_of"])
    (beside.home / CONTRACT_FILE).write_text(served.model_dump_json(indent=2))
    stored, was = load_frame(tracking, found.run_id)
    rows = at(stored, [was.test])
    registered = Registry(settings).served(found)[1]
    then, now = (score(each, spec.features, features(spec, rows)) for each in (registered, model))
    name = f"predictions, {rows.num_rows:,} rows of {was.test:%Y-%m-%d}"
    made = digest_tags(beside.home) | {"frame_sha256": content_hash(train)}
    return (
        _part(found.tags, f"training frame, {train.num_rows:,} rows", "frame_sha256", made),
        Part(name, _digest(then, threshold), _digest(now, threshold)),
        _part(found.tags, f"{ONNX_FILE} ({estimator.type})", DIGEST_TAG + ONNX_FILE, made),
        _part(found.tags, CONTRACT_FILE, DIGEST_TAG + CONTRACT_FILE, made),
    ), float(np.abs(then - now).max())  # fmt: skip


@contextmanager
def _home(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="gyre-reproduce-") as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()


def _raw(settings: Settings, spec: ModelSpec) -> Any:
    return raw_table(settings, load_dataset(spec.dataset))


def _part(
    tags: dict[str, str], name: str, tag: str, here: dict[str, str], remedy: str = ""
) -> Part:
    return Part(name, tags.get(tag, UNKNOWN), here.get(tag, UNKNOWN), remedy)


def _digest(scores: Any, threshold: float | None) -> str:
    return hashlib.sha256(rounded(scores, threshold).tobytes()).hexdigest()
