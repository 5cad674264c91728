"""Skew: the features that a version was given online, against the offline values of that moment.

Each value of a logged vector whose features were looked up (`features_from` is online) is one of:

equal      the offline value at the vector's moment
stale      the offline value of a moment at most PROMISE before it, as ingest is hourly (or AHEAD
           of it: a sender's clock may be)
corrected  what was known by then: rows as they stood in the raw table
unsettled  none of these, but rows of its entity landed within two hours after
skewed     none of these

Earlier moments are tried, not the watermark: Feast's registry knows how far a view is materialised
now, not how far it was when the vector was read. Skew is told and alerted of; it is no drift, and a
retraining would not mend it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from feature_repo.as_known import Knowledge, store_of, values_at, values_near
from feature_repo.datasets import load_dataset
from feature_repo.parity import same
from mlflow_server.alerts import DriftAlert
from mlflow_server.registry import Registry
from monitoring.window import LENGTH
from stack.errors import GyreError
from stack.spec import MISSING, entity_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    import pyarrow as pa

    from feature_repo.definition import Dataset
    from mlflow_server.served_model import ServedModel
    from stack.settings import Settings
    from stack.spec import Entity, ModelSpec
    from stack.storage import Table

    Turn = dict[Any, tuple[list[Any], list["Vector"]]]
    """Entity → its raw rows, and the vectors that may have been read of these."""

PROMISE, AHEAD = timedelta(hours=1), timedelta(minutes=1)
ONLINE = "online"
LANDED = timedelta(hours=2)
"""An event lands with the next ingest, or the one after if that is missed."""
VECTOR = ["entity", "as_of", "received", "features"]
"""Columns of `predictions` that say what a model was given."""
MOST = 10_000
"""Vectors of one look: the newest half, and a sample of fixed seed of those before."""
MOST_STATES = 10
"""Stores made in one look to find out what was known: a second or two each."""
CLASSES = ("equal", "stale", "corrected", "unsettled", "skewed")


@dataclass
class Vector:
    """What was logged of one request. differs: offline value by feature, as far as unexplained."""

    key: Entity
    at: datetime
    received: datetime
    logged: Mapping[str, Any]
    differs: dict[str, Any] = field(default_factory=dict)

    def told(self, name: str) -> str:
        who = ", ".join(f"{column} {value}" for column, value in self.key.items())
        values = f"online {self.logged[name]!r}, offline {self.differs[name]!r}"
        return f"{name}: {who} at {self.at:%Y-%m-%d %H:%M:%S} UTC: {values}"


@dataclass(frozen=True)
class Skew:
    """values: how many are of each class. skewed: vectors, newest first. apart: rows by why not."""

    version: str
    vectors: int = 0
    looked_up: int = 0
    values: Mapping[str, int] = field(default_factory=Counter)
    apart: Mapping[str, int] = field(default_factory=Counter)
    skewed: tuple[Vector, ...] = ()
    obstacle: str | None = None

    def figures(self) -> dict[str, float]:
        found = {"vectors": self.vectors} | {name: self.values[name] for name in CLASSES}
        found |= {f"apart_{name}": count for name, count in self.apart.items()}
        return {f"skew_{name}": float(count) for name, count in found.items()}

    def notes(self) -> list[str]:
        obstacle = [f"skew was not measured: {self.obstacle}"] if self.obstacle else []
        sample = f"skew: {self.vectors} of {self.looked_up} vectors were looked at"
        return [*obstacle, *([sample] if self.vectors < self.looked_up else [])]

    def alerts(self, as_of: datetime) -> dict[str, DriftAlert]:
        """Return one of each skewed feature, by a cause that is the same as long as it lasts."""
        found = {}
        for name in sorted({name for each in self.skewed for name in each.differs}):
            newest, *others = (each for each in self.skewed if name in each.differs)
            told = f"skew of {newest.told(name)}" + (f"; and {len(others)} more" if others else "")
            cause = f"skew of version {self.version}: {name}"
            found[cause] = DriftAlert(name, "skew", "significant", None, as_of, told)
        return found


def skew(
    settings: Settings, spec: ModelSpec, version: str, predictions: Table, as_of: datetime
) -> Skew:
    """Compare what `version` was given in the 24 hours up to `as_of`. predictions: as logged."""
    mine = (
        (pc.field("model") == spec.name)
        & (pc.field("version") == version)
        & (pc.field("received") > as_of - LENGTH)
        & (pc.field("received") <= as_of)
    )
    given = predictions.read(columns=["features_from"], where=mine)["features_from"]
    if not len(given):
        return Skew(version)
    counts = given.value_counts().to_pylist()
    sources = Counter[str]({each["values"]: each["counts"] for each in counts})
    online = mine & (pc.field("features_from") == ONLINE)
    # By name first: vectors of all would take more memory than all else of a look.
    chosen = sampled(predictions.read(columns=["request_id", "received"], where=online))
    wanted = mine & pc.field("request_id").isin(chosen["request_id"].combine_chunks())
    rows = predictions.read(columns=VECTOR, where=wanted)
    registry = Registry(settings)
    try:
        served, _ = registry.served(registry.version(spec.name, version))
        return audit(settings, load_dataset(spec.dataset), served, version, rows, sources)
    except GyreError as exc:
        return Skew(version, obstacle=str(exc))


def audit(
    settings: Settings,
    dataset: Dataset,
    served: ServedModel,
    version: str,
    rows: pa.Table,
    sources: Mapping[str, int],
) -> Skew:
    """Compare logged `rows` of one version, which is called as `served` says.

    sources: how many rows there are, these among them, by where their features are from.

    Raises:
        DataError: the offline values, or what was known then, cannot be read.

    """
    vectors, odd = read(rows.sort_by([("received", "descending")]), served)
    values = classify(settings, dataset, served, vectors)
    apart = odd + Counter({name: n for name, n in sources.items() if name != ONLINE})
    looked_up = sources.get(ONLINE, 0) - odd.total()
    return Skew(version, len(vectors), looked_up, values, apart, tuple(_open(vectors)))


def sampled(rows: pa.Table) -> pa.Table:
    """Newest first, at most MOST: the newest half, and of the others as many by fixed seed."""
    by = [("received", "descending")]
    if rows.num_rows > MOST:
        newest = pc.select_k_unstable(rows, MOST // 2, by).cast("int64").to_numpy()
        others = np.delete(np.arange(rows.num_rows), newest)
        chosen = np.random.default_rng(0).choice(others, MOST // 2, replace=False)
        rows = rows.take(np.concatenate([newest, chosen]))
    return rows.sort_by(by)


def read(rows: pa.Table, served: ServedModel) -> tuple[list[Vector], Counter[str]]:
    """Vectors of the version's own keys and features, and how many rows are none, by why."""
    vectors, odd = list[Vector](), Counter[str]()
    for row in rows.select(["entity", "as_of", "received", "features"]).to_pylist():
        logged = json.loads(row["features"])
        try:
            key = entity_of(served.entity_key, row["entity"])
        except (TypeError, ValueError):
            odd["other_entity"] += 1
            continue
        if logged.keys() == served.features.keys():
            vectors.append(Vector(key, row["as_of"], row["received"], logged))
        else:
            odd["other_features"] += 1
    return vectors, odd


def classify(
    settings: Settings, dataset: Dataset, served: ServedModel, vectors: list[Vector]
) -> Counter[str]:
    """Count values by class; what is left in `differs` of each vector is skewed.

    Raises:
        DataError: as `audit` says.

    """
    names, counts = list(served.features), Counter[str]()
    asked = [(each.key, each.at) for each in vectors]
    offline = values_at(settings, served.feature_service, names, asked)
    for vector, row in zip(vectors, offline, strict=True):
        unlike = (name for name in names if not _same(row[name], vector.logged[name]))
        vector.differs = {name: _finite(row[name]) for name in unlike}
    counts["equal"] = len(vectors) * len(names) - _left(vectors)
    counts["stale"] = _explain(settings, dataset, served, _open(vectors))
    if puzzling := _open(vectors):
        counts.update(_by_what_was_known(settings, dataset, served, puzzling))
    counts["skewed"] = _left(vectors)
    return counts


def _explain(
    settings: Settings, dataset: Dataset, served: ServedModel, vectors: list[Vector]
) -> int:
    """Take out values of any moment near the vector's; return how many."""
    before, asked = _left(vectors), [(each.key, each.at) for each in vectors]
    service, names = served.feature_service, list(served.features)
    found = values_near(settings, dataset, service, names, asked, PROMISE, AHEAD)
    for vector, rows in zip(vectors, found, strict=True):
        for name in [*vector.differs]:
            if any(_same(row[name], vector.logged[name]) for row in rows):
                del vector.differs[name]
    return before - _left(vectors)


def _by_what_was_known(
    settings: Settings, dataset: Dataset, served: ServedModel, vectors: list[Vector]
) -> Counter[str]:
    counts, of = Counter[str](), dataset.entity
    known = Knowledge(settings, dataset, {each.key[of] for each in vectors})
    for turn in _turns(known, of, vectors):
        rows = [row for stood, _ in turn.values() for row in stood]
        asking = _open(each for _, who in turn.values() for each in who)
        if rows and asking:
            with store_of(settings, dataset, rows) as beside:
                counts["corrected"] += _explain(beside, dataset, served, asking)
    for each in _open(vectors):
        if known.news(each.key[of], each.received, each.received + LANDED):
            counts["unsettled"] += len(each.differs)
            each.differs = {}
    return counts


def _turns(known: Knowledge, of: str, vectors: list[Vector]) -> list[Turn]:
    """Plan stores of one state of each entity, until every state of knowledge had its turn.

    Of an entity with hundreds of events an hour the states over MOST_STATES have none: its values
    are `unsettled` then, or `skewed` if nothing came afterwards.
    """
    turns: list[Turn] = []
    for vector in vectors:
        entity, received = vector.key[of], vector.received
        for rows in known.states(entity, received - PROMISE, received):
            for turn in turns:
                stood, who = turn.setdefault(entity, (rows, []))
                if stood == rows:
                    break
            else:
                who = []
                if len(turns) < MOST_STATES:
                    turns.append({entity: (rows, who)})
            if not (who and who[-1] is vector):
                who.append(vector)
    return turns


def _open(vectors: Iterable[Vector]) -> list[Vector]:
    return [each for each in vectors if each.differs]


def _left(vectors: Iterable[Vector]) -> int:
    return sum(len(each.differs) for each in vectors)


def _same(offline: Any, logged: Any) -> bool:
    return same(_finite(offline), None if logged == MISSING else logged)


def _finite(value: Any) -> Any:
    """As the log has it: a number that is none, or infinite, is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
