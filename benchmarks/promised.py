"""What was found, beside what is promised."""

from __future__ import annotations


def promised(what: str, found: float, limit: float, unit: str, *, least: bool = False) -> bool:
    """Print it; return whether it is kept."""
    kept = found >= limit if least else found <= limit
    print(f"{what:58}{found:10.2f} {unit:4}{'at least' if least else 'at most':>9} {limit:g}"
          f"{'' if kept else '   MISSED'}")  # fmt: skip
    return kept
