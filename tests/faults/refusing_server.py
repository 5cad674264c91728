"""`python -m serving` whose every spec says `refuse`."""

from __future__ import annotations

import sys

from serving.__main__ import serve
from stack.settings import load_settings
from stack.spec import load_specs

if __name__ == "__main__":
    specs = [
        spec.model_copy(
            update={"serving": spec.serving.model_copy(update={"missing_features": "refuse"})}
        )
        for spec in load_specs()
    ]
    sys.exit(serve(load_settings(), specs))
