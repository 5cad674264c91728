"""Memory of a worker: garbage collection, and memory that large bodies leave behind."""

import ctypes
import gc
from contextlib import suppress

THRESHOLDS = (50_000, 20, 100)
"""Collections are rare, because an answer creates no cycles."""
LARGE_BYTES = 100_000
"""A body from here on leaves memory that the C library would keep."""
_has_leftovers = False


def exempt_from_collection() -> None:
    """Exempt the objects of now from garbage collection, which would pause answers for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def note_body(size: int) -> None:
    """Note that a body of a size, in bytes, was read."""
    global _has_leftovers  # noqa: PLW0603  (of the process, as its memory is)
    if size >= LARGE_BYTES:
        _has_leftovers = True


def has_leftovers() -> bool:
    """Whether there was a large body since memory was given back."""
    return _has_leftovers


def give_back() -> None:
    """Give memory that nothing uses back to the system."""
    global _has_leftovers  # noqa: PLW0603
    _has_leftovers = False
    with suppress(AttributeError, OSError):  # another C library has no such function
        ctypes.CDLL(None).malloc_trim(0)
