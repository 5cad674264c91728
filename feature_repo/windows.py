"""Answers an import of the former place of windows."""

raise ImportError(
    "feature_repo.windows is no more: from gyre import DECIMAL, Window, Windows, feature_view"
)
