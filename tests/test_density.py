"""Code that is packed is counted as such."""

from __future__ import annotations

import pytest

from tests.density import LIMITS, count, densities


def test_open_code_is_within_every_limit():
    counts = count("price = 3\ntotal = price * 2\nrest = total - price\n")
    shares = densities(counts)
    assert all(shares[name] <= LIMITS[name] for name in LIMITS)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("packed assignments", "price, total = 3, 4"),
        ("walruses", "print(price := 3)"),
        ("nested comprehensions", "rows = [[cell for cell in row] for row in table]"),
        ("long statements", f"total = {' + '.join(['1'] * 30)}"),
        ("names without a noun, %", "found = 3"),
        ("tokens a line", "total = [1, 2, 3, 4, 5]"),
    ],
)
def test_packed_code_is_beyond_its_limit(name, source):
    assert densities(count(source))[name] > LIMITS[name]
