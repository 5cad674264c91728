"""A server that answers for every model of `models/`: it looks up features, scores and logs."""

import core  # noqa: F401  (first: tools read at import whether they may report)
