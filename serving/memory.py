"""Garbage collection in a worker."""

import gc

THRESHOLDS = (50_000, 20, 100)
"""Collections are rare, because an answer creates no cycles."""


def exempt_from_collection() -> None:
    """Exempt the objects of now from garbage collection, which would pause answers for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
