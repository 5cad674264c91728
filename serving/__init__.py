"""One server for every model of `models/`: look up features, score, write down, answer."""

import core  # noqa: F401  (first: tools read at import whether they may report)
