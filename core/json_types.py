"""What a value in JSON may be, wherever a client sends one."""

from ctypes import c_float
from datetime import datetime
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Strict

from core.timestamps import whole_second

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


def _whole(value: Any) -> Any:
    """In JSON 4.0 is an integer, and what pandas makes of a column with a gap."""
    return int(value) if type(value) is float and value.is_integer() else value


Int64 = Annotated[
    int, Strict(), Ge(-INT64_MAX - 1), Le(INT64_MAX), BeforeValidator(_whole)
]
Int32 = Annotated[
    int, Strict(), Ge(-INT32_MAX - 1), Le(INT32_MAX), BeforeValidator(_whole)
]
Timestamp = Annotated[
    datetime,
    Strict(),
    BeforeValidator(
        lambda text: datetime.fromisoformat(text) if type(text) is str else text
    ),
    AfterValidator(whole_second),
]
"""ISO 8601 with an offset from UTC."""
Float32 = AfterValidator(lambda value: c_float(value).value)
"""A number of any type, rounded to the nearest float32."""
