import core  # noqa: F401  (first: tools read at import whether they may report)
