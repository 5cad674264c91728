"""Answers an import of the former place of `columns`."""

raise ImportError("training.estimators is no more: from gyre import columns")
