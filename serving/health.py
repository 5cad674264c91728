"""Readiness: what each resource said when it was last asked. Asks nothing itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serving.holder import Holder
    from serving.prediction_log import AppendLog

PING_AGE = 3.0
"""Seconds after which silence of the probe itself counts as a failure."""


@dataclass(frozen=True)
class Health:
    """Ready is: the default model answers and the online store does.

    MLflow or the log being down is shown and does not count: answers go on without them. So does
    another model that has no version yet: `GET /v1/models/{name}` tells of each.
    """

    default: Holder
    holders: Sequence[Holder]
    logs: Sequence[tuple[str, AppendLog]]

    def ready(self) -> tuple[bool, dict[str, Any]]:
        redis = self._redis()
        resources = {
            f"model {h.spec.name}": _said(h.state, ok=h.current is not None) for h in self.holders
        }
        resources["redis"] = _said(redis or "answers", ok=redis is None)
        mlflow = self.default.registry_problem
        resources["mlflow"] = _said(mlflow or "answers", ok=mlflow is None)
        for name, log in self.logs:
            resources[name] = _said(log.problem or "is written", ok=log.problem is None)
        ready = self.default.current is not None and redis is None
        return ready, {"ready": ready, "resources": resources}

    def _redis(self) -> str | None:
        source = self.default.features
        silent = time.monotonic() - source.probed_at
        if silent > PING_AGE:
            return f"no ping for {silent:.0f} s"
        return source.problem


def _said(detail: str, *, ok: bool) -> dict[str, Any]:
    return {"ok": ok, "detail": detail}
