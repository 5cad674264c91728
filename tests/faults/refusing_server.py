"""`python -m serving` whose every spec says `refuse`."""

from __future__ import annotations

import sys

import serving.watcher
from core.settings import load_settings
from core.spec import ModelSpec, load_specs
from serving.__main__ import serve


def refusing_specs() -> list[ModelSpec]:
    refuse = {"missing_features": "refuse"}
    return [
        spec.model_copy(update={"serving": spec.serving.model_copy(update=refuse)})
        for spec in load_specs()
    ]


serving.watcher.load_specs = refusing_specs  # type: ignore[assignment]  # also in each worker

if __name__ == "__main__":
    sys.exit(serve(load_settings()))
