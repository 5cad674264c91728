"""From a version's files to a session: bytes checked, contract compared, defaults scored."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from core.packages import package_version
from core.spec import ModelSpec
from mlflow_server.manifest import CONTRACT_FILE, DIGEST_TAG, ModelManifest, wrong_files
from serving.errors import ModelRefusedError
from serving.features.lookup import RowReader
from serving.versions.model import OnnxSession, Session, score, score_problem
from serving.versions.pyfunc_process import PyfuncSession

MAX_REASON = 500
WHOLE_IMAGE = "the image serving-full"


def open_version(
    folder: Path,
    digests: Mapping[str, str],
    spec: ModelSpec,
    online_store: str,
) -> tuple[ModelManifest, Session]:
    """Check the digests of the files in `folder`, then parse, compare and warm up the model.

    Args:
        folder: Holds the files of the version.
        digests: SHA-256 of each file, by its tag.
        spec: Spec of the model in this project.
        online_store: Type of the online store.

    Raises:
        ModelRefusedError: The version does not fit its digests, this project or this image.
        DataError: The features of the version cannot be looked up.
        Exception: onnxruntime or pydantic cannot read a file.

    """
    damage = wrong_files(folder, digests)
    if damage:
        raise ModelRefusedError(damage)
    contract = ModelManifest.model_validate_json((folder / CONTRACT_FILE).read_bytes())
    problem = _look_up_problem(contract, online_store)
    if contract.model != spec.name:
        problem = f"expected model {spec.name}, found {contract.model}"
    if problem:
        raise ModelRefusedError(f"{CONTRACT_FILE}: {problem}")
    session = _open_session(folder, contract, digests, spec)
    try:
        _check_defaults(session, contract)
    except BaseException:
        session.close()
        raise
    return contract, session


def reason_of(exc: Exception) -> str:
    """Return the class and the text of an error in one line, cut where it is long."""
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:MAX_REASON]


def _open_session(
    folder: Path, contract: ModelManifest, digests: Mapping[str, str], spec: ModelSpec
) -> Session:
    file = folder / contract.file
    if contract.format == "onnx":
        return OnnxSession(file, contract)
    if find_spec("mlflow") is None:
        raise ModelRefusedError(f"a model of {contract.loader} needs {WHOLE_IMAGE}")
    return PyfuncSession(
        file=file,
        contract=contract,
        digest=digests[DIGEST_TAG + contract.file],
        trusted=spec.trusted_types,
    )


def _check_defaults(session: Session, contract: ModelManifest) -> None:
    """Refuse a session that scores the defaults wrongly."""
    scores = score(session, contract, [contract.defaults])
    problem = (
        score_problem(contract, scores[0]) if len(scores) == 1 else "not one score"
    )
    if problem:
        raise ModelRefusedError(
            f"{contract.file}: the defaults score {scores}, {problem}"
        )


def _look_up_problem(contract: ModelManifest, online_store: str) -> str | None:
    """Say why the features cannot be looked up in a store of this type; None if they can."""
    if not contract.feature_service:
        return None
    lookup = contract.lookup
    feast_version = package_version("feast")
    if (lookup.feast, lookup.online_store) != (feast_version, online_store):
        found = f"Feast {feast_version} with {online_store}"
        needed = f"Feast {lookup.feast} with {lookup.online_store}"
        return f"its look-up specification needs {needed}, found {found}: train again"
    if lookup.unsupported is not None and find_spec("feast") is None:
        return f"Feast's own reader ({lookup.unsupported}) needs {WHOLE_IMAGE}"
    if lookup.unsupported is None:
        RowReader(lookup, tuple(contract.features))
    return None
