"""Labels with scores."""

import numpy as np


def some_rows(count, digits=2):
    """Labels and scores that say something about them, with many ties."""
    random = np.random.default_rng(1)
    p = np.round(random.beta(2, 1.5, count), digits)
    y = (random.random(count) < p).astype(np.int64)
    return y, p
