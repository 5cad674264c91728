"""A hook of schemathesis: which of the bodies that it makes up are sent."""

from typing import Any

import schemathesis

from core.json_types import EXACT
from core.spec import load_spec

SPEC = load_spec("customer_churn_model")
KINDS = SPEC.features | SPEC.entity_key
INTEGERS = {name for name, kind in KINDS.items() if kind == "int64"}


@schemathesis.hook
def filter_body(_context: Any, body: Any) -> bool:
    """Leave out integers written as doubles, such as 9007199254740992.0, that may be others.

    They are refused; no schema tells them from the same number without a point, which is taken.
    """
    return not _has_large_double(body, is_integer=False)


def _has_large_double(value: Any, *, is_integer: bool) -> bool:
    if isinstance(value, dict):
        return any(
            _has_large_double(part, is_integer=name in INTEGERS)
            for name, part in value.items()
        )
    if isinstance(value, list):
        return any(_has_large_double(part, is_integer=is_integer) for part in value)
    return is_integer and isinstance(value, float) and abs(value) >= EXACT
