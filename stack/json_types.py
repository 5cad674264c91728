"""What a number in JSON may be, wherever a client sends one."""

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import BeforeValidator, Strict

INT64_MAX = 2**63 - 1


def _whole(value: Any) -> Any:
    """In JSON 4.0 is an integer, and what pandas makes of a column with a gap."""
    return int(value) if type(value) is float and value.is_integer() else value


Int64 = Annotated[int, Strict(), Ge(-INT64_MAX - 1), Le(INT64_MAX), BeforeValidator(_whole)]
