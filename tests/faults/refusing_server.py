"""`python -m serving` whose every spec says `refuse`."""

from __future__ import annotations

import uvicorn

from serving.app import create_app
from stack.settings import LOOPBACK, load_settings
from stack.spec import load_specs

if __name__ == "__main__":
    settings = load_settings()
    specs = [
        spec.model_copy(
            update={"serving": spec.serving.model_copy(update={"missing_features": "refuse"})}
        )
        for spec in load_specs()
    ]
    uvicorn.run(create_app(settings, specs), host=LOOPBACK, port=settings.serving_port)
