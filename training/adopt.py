"""A model that was trained elsewhere becomes a version, as a trained one: measured, gated, promoted."""

import logging
import os
import subprocess
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq

from core.errors import TrainingError
from core.settings import Settings
from core.spec import ModelSpec
from mlflow_server.api.tracking import Tracking
from mlflow_server.manifest import MODEL_FILES
from mlflow_server.model.pyfunc import ModelFile
from training.artifacts import CANDIDATE, PROOF
from training.chain import TrainReport, run_stages
from training.data.frame import snapshot_rows
from training.data.lineage import ADOPTED_TAG
from training.model.foreign import REQUESTS, RESULTS, Request, Result
from training.runs import open_run
from training.stages import STAGES
from training.stages.dataset import load_frame
from training.stages.train import write_model

log = logging.getLogger(__name__)
SECONDS = 1800
"""How long opening and comparing may take."""


def adopt(
    settings: Settings,
    spec: ModelSpec,
    source: str,
    as_of: datetime,
    *,
    key: str,
    reason: str,
    who: str,
) -> TrainReport:
    """Measure a model on the rows that a training would test on, gate, register and promote it.

    Args:
        settings: Settings of the installation.
        spec: The model; its features are the inputs of the model that was trained elsewhere.
        source: A folder, or an address of MLflow: `runs:/…`, `models:/NAME/7`.
        as_of: Aware UTC.
        key: Key of the run: the same key gives the same run.
        reason: Why it is adopted, for people.
        who: Person or program that asked for it.

    Raises:
        GyreError: The model cannot be opened, takes other inputs than the spec says, or no served form
            scores as it does.

    """
    run_id = open_run(
        settings, spec, as_of, key=key, reason=reason, who=who, force=True
    )
    tracking = Tracking(settings)
    tracking.log(str(run_id), tags={ADOPTED_TAG: source})
    stages = [
        replace(stage, function="training.adopt:take")
        if stage.name == "train"
        else stage
        for stage in STAGES
    ]
    return run_stages(
        settings, spec, as_of, str(run_id), stages, who=who, reason=reason
    )


def take(settings: Settings, spec: ModelSpec, run_id: str) -> None:
    """Take the model that the run's tag names, in place of fitting one; store its files.

    A gate refuses a model whose proof failed.
    """
    tracking = Tracking(settings)
    run = tracking.run(run_id)
    if "chosen_by" in run.params:
        return
    source = run.tags[ADOPTED_TAG]
    frame, plan = load_frame(tracking, run_id)
    with TemporaryDirectory(prefix="gyre-adopt-") as name:
        folder = Path(name)
        pq.write_table(frame, folder / "frame.parquet")
        request = Request(
            source=source,
            address=settings.mlflow_address,
            spec=spec,
        )
        log.info(
            "%s: opening %s, and comparing it with its served form", spec.name, source
        )
        result = _taken(folder, request)
        log.info("%s: %s is taken as %s", spec.name, result.kind, result.loader)
        content = (folder / MODEL_FILES[result.loader]).read_bytes()
        candidate = folder / CANDIDATE
        candidate.mkdir()
        write_model(
            settings=settings,
            spec=spec,
            served=ModelFile(
                content,
                result.loader,
                trusted=spec.trusted_types,
                interface=result.interface,
            ),
            train=snapshot_rows(frame, plan.train),
            threshold=spec.threshold,
            as_of=run.tags["as_of"],
            folder=candidate,
        )
        tracking.log_artifacts(run_id, str(candidate), CANDIDATE)
    if result.remark:
        log.warning("%s: %s", spec.name, result.remark)
    tracking.log_dict(run_id, asdict(result.proof) if result.proof else {}, PROOF)
    params = {"estimator": result.kind, "chosen_by": f"adopted from {source}"}
    if spec.threshold is not None:
        params |= {"threshold": str(spec.threshold), "threshold_by": "the spec"}
    tracking.log(run_id, params=params)


def _taken(folder: Path, request: Request) -> Result:
    """Make the served form of a model in a process of its own.

    Raises:
        TrainingError: There is none that scores as the model, or the process died.

    """
    (folder / "request.json").write_bytes(REQUESTS.dump_json(request))
    command = [sys.executable, "-m", "training.model.foreign", str(folder)]
    done = subprocess.run(
        command,
        capture_output=True,
        check=False,
        # Not the modules of the folder that somebody stands in: one may be called training.py.
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        text=True,
        timeout=SECONDS,
    )
    file = folder / "result.json"
    if not file.exists():
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise TrainingError(
            f"{request.source}: the process that opens it ended with {done.returncode}: "
            f"{lines[-1]}"
        )
    result = RESULTS.validate_json(file.read_bytes())
    if result.error:
        raise TrainingError(f"{request.source}: {result.error}")
    return result
