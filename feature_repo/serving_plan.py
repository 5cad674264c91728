"""What a worker needs to read a feature service from Redis without Feast, see `plan_writer`.

Every byte of Feast's encoding that a reader depends on stands in the plan, as Feast made it, with
samples that show whether the reader makes and understands the same. Only pydantic is imported here.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  (pydantic reads the annotations at run time)
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from stack.errors import DataError
from stack.spec import FeatureType, KeyType  # noqa: TC001

if TYPE_CHECKING:
    from pathlib import Path

    from stack.settings import Settings

Value = int | float | str | None


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        ser_json_bytes="hex",
        val_json_bytes="hex",
        ser_json_inf_nan="constants",
    )


class PlannedFeature(Frozen):
    """name: as Feast's answer has it. field: its name in the hash. tag: of its protobuf field."""

    name: str
    kind: FeatureType
    field: bytes
    tag: int


class PlannedView(Frozen):
    """One hash per entity: `prefix`, type, size and bytes of each value in `keys`, `suffix`.

    keys: columns of the request, in the order of the hash's name.
    time: the field with the event time.
    ttl_us: age in microseconds from which on a value is none; 0: never.
    """

    name: str
    keys: dict[str, KeyType]
    prefix: bytes
    suffix: bytes
    time: bytes
    ttl_us: int
    features: tuple[PlannedFeature, ...]


class PlannedFunction(Frozen):
    """An on-demand view: what it is called with (name → column) and what it gives."""

    name: str
    source: str
    function: str
    inputs: dict[str, str]
    outputs: dict[str, FeatureType]


class KeySample(Frozen):
    """key: values of an entity. hashes: the name of its hash in each view, by Feast."""

    key: dict[str, int | str]
    hashes: tuple[bytes, ...]


class Canary(KeySample):
    """stored: per view the event time's bytes and each feature's; found: Feast's answer to it."""

    as_of: datetime
    stored: tuple[tuple[bytes | None, ...], ...]
    found: dict[str, Value]


class Standing(Frozen):
    """What a plan was written from: it is up to date as long as this is the same."""

    feast: str
    registry: tuple[int, int]
    """Time of change (ns) and size of the file."""
    marks: tuple[str | None, ...]


class ServingPlan(Frozen):
    """marks: keys that stand in Redis since the views were materialised, with up to when.

    not_direct: why only Feast's own reader can answer; all after it is then empty.
    """

    service: str
    standing: Standing
    marks: tuple[bytes, ...]
    not_direct: str | None = None
    views: tuple[PlannedView, ...] = ()
    functions: tuple[PlannedFunction, ...] = ()
    samples: tuple[KeySample, ...] = ()
    canaries: tuple[Canary, ...] = ()


def plan_path(settings: Settings, service: str) -> Path:
    return settings.home / "feast" / "plans" / f"{service}.json"


def load_plan(settings: Settings, service: str) -> ServingPlan:
    """Read the plan of `service`.

    Raises:
        DataError: there is none, or it is not one.

    """
    path = plan_path(settings, service)
    again = "serving's keeper writes it: python -m serving, or gyre up"
    try:
        return ServingPlan.model_validate_json(path.read_bytes())
    except OSError as exc:
        raise DataError(f"no serving plan of {service!r} ({exc}); {again}") from exc
    except ValidationError as exc:
        problem = exc.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "(whole file)"
        raise DataError(f"{path.name}: {where}: {problem['msg']}; remove it, {again}") from exc
