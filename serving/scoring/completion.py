"""Features that a row is scored by: from its request, from the store, or the defaults."""

import math
from collections.abc import Sequence
from datetime import datetime

from core.errors import FeaturesUnavailableError
from core.spec import MISSING, Entity, FeatureType
from mlflow_server.manifest import LookupSpecification
from serving.errors import InvalidRequestError, NotFoundError
from serving.features.lookup import StoredRow
from serving.scoring.rows import Features, ReceivedRow, Row, Values
from serving.versions.model import LoadedModel

NULLS = {"float32": math.nan, "double": math.nan, "string": MISSING}
"""Values of a null, as in training. A null of another type is a missing feature."""
PYTHON_TYPES: dict[FeatureType, type | tuple[type, ...]] = {
    "int32": int,
    "int64": int,
    "float32": (int, float),
    "double": (int, float),
    "bool": bool,
    "timestamp": datetime,
    "string": str,
}
"""Python's types of a request's values."""
Completed = Features | Exception
"""Features of a row, or why it has none."""


async def complete(
    model: LoadedModel, rows: Sequence[ReceivedRow], *, refuse: bool
) -> list[Completed]:
    """Find the features of rows.

    Args:
        model: The version that scores the rows.
        rows: Rows of one or several requests.
        refuse: Whether a missing feature is an error. If not, its default replaces it.

    Returns:
        Features of each row, or why it has none.

    """
    features = {}
    open_positions = []
    for position, received in enumerate(rows):
        given = _given_features(model, received.row, refuse=refuse)
        if given is None:
            open_positions.append(position)
        else:
            features[position] = given
    if open_positions:
        request_data = model.contract.lookup.request_data
        keys = []
        moments = []
        for position in open_positions:
            row = rows[position].row
            own_data = {name: row.request_data[name] for name in request_data}
            keys.append({**(row.key or {}), **own_data})
            moments.append(rows[position].received)
        stored_rows, origin = await model.features.read(keys, moments)
        for position, stored in zip(open_positions, stored_rows, strict=True):
            row = rows[position].row
            features[position] = _stored_features(
                model, row, stored, origin, refuse=refuse
            )
    return [features[position] for position in range(len(rows))]


def _given_features(model: LoadedModel, row: Row, *, refuse: bool) -> Completed | None:
    """Return the features that a request gives; None: they are to be looked up."""
    contract = model.contract
    if row.given or row.key is None or not contract.feature_service:
        missing = [name for name in contract.features if name not in row.given]
        if missing:
            return InvalidRequestError(
                f"features: version {model.version} needs {', '.join(missing)}"
            )
        for name, kind in contract.features.items():
            value = row.given[name]
            if value is not None and not isinstance(value, PYTHON_TYPES[kind]):
                # The value was read by the types of production.
                return InvalidRequestError(
                    f"features: version {model.version} needs {name} as {kind}, "
                    f"found {value}"
                )
        return _filled(model, row.given, "request", refuse=refuse)
    request_data = contract.lookup.request_data
    missing = sorted(request_data.keys() - row.request_data.keys())
    if missing:
        names = ", ".join(f"{name} ({request_data[name]})" for name in missing)
        return InvalidRequestError(
            f"{names}: version {model.version} needs it beside the key, found none"
        )
    return None


def _stored_features(
    model: LoadedModel,
    row: Row,
    stored: StoredRow | None,
    origin: str,
    *,
    refuse: bool,
) -> Completed:
    """Return the stored features of a row.

    Args:
        model: The version that scores the row.
        row: Row of a request.
        stored: Its stored row; None: the store, or the cache, has none.
        origin: "online" or "cache".
        refuse: Whether a missing feature is an error.

    Returns:
        The features, or why there are none.

    """
    key = row.key or {}
    if stored is None:
        if origin == "online":
            return NotFoundError(f"{_key_text(key)} is not known to the feature store")
        return _filled(model, {}, origin, refuse=refuse)
    if origin == "online" and stored.absent_views:
        origin = "partly"
    if stored.features and None not in stored.features.values():
        return Features(stored.features, origin)
    reason = _reason(model.contract.lookup, key, stored)
    return _filled(model, stored.features, origin, refuse=refuse, reason=reason)


def _filled(
    model: LoadedModel, values: Values, origin: str, *, refuse: bool, reason: str = ""
) -> Completed:
    """Fill nulls: a double and a text as in training, another type by its default.

    Args:
        model: The version that takes the features.
        values: Features by name, null or not; none where nothing could be read.
        origin: Source of the values; "defaults" replaces it where a default is filled in.
        refuse: Whether to refuse rather than to fill in a default.
        reason: Why stored features are null.

    Returns:
        The features, or why there are none.

    """
    filled = {}
    for name, kind in model.contract.features.items():
        value = values.get(name)
        if value is None and name in values:
            value = NULLS.get(kind)
        if value is None:
            if refuse:
                problem = model.features.problem or reason or f"{name} is null"
                return FeaturesUnavailableError(
                    f"no features for a prediction: {problem}"
                )
            value = model.contract.defaults[name]
            origin = "defaults"
        filled[name] = value
    return Features(filled, origin)


def _reason(lookup: LookupSpecification, key: Entity, stored: StoredRow) -> str:
    """Say why stored features are null: which views have no row of which key."""
    if not stored.features:
        return "the stored values cannot be read"
    sentences = []
    for view in lookup.views:
        if view.name in stored.absent_views:
            own_key = {column: key[column] for column in view.keys}
            sentences.append(f"view {view.name} has no row of {_key_text(own_key)}")
    return "; ".join(sentences)


def _key_text(key: Entity) -> str:
    return ", ".join(f"{column} {value}" for column, value in key.items())
