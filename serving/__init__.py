"""One server for every model of `models/`: look up features, score, write down, answer."""

import stack  # noqa: F401  (first: tools read at import whether they may report)
