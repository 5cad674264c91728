import core.settings  # noqa: F401  (first: whether tools may report, and where packages are)
